"""What people give as --model: each kind of folder is used, or refused in one sentence."""

import io
import json
import sys

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from minirlhf import cli
from minirlhf.models.forward import encode, policy_logprobs, token_scores
from minirlhf.models.heads import ScalarModel
from minirlhf.models.load import load_policy, load_scalar, same_weights, save_policy
from minirlhf.models.sampling import sample_text
from minirlhf.tasks.hub import load_by_name
from tests.tiny import tiny_policy, tiny_tokenizer

SIZE = dict(
    vocab_size=257,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    max_position_embeddings=64,
    bos_token_id=0,
    eos_token_id=0,
    pad_token_id=0,
)


def saved(folder, model=None, tokenizer=None):
    """A folder as transformers writes it."""
    (tiny_policy() if model is None else model).save_pretrained(folder)
    (tiny_tokenizer() if tokenizer is None else tokenizer).save_pretrained(folder)
    return folder


def changed(file, **entries):
    table = json.loads(file.read_text()) | entries
    file.write_text(json.dumps({key: value for key, value in table.items() if value is not None}))


def refused(folder, load=load_policy):
    with pytest.raises(ValueError) as caught:
        load(folder)
    sentence = str(caught.value)
    assert str(folder) in sentence and "\n" not in sentence
    return sentence


def with_weights(change):
    """A change of the tensors in model.safetensors."""

    def made(folder):
        saved(folder)
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return made


def with_config(**entries):
    def made(folder):
        changed(saved(folder) / "config.json", **entries)

    return made


def of_type(kind, **entries):
    def made(folder):
        saved(folder)
        (folder / "config.json").write_text(json.dumps({"model_type": kind} | entries))

    return made


def only(*names):
    """A folder in which only these files are left."""

    def made(folder):
        saved(folder)
        for file in folder.iterdir():
            if file.name not in names:
                file.unlink()

    return made


def pickled(folder):
    saved(folder)
    (folder / "model.safetensors").unlink()
    torch.save(tiny_policy().state_dict(), folder / "pytorch_model.bin")


def index_of(*shards):
    def made(folder):
        pickled(folder)
        names = {f"transformer.h.{i}.ln_1.weight": shard for i, shard in enumerate(shards)}
        index = {"metadata": {}, "weight_map": names}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    return made


def lost_shard(folder):
    tiny_policy().save_pretrained(folder, max_shard_size="20KB")
    tiny_tokenizer().save_pretrained(folder)
    sorted(folder.glob("model-*.safetensors"))[1].unlink()


def adapters(folder):
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "some/base"}')
    tiny_tokenizer().save_pretrained(folder)


def gguf(folder):
    folder.mkdir()
    (folder / "tiny.Q4_1.gguf").write_bytes(b"GGUF")


def untied_without_head(folder):
    model = tiny_policy()
    model.config.tie_word_embeddings = False
    saved(folder, model)
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("lm_head.weight", None)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    changed(folder / "config.json", tie_word_embeddings=False)


def classifier(folder):
    config = tiny_policy().config
    config.num_labels = 1
    saved(folder, transformers.AutoModelForSequenceClassification.from_config(config))


def model_of(config):
    return lambda folder: saved(folder, transformers.AutoModelForCausalLM.from_config(config))


def poison(value):
    def change(tensors):
        tensors["transformer.h.0.mlp.c_fc.weight"][1, 2] = value

    return with_weights(change)


NUMBERS = {"bias": 0.0, "shift": 0.0, "scale": 1.0}


def with_generation(**entries):
    def made(folder):
        (saved(folder) / "generation_config.json").write_text(json.dumps(entries))

    return made


def damaged(name):
    return lambda folder: (saved(folder) / name).write_text("{")


def whole_numbers(tensors):
    tensors["transformer.wte.weight"] = tensors["transformer.wte.weight"].to(torch.int8)


