"""Damaged or odd files in a folder that holds all of a model: a sentence about the file at fault."""

import json
import os

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from minirlhf.models.heads import ScalarModel
from minirlhf.models.load import load_policy, load_scalar, same_weights
from tests.models.test_folders import SIZE, changed, model_of, refused, saved, with_config
from tests.tiny import tiny_policy, tiny_tokenizer

INDEX = "model.safetensors.index.json"
TABLES = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "tokenizer.json",
    "special_tokens_map.json",
    "added_tokens.json",
)


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize(
    "text, sentence",
    [("[]", "holds no table of names and values"), ("{", "is not a valid JSON file")],
)
def test_a_json_file_that_is_no_table_is_named(name, text, sentence, tmp_path):
    (saved(tmp_path / "model") / name).write_text(text)
    assert f"its {name} {sentence}" in refused(tmp_path / "model")


def with_template(template):
    return lambda folder: changed(saved(folder) / "tokenizer_config.json", chat_template=template)


def with_rope(rope):
    def made(folder):
        config = transformers.LlamaConfig(**SIZE, num_key_value_heads=1)
        model_of(config)(folder)
        changed(folder / "config.json", rope_parameters=rope)

    return made


def complete_with_adapters(folder):
    (saved(folder) / "adapter_config.json").write_text('{"base_model_name_or_path": null}')


def tokenizer_of_another_format(folder):
    (saved(folder) / "tokenizer.json").write_text('{"a": 1}')


BUILD = (
    "transformers cannot build the model that its config.json and generation_config.json describe"
)
ODD = {
    "a template that is a number": (
        with_template(5),
        "chat_template in its tokenizer_config.json is 5; it must be a text",
    ),
    "templates that are numbers": (
        with_template({"default": 5}),
        "it must be a text, or a table of texts",
    ),
    "an unknown tokenizer": (
        tokenizer_of_another_format,
        "its tokenizer cannot be read (KeyError 'added_tokens'); give the tokenizer files",
    ),
    "an unknown dtype": (
        with_config(dtype="float3"),
        "dtype in its config.json is 'float3'; it must be the name of a torch dtype",
    ),
    "the same by its older name": (with_config(torch_dtype="float3"), "torch_dtype in its"),
    "quantised by an empty table": (with_config(quantization_config={}), "its weights are quanti"),
    "unknown positions": (
        with_rope({"rope_type": "magic", "rope_theta": 1e4}),
        "rope_type in its config.json is 'magic'; it must be one of default, dynamic,",
    ),
    "positions without a number": (
        with_rope({"rope_type": "linear", "rope_theta": 1e4}),
        f"{BUILD} (KeyError",
    ),
    "positions with a text": (
        with_rope({"rope_type": "linear", "factor": "x", "rope_theta": 1e4}),
        f"{BUILD} (TypeError",
    ),
    "a padding id that is text": (
        lambda folder: (saved(folder) / "generation_config.json").write_text(
            '{"pad_token_id": "x"}'
        ),
        f"{BUILD} (TypeError",
    ),
    "another vocabulary": (with_config(vocab_size=300), "such as transformer.wte.weight"),
    "adapters of nothing": (complete_with_adapters, "(adapter_config.json) of another model"),
}


@pytest.mark.parametrize("kind", ODD)
def test_an_odd_entry_is_refused_in_one_sentence(kind, tmp_path):
    make, sentence = ODD[kind]
    make(tmp_path / "model")
    assert sentence in refused(tmp_path / "model")


def sharded(folder, *, both=False, path=""):
    """A folder of two shards and their index; with `both`, one weight is in both shards."""
    tensors = load_file(saved(folder) / "model.safetensors")
    names, half = sorted(tensors), len(tensors) // 2
    (folder / "model.safetensors").unlink()
    parts = {"a": names[:half], "b": names[half - both :]}
    for shard, held in parts.items():
        held = {name: tensors[name] for name in held}
        save_file(held, folder / f"{shard}.safetensors", metadata={"format": "pt"})
    places = {name: f"{path}{shard}.safetensors" for shard in "ba" for name in parts[shard]}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