CAUSAL = "give a causal language model"
FOLDERS = {
    "one layer less in the config": (with_config(n_layer=1), "have no place in the model"),
    "one layer more in the config": (with_config(n_layer=3), "missing or of another shape"),
    "another width": (with_config(n_embd=40), "missing or of another shape"),
    "an untied head that is missing": (untied_without_head, "such as lm_head.weight"),
    "a value head": (
        with_weights(lambda tensors: tensors.update({"v_head.summary.weight": torch.ones(1, 32)})),
        "such as v_head.summary.weight; they would be lost",
    ),
    "NaN": (poison(float("nan")), "transformer.h.0.mlp.c_fc.weight holds NaN or infinity"),
    "infinity": (poison(float("inf")), "holds NaN or infinity"),
    "pickled weights": (pickled, "its weights are in pytorch_model.bin, a format that can run"),
    "an index of pickles": (index_of("pytorch_model.bin"), "names pytorch_model.bin; weights"),
    "an index of a path": (index_of("../x/model.pt", "a.safetensors"), "names ../x/model.pt"),
    "a missing shard": (lost_shard, "are missing, such as model-00002-of"),
    "an index without files": (index_of(), "its model.safetensors.index.json names no file"),
    "an index of numbers": (
        index_of(1),
        "weight_map of its model.safetensors.index.json is 1; it must be a text",
    ),
    "other weights by name": (with_config(transformers_weights="pytorch_model.bin"), "only .safet"),
    "adapters": (adapters, "adapters (adapter_config.json) of the model 'some/base'"),
    "GGUF": (gguf, "a GGUF file (tiny.Q4_1.gguf)"),
    "a tokenizer only": (only("tokenizer.json", "tokenizer_config.json"), "holds a tokenizer, but"),
    "weights only": (only("model.safetensors"), "holds weights, but no config.json"),
    "nothing": (only(), "is a folder without config.json"),
    "no weights": (only("config.json", "tokenizer.json"), "no file named model.safetensors"),
    "no tokenizer": (only("config.json", "model.safetensors"), "tokenizer"),
    "a config that is a list": (
        lambda folder: (saved(folder) / "config.json").write_text("[]"),
        "its config.json holds no table",
    ),
    "whole numbers": (
        with_weights(whole_numbers),
        "wte.weight is stored as I8, so it is quantised",
    ),
    "EOS that is text": (with_config(eos_token_id="x"), "'eos_token_id'"),
    "an end that is text": (
        with_generation(eos_token_id="x"),
        "eos_token_id in generation_config is 'x'; it must be a token id or a list of token ids",
    ),
    "an end in a list that is text": (with_generation(eos_token_id=[0, "x"]), "is [0, 'x']; it"),
    "a damaged config": (damaged("config.json"), "its config.json is not a valid JSON file"),
    "architectures of another type": (with_config(architectures=5), "architectures in its config"),
    "architectures that are numbers": (
        with_config(architectures=[3]),
        "architectures of its config.json is 3; it must be a text",
    ),
    "a damaged generation config": (
        damaged("generation_config.json"),
        "its generation_config.json is not a valid JSON file",
    ),
    "a padding id that is text": (with_config(pad_token_id="none"), "'pad_token_id'"),
    "an unknown type": (of_type("nonesuch"), "nonesuch"),
    "encoder and decoder": (of_type("t5"), f"encoder-decoder model (type 't5'); {CAUSAL}"),
    "the decoder of two": (
        of_type("bart", is_encoder_decoder=True),
        f"an encoder-decoder model (type 'bart'); {CAUSAL}",
    ),
    "masked": (model_of(transformers.BertConfig(**SIZE)), "a masked language model (type 'bert')"),
    "RoBERTa": (
        model_of(transformers.RobertaConfig(**SIZE)),
        "a masked language model (type 'roberta')",
    ),
    "pictures": (of_type("llava"), "pictures or sound as well (type 'llava')"),
    "pictures alone": (of_type("vit"), f"type 'vit' does not write text; {CAUSAL}"),
    "quantised": (
        with_config(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
        "quantised (bitsandbytes), and such weights cannot be trained",
    ),
    "GPTQ": (with_config(quantization_config={"quant_method": "gptq"}), "quantised (gptq)"),
    "a classifier": (classifier, "it is a classifier (GPT2ForSequenceClassification)"),
    "a foreign attention kernel": (
        with_config(attn_implementation="someone/kernel"),
        "asks for the attention 'someone/kernel'; it must be sdpa or eager",
    ),
    "recurrent": (
        model_of(transformers.RwkvConfig(vocab_size=257, hidden_size=32, num_hidden_layers=2)),
        "type 'rwkv' cannot be used here (the model keeps no key-value cache",
    ),
    "Mamba": (
        model_of(transformers.MambaConfig(vocab_size=257, hidden_size=32, num_hidden_layers=1)),
        "type 'mamba' cannot be used here (the model keeps no key-value cache",
    ),
    "no cache": (
        model_of(transformers.OpenAIGPTConfig(vocab_size=257, n_embd=32, n_layer=1, n_head=2)),
        "type 'openai-gpt' cannot be used here (the model keeps no key-value cache",
    ),
    "no limit of positions": (
        model_of(transformers.XLNetConfig(vocab_size=257, d_model=32, n_layer=1, n_head=2)),
        "type 'xlnet' cannot be used here",
    ),
    "a cache of another kind": (
        model_of(
            transformers.RecurrentGemmaConfig(
                **SIZE, head_dim=16, lru_width=32, attention_window_size=16
            )
        ),
        "type 'recurrent_gemma' cannot be used here",
    ),
    "too few positions": (
        lambda folder: saved(folder, tiny_policy(positions=4)),
        "the model reads 4 tokens at most; it must be 5 or more",
    ),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_folder_that_is_no_policy_is_refused(kind, tmp_path):
    make, sentence = FOLDERS[kind]
    make(tmp_path / "model")
    assert sentence in refused(tmp_path / "model")


@pytest.mark.parametrize("load", [load_policy, load_scalar])
@pytest.mark.parametrize("name", ["x" * 300, "a\0b"])
def test_a_name_that_no_folder_can_have_is_refused(name, load):
    assert f"'{name}'" in refused(name, load)


def test_a_file_is_refused(tmp_path):
    file = saved(tmp_path / "model") / "model.safetensors"
    assert "is a file; give the folder that holds it" in refused(file)


def test_a_pickle_is_never_opened(tmp_path, monkeypatch):
    def opened(*args, **kwargs):
        raise AssertionError("torch.load was called")

    for number, make in enumerate((pickled, index_of("pytorch_model.bin"))):
        make(tmp_path / str(number))
        monkeypatch.setattr(torch, "load", opened)
        assert "torch.load" not in refused(tmp_path / str(number))
        monkeypatch.undo()


def plant(folder, *, config=True, kind="planted"):
    """A folder whose own Python writes a file when it is imported."""
    saved(folder)
    (folder / "planted.py").write_text(f"open({str(folder / 'ran')!r}, 'w').close()\n")
    code = {
        "AutoConfig": "planted.A",
        "AutoModelForCausalLM": "planted.A",
        "AutoModelForSequenceClassification": "planted.A",
        "AutoTokenizer": ["planted.A", "planted.A"],
    }
    if config:
        changed(folder / "config.json", model_type=kind, auto_map=code)
    else:
        changed(folder / "tokenizer_config.json", tokenizer_class="Planted", auto_map=code)
    return folder


@pytest.mark.parametrize("load", [load_policy, load_scalar])
@pytest.mark.parametrize("where", ["config", "tokenizer", "known type"])
def test_the_python_of_a_folder_never_runs(where, load, tmp_path, monkeypatch):
    folder = plant(
        tmp_path / "model",
        config=where != "tokenizer",
        kind="gpt2" if where == "known type" else "planted",
    )
    if load is load_scalar:
        (folder / "scalar.json").write_text(json.dumps(NUMBERS))
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 20))  # transformers would ask
    sentence = ""
    try:
        load(folder)
    except ValueError as error:
        sentence = str(error)
    assert not (folder / "ran").exists() and sys.stdin.tell() == 0
    if where == "config":
        assert "would run Python from the model's own files (auto_map), which we never" in sentence


def test_the_python_of_a_dataset_never_runs(tmp_path, monkeypatch):
    folder = tmp_path / "rows"
    folder.mkdir()
    (folder / "rows.py").write_text(f"open({str(folder / 'ran')!r}, 'w').close()\n")
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 20))
    with pytest.raises(ValueError, match="cannot be read"):
        load_by_name(str(folder))
    assert not (folder / "ran").exists()


HARMLESS = [
    "transformer.h.0.attn.bias",
    "transformer.h.1.attn.masked_bias",
    "transformer.h.0.attn.rotary_emb.inv_freq",
    "transformer.position_ids",
]


@pytest.mark.parametrize("name", HARMLESS)
def test_tables_that_older_versions_saved_are_no_reason_to_refuse(name, tmp_path):
    with_weights(lambda tensors: tensors.update({name: torch.ones(1)}))(tmp_path / "model")
    load_policy(tmp_path / "model")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_16_bits_are_read_as_float32(dtype, tmp_path):
    model, _ = load_policy(saved(tmp_path / "model", tiny_policy().to(dtype)))
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_sharded_weights_are_read(tmp_path):
    tiny_policy().save_pretrained(tmp_path / "model", max_shard_size="20KB")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    again, batch = load_policy(tmp_path / "model")[0], encode(tiny_tokenizer(), ["a"], ["b"])
    torch.testing.assert_close(policy_logprobs(again, batch), policy_logprobs(tiny_policy(), batch))