@pytest.mark.parametrize("path", ["../", "./", "elsewhere/"])
def test_an_index_names_no_file_of_another_folder(path, tmp_path):
    folder = sharded(tmp_path / "model", path=path)
    for shard in "ab":  # they are where the index says, too
        place = folder / f"{path}{shard}.safetensors"
        place.parent.mkdir(exist_ok=True)
        place.write_bytes((folder / f"{shard}.safetensors").read_bytes())
    sentence = refused(folder)
    assert f"names '{path}a.safetensors'; it must name files of the same folder" in sentence
    whole = f"{tmp_path}/model/"
    assert f"names '{whole}a.safetensors'" in refused(sharded(folder / "absolute", path=whole))


def test_a_weight_in_two_files_is_refused(tmp_path):
    sentence = refused(sharded(tmp_path / "model", both=True))
    assert "is in a.safetensors and in b.safetensors; remove the files" in sentence


def test_an_index_that_lacks_weights_and_links_to_shards_are_followed(tmp_path):
    # the cache of the hub is made of links; that no weight is missing, config.json says
    whole = load_policy(saved(tmp_path / "whole"))[0]
    folder = sharded(tmp_path / "model")
    (folder / "b.safetensors").rename(tmp_path / "blob")
    (folder / "b.safetensors").symlink_to(tmp_path / "blob")
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"] = dict(
        item for item in index["weight_map"].items() if "ln_1" in item[0] or "wte" in item[0]
    )
    assert {*index["weight_map"].values()} == {"a.safetensors", "b.safetensors"}
    (folder / INDEX).write_text(json.dumps(index))
    assert same_weights(load_policy(folder)[0], whole)


def test_an_index_that_names_a_weight_of_no_file_is_refused(tmp_path):
    folder = sharded(tmp_path / "model")
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["transformer.h.7.x"] = "a.safetensors"
    (folder / INDEX).write_text(json.dumps(index))
    assert "names transformer.h.7.x, which none of its files holds" in refused(folder)


@pytest.mark.parametrize(
    "name, value, sentence",
    [
        ("transformer.h.9.attn.bias", torch.ones(1), "have no place in the model"),
        ("transformer.h.9.attn.rotary_emb.inv_freq", torch.ones(1), "have no place in the mod"),
        ("transformer.h.0.attn.bias", torch.full((3,), 0.5), "has the name of a causal mask"),
    ],
)
def test_a_table_of_no_layer_or_of_other_numbers_is_refused(name, value, sentence, tmp_path):
    file = saved(tmp_path / "model") / "model.safetensors"
    save_file(load_file(file) | {name: value}, file, metadata={"format": "pt"})
    assert sentence in refused(tmp_path / "model")


@pytest.mark.parametrize(
    "name, value, sentence",
    [
        ("num_labels", 10**9, "num_labels in its config.json is 1000000000; it must be at most"),
        ("n_layer", 10**9, "n_layer in its config.json is 1000000000; it must be at most 10,000"),
        ("layer_norm_epsilon", 1e30, "is 1e+30; it must be a small number, from 0 to 1"),
        ("layer_norm_epsilon", -1, "is -1; it must be a small number, from 0 to 1"),
    ],
)
def test_a_number_that_no_model_has_is_refused_before_the_model_is_built(
    name, value, sentence, tmp_path
):
    file = saved(tmp_path / "model") / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {name: value}))
    assert sentence in refused(tmp_path / "model")


def test_a_reward_model_whose_scores_are_all_equal_is_refused(tmp_path):
    model = ScalarModel(tiny_policy().base_model)
    torch.nn.init.zeros_(model.head.weight)
    model.save(tmp_path / "model", tiny_tokenizer())
    with pytest.raises(ValueError, match="its head holds zeros alone, so all scores would be eq"):
        load_scalar(tmp_path / "model")


def test_a_folder_that_may_not_be_opened_is_named(tmp_path, monkeypatch):
    saved(tmp_path / "model")
    (tmp_path / "model" / "config.json").unlink()  # without the right x no file is found
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(ValueError, match="is a folder that you may not open: its permissions la"):
        load_policy(tmp_path / "model")


def test_a_config_of_a_far_larger_model_is_refused_before_it_is_built(tmp_path, monkeypatch):
    """The weights of a small GPT-2 beside "llama" without sizes: its default is 7B."""
    saved(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text('{"model_type": "llama"}')

    def never(*args, **settings):
        raise AssertionError("the model is built")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", never)
    said = refused(tmp_path / "model")
    assert "a model of type 'llama' with 6,738,415,616 weights, but its files hold" in said