@pytest.mark.parametrize(
    "numbers, sentence",
    [
        (NUMBERS | {"scale": 0}, "scale in its scalar.json is 0; it must be a number from 1e-30"),
        (NUMBERS | {"scale": 1e-320}, "is 1e-320; it must be a number from 1e-30 to 1e+30"),
        (NUMBERS | {"shift": 10**400}, "shift in its scalar.json is 1000"),
        (NUMBERS | {"scale": float("nan")}, "scale in its scalar.json is nan"),
        (NUMBERS | {"scale": float("inf")}, "scale in its scalar.json is inf"),
        (NUMBERS | {"scale": "1"}, "scale in its scalar.json is '1'"),
        (NUMBERS | {"scale": True}, "scale in its scalar.json is True"),
        (NUMBERS | {"scale": None}, "scale in its scalar.json is None"),
        (NUMBERS | {"shift": float("nan")}, "is nan; it must be a number from -1e+30"),
        (NUMBERS | {"bias": [1]}, "bias in its scalar.json is [1]"),
        (NUMBERS | {"sclae": 2.0}, "its scalar.json also names sclae"),
        ({"bias": 0.0}, "its scalar.json lacks scale, shift"),
        ([1], "its scalar.json holds no table"),
        ("", "its scalar.json is not a valid JSON file"),
    ],
)
def test_wrong_numbers_of_a_reward_model_are_refused(numbers, sentence, tmp_path):
    ScalarModel(tiny_policy().base_model).save(tmp_path / "reward", tiny_tokenizer())
    text = json.dumps(numbers) if numbers else "{"
    (tmp_path / "reward" / "scalar.json").write_text(text)
    assert sentence in refused(tmp_path / "reward", load_scalar)


def test_a_reward_model_with_two_outputs_or_without_its_head_is_refused(tmp_path):
    config = tiny_policy().config
    config.num_labels = 2
    whole = transformers.AutoModelForSequenceClassification.from_config(config)
    (saved(tmp_path / "two", whole) / "scalar.json").write_text(json.dumps(NUMBERS))
    assert "its head gives 2 numbers per token" in refused(tmp_path / "two", load_scalar)
    (saved(tmp_path / "none") / "scalar.json").write_text(json.dumps(NUMBERS))
    assert "such as score.weight" in refused(tmp_path / "none", load_scalar)


def projected_opt():
    """An OPT whose last hidden states are narrower than the ones in its layers."""
    torch.manual_seed(0)
    size = {key: value for key, value in SIZE.items() if key != "intermediate_size"}
    config = transformers.OPTConfig(
        **size, ffn_dim=64, word_embed_proj_dim=16, do_layer_norm_before=False
    )
    return transformers.OPTForCausalLM(config).eval()


def test_a_head_is_as_wide_as_the_states_that_it_reads(tmp_path):
    model = ScalarModel(projected_opt().base_model).eval()
    assert model.head.in_features == 16
    model.save(tmp_path / "reward", tiny_tokenizer(), dtype=torch.float32)
    batch = encode(tiny_tokenizer(), ["a"], ["good"])
    again = token_scores(load_scalar(tmp_path / "reward")[0], batch)
    torch.testing.assert_close(again, token_scores(model, batch), rtol=0, atol=1e-6)


def test_a_padding_id_beyond_the_embedding_is_of_no_account(tmp_path):
    for pad in (257, 99_999, -1):
        changed(saved(tmp_path / str(pad)) / "config.json", pad_token_id=pad)
        model, tokenizer = load_policy(tmp_path / str(pad))
        batch = encode(tokenizer, ["a", "longer"], ["b", "much longer"])
        assert policy_logprobs(model, batch).isfinite().all()
        save_policy(model, tokenizer, tmp_path / "again")
        load_policy(tmp_path / "again")


def with_window(**entries):
    return transformers.MistralConfig(**SIZE, num_key_value_heads=1, **entries)


@pytest.mark.parametrize(
    "make",
    [
        saved,
        with_config(attn_implementation="eager"),
        with_config(eos_token_id=[0, 5]),
        with_generation(do_sample=False, temperature=0.6, top_p=0.9, eos_token_id=[0, 99_999]),
        lambda folder: saved(folder, projected_opt()),
        model_of(with_window(sliding_window=3)),
        lambda folder: saved(folder, tiny_policy(positions=6)),
        model_of(transformers.BertConfig(**SIZE, is_decoder=True)),
        model_of(transformers.GPT2Config(vocab_size=257, n_embd=32, n_layer=1, n_head=2)),
        model_of(
            transformers.LlamaConfig(**SIZE, tie_word_embeddings=False, num_key_value_heads=1)
        ),
        model_of(transformers.LlamaConfig(**SIZE, tie_word_embeddings=True)),
        model_of(
            transformers.MptConfig(
                d_model=32, n_heads=2, n_layers=2, max_seq_len=64, vocab_size=257
            )
        ),
        with_weights(
            lambda tensors: tensors.update({"lm_head.weight": torch.randn(257, 32)})
        ),  # another head than the embedding, though the config ties them: transformers keeps both
    ],
)
def test_a_folder_that_is_a_policy_is_read_saved_and_read_again(make, tmp_path):
    make(tmp_path / "model")
    model, tokenizer = load_policy(tmp_path / "model")
    save_policy(model, tokenizer, tmp_path / "again")
    again, batch = load_policy(tmp_path / "again")[0], encode(tokenizer, ["a", "bc"], ["", "d"])
    assert same_weights(again, model)
    assert torch.equal(policy_logprobs(again, batch), policy_logprobs(model, batch))


def test_a_limit_of_positions_under_another_name_is_found():
    config = transformers.MptConfig(
        d_model=32, n_heads=2, n_layers=1, max_seq_len=8, vocab_size=257
    )
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(ValueError, match="exceed the model's 8"):
        sample_text(model, tiny_tokenizer(), ["a longer prompt"])
    with pytest.raises(ValueError, match="exceeds the 8 positions"):
        policy_logprobs(model, encode(tiny_tokenizer(), ["a longer prompt"], ["b"]))


def test_nan_of_eager_attention_in_float64_is_not_blamed_on_the_weights_alone():
    # its softmax is taken in float32, where the mask of float64 (-1.8e308) is minus infinity, so
    # rows of padding become NaN
    config = transformers.Gemma2Config(**SIZE, head_dim=16, num_key_value_heads=1)
    model = transformers.AutoModelForCausalLM.from_config(config).double().eval()
    with pytest.raises(FloatingPointError, match="its attention overflows in float64"):
        sample_text(model, tiny_tokenizer(), ["a", "longer"])


def test_a_reward_model_that_cannot_be_saved_is_refused_before_training(tmp_path):
    size = dict(d_model=32, num_layers=1, attention_heads=2, ffn_dim=64, eos_token_id=0)
    config = transformers.XGLMConfig(vocab_size=257, max_position_embeddings=64, **size)
    saved(tmp_path / "model", transformers.AutoModelForCausalLM.from_config(config))
    done = CliRunner().invoke(
        cli.app, ["reward", "--model", str(tmp_path / "model"), "--out", str(tmp_path / "out")]
    )
    assert "model is 'xglm'; it must be of a type that transformers has" in str(done.exception)


@pytest.mark.parametrize(
    "content, sentence",
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of git-lfs"),
        (b"", "is cut off, or is no safetensors file"),
        (b"\xff" * 40, "is cut off, or is no safetensors file"),
    ],
)
def test_a_file_of_weights_without_weights_is_named(content, sentence, tmp_path):
    save_policy(tiny_policy(), tiny_tokenizer(), tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=f"its model.safetensors {sentence}"):
        load_policy(tmp_path / "model")
