"""A wrong input gives an error message of one sentence and leaves no incomplete files."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from safetensors import SafetensorError
from typer.testing import CliRunner

from minirlhf import cli
from minirlhf.loops.group import GroupConfig, train_group
from minirlhf.loops.online import OnlineConfig
from minirlhf.loops.ppo import PPOConfig, train_ppo
from minirlhf.loops.preference import DPOConfig, train_dpo
from minirlhf.loops.reward import RewardConfig
from minirlhf.loops.sft import SFTConfig
from minirlhf.loops.step_dpo import StepDPOConfig
from minirlhf.models.forward import encode
from minirlhf.models.heads import ScalarModel
from minirlhf.models.load import CHECKPOINTS, load_policy, save_policy
from minirlhf.models.sampling import SamplingConfig, sample_text
from minirlhf.runtime import atomic_folder
from minirlhf.tasks.formats import standard
from minirlhf.tasks.hub import load_by_name
from tests.tiny import tiny_policy, tiny_tokenizer

TOLD = (
    ValueError,
    ArithmeticError,
    OSError,
    RuntimeError,
    SafetensorError,
)  # what `cli.main` turns into one sentence


def said(arguments, tmp_path):
    """The error message of a command; its output folder must not hold a result."""
    result = CliRunner().invoke(
        cli.app,
        [*arguments, "--out", str(tmp_path / "out")]
        if arguments[0] not in ("sample", "score", "data")
        else arguments,
    )
    assert isinstance(result.exception, TOLD), repr(result.exception)
    assert (
        not (tmp_path / "out" / "config.json").exists()
        and not (tmp_path / "out" / "metrics.jsonl").exists()
    )
    return str(result.exception)


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["ppo", "--kl-coef", "-1"], "kl_coef is -1.0; it must be 0 or more"),
        (["ppo", "--steps", "0"], "steps is 0; it must be at least 1"),
        (["ppo", "--lr", "nan"], "lr is nan; it must be above 0"),
        (["ppo", "--micro-batch", "-1"], "micro_batch is -1"),
        (["dpo", "--beta", "inf"], "beta is inf"),
        (["dpo", "--loss", "ppo"], "loss is 'ppo'; it must be one of dpo, cdpo"),
        (["dpo", "--setting", "penalty"], "setting is 'penalty'; it must be NAME=NUMBER"),
        (["dpo", "--setting", "penalty=5"], "settings is ['penalty']; it must be some of beta"),
        (["dpo", "--loss", "orpo", "--sync-every", "5"], "0 without a reference"),
        (["online-dpo", "--samples", "1"], "group_size is 1; it must be at least 2"),
        (["rso", "--loss", "kto"], "a loss of pairs"),
        (["sft", "--best-of", "1"], "best_of is 1; it must be 0, or 2"),
        (["dpo", "--rows", "0"], "n is 0; it must be at least 1 pair"),
        (["dpo", "--max-response", "0"], "max_response is 0; it must be at least 1"),
        (["dpo", "--rows", "9", "--lora", "-3"], "rank is -3"),
        (["dpo", "--rows", "9", "--bf16"], "it works only with --lora"),
        (["sft", "--epochs", "nan"], "epochs is nan"),
        (
            ["grpo", "--model", "tiny-reviews-reward"],
            "is a reward model, which cannot write responses",
        ),
        (["ppo", "--scorer", "tiny-reviews-sft"], "No reward model 'tiny-reviews-sft'"),
        (["sample", "word " * 300], "exceed the model's 128"),
        (["sample", "x", "--max-new-tokens", "1000"], "exceed the model's 128"),
        (["sample", "x", "--temperature", "nan"], "temperature is nan"),
        (["sample", "\ud800"], "is not UTF-8"),
        (["score", "\ud800"], "is not UTF-8"),
        (["score", "<|endoftext|>"], "empty"),
        (["data", "--model", "gpt5"], "model is 'gpt5'; it must be smollm2-135m"),
    ],
)
def test_a_wrong_argument_is_refused(arguments, sentence, tmp_path):
    assert sentence in said(arguments, tmp_path)


@pytest.mark.parametrize(
    "rows, sentence",
    [
        ([{"prompt": "a", "chosen": "b"}], "lacks ['rejected']"),
        ([{"question": "a"}], "no known format"),
        ([{"prompt": "a", "chosen": 1, "rejected": 2}], "of type int; it must be text"),
        ([{"prompt": "a", "chosen": None, "rejected": "c"}], "of type NoneType"),
        ([{"prompt": "a", "chosen": "b", "rejected": "b"}], "the same text"),
        ([{"prompt": "", "chosen": "b", "rejected": "c"}], "the prompt is empty"),
        ([{"prompt": "word " * 20_000, "chosen": "b", "rejected": "c"}], "exceeds the 128"),
        ([{"prompt": "a", "chosen": "\ud800", "rejected": "c"}], "surrogate"),
        (
            [
                {
                    "prompt": [{"role": "user", "content": "a"}],
                    "chosen": [{"role": "assistant", "content": "b"}],
                    "rejected": [{"role": "assistant", "content": "c"}],
                }
            ],
            "chat template",
        ),
        ([], "cannot be read: no rows"),
    ],
)
def test_a_wrong_dataset_is_refused(rows, sentence, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    assert sentence in said(["dpo", "--dataset", str(file), "--steps", "1"], tmp_path)


def test_an_output_folder_with_other_files_is_refused_before_training(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    sentence = said(["dpo", "--dataset", str(out / "pairs.jsonl"), "--steps", "1"], tmp_path)
    assert "hold only a model, but it also holds pairs.jsonl; give another folder" in sentence
    assert [p.name for p in out.iterdir()] == ["pairs.jsonl"]


def test_an_interrupted_save_keeps_the_old_model(tmp_path, monkeypatch):
    save_policy(tiny_policy(), tiny_tokenizer(), tmp_path / "model")
    before, replace, calls = sorted(p.name for p in (tmp_path / "model").iterdir()), os.replace, []

    def interrupted(source, target):
        calls.append(target)
        if len(calls) == 2:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / "model") as temporary:
        (temporary / "config.json").write_text("{}")
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == before


def test_a_file_that_is_not_a_dataset_is_refused(tmp_path):
    for name, content, sentence in (
        ("a.jsonl", "{not json", "a.jsonl, row 1 is no JSON: "),
        ("a.txt", "hello", "its name does not end in .jsonl"),
    ):
        (tmp_path / name).write_text(content)
        assert sentence in said(["dpo", "--dataset", str(tmp_path / name)], tmp_path)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "a", "chosen": "b" * 100_000, "rejected": "c " * 50_000},
        {"prompt": "a\x00\x1b[31m", "chosen": "b\x07\u202e", "rejected": "c\r\n"},
        {"prompt": "<script>", "chosen": "<script>alert(1)</script>", "rejected": "</script>"},
        {"prompt": "a", "chosen": "", "rejected": "c"},
        {"prompt": "a", "chosen": "<|endoftext|>", "rejected": "<|endoftext|>x"},
    ],
)
def test_unusual_texts_can_be_trained_on(row, tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    result = CliRunner().invoke(
        cli.app,
        [
            "dpo",
            "--dataset",
            str(tmp_path / "rows.jsonl"),
            "--max-response",
            "32",
            "--steps",
            "1",
            "--out",
            str(tmp_path / "out"),
        ],
    )
    assert result.exception is None and load_policy(tmp_path / "out")
    loss = json.loads((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()[0])["loss"]
    assert loss == pytest.approx(0.6931, abs=1e-3)


def damage(folder: Path, how: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    match how:
        case "truncated":
            (folder / "model.safetensors").write_bytes(
                (folder / "model.safetensors").read_bytes()[:1000]
            )
        case "foreign":
            (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
        case "another shape":
            (folder / "config.json").write_text(json.dumps(config | {"n_embd": 128}))
        case "no JSON":
            (folder / "config.json").write_text("{")
        case "no weights":
            (folder / "model.safetensors").unlink()
        case "no tokenizer":
            (folder / "tokenizer.json").unlink()
            (folder / "tokenizer_config.json").unlink()
        case "no scale":
            (folder / "scalar.json").write_text("{}")


@pytest.mark.parametrize(
    "name, how, sentence",
    [
        *(
            ("tiny-reviews-sft", how, sentence)
            for how, sentence in (
                ("truncated", "holds no policy that can be read: its model.safetensors is cut off"),
                ("foreign", "is a masked language model (type 'bert')"),
                ("another shape", "missing or of another shape"),
                ("no JSON", "not a valid JSON"),
                ("no weights", "no file named model.safetensors"),
                ("no tokenizer", "has no vocabulary"),
            )
        ),
        *(
            ("tiny-reviews-reward", how, sentence)
            for how, sentence in (
                (
                    "truncated",
                    "holds no reward model that can be read: its model.safetensors is cut off",
                ),
                ("foreign", "its config.json describes a model of type"),
                ("another shape", "missing or of another shape"),
                ("no JSON", "not a valid JSON"),
                ("no scale", "lacks bias, scale, shift"),
            )
        ),
    ],
)
def test_a_damaged_or_foreign_model_is_refused(name, how, sentence, tmp_path):
    shutil.copytree(CHECKPOINTS / name, tmp_path / "model")
    damage(tmp_path / "model", how)
    command = ["score", "x", "--scorer"] if name.endswith("reward") else ["sample", "x", "--model"]
    assert sentence in said([*command, str(tmp_path / "model")], tmp_path)


def test_without_a_network_an_unknown_dataset_is_refused(tmp_path, monkeypatch):
    def unreachable(*args, **kwargs):
        raise ConnectionError("no route")

    monkeypatch.setattr(
        load_by_name, "__kwdefaults__", {**load_by_name.__kwdefaults__, "load": unreachable}
    )
    assert "No dataset 'no/such-set'" in said(["dpo", "--dataset", "no/such-set"], tmp_path)


@pytest.mark.parametrize(
    "make, sentence",
    [
        (lambda: PPOConfig(lam=2), "lam is 2; it must be between 0 and 1"),
        (lambda: PPOConfig(gamma=-0.1), "gamma is -0.1"),
        (
            lambda: PPOConfig(batch_size=8, minibatch_size=3),
            "minibatch_size is 3; it must be a divisor",
        ),
        (
            lambda: GroupConfig(prompts_per_step=3, minibatch_size=5),
            "minibatch_size is 5; it must be a divisor",
        ),
        (lambda: GroupConfig(group_size=1), "group_size is 1"),
        (
            lambda: GroupConfig(prompts_per_step=10**9),
            "group_size is 4000000000; it must be at least 1 and at most 100,000 in a step",
        ),
        (lambda: PPOConfig(batch_size=100_001), "at most 100,000 in a step"),
        (lambda: OnlineConfig(samples=10**6), "batch_size * samples is"),
        (lambda: StepDPOConfig(tries=10**6), "batch_size * tries is"),
        (lambda: SFTConfig(batch_size=10**6), "at most 100,000 in a step"),
        (lambda: DPOConfig(batch_size=10**6), "at most 100,000 in a step"),
        (lambda: RewardConfig(batch_size=1), "at least 2 and at most 100,000 in a step"),
        (lambda: SamplingConfig(temperature=0), "temperature is 0"),
        (lambda: SamplingConfig(top_p=0), "top_p is 0"),
        (lambda: DPOConfig(beta=-1), "beta is -1"),
    ],
)
def test_a_wrong_setting_is_refused(make, sentence):
    with pytest.raises(ValueError) as error:
        make()
    assert sentence in str(error.value)


def constant(rollout):
    return torch.ones(len(rollout.response_ids))


def always_eos():
    """A policy whose every response is EOS and nothing else."""
    model = tiny_policy()
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
        model.transformer.ln_f.bias.fill_(1.0)
        model.transformer.wte.weight[0].fill_(10.0)
    return model


@pytest.mark.parametrize("top", [{"top_p": 0.9}, {"top_k": 5}, {"greedy": True}])
def test_a_loop_refuses_top_k_top_p_and_greedy_sampling(top):
    config = GroupConfig(
        steps=1,
        prompts_per_step=2,
        minibatch_size=8,
        sampling=SamplingConfig(max_new_tokens=3, **top),
    )
    with pytest.raises(ValueError, match="without top_k, top_p and greedy"):
        train_group(tiny_policy(), tiny_tokenizer(), ["a", "b"], constant, config)


def test_responses_of_only_eos_can_be_trained_on():
    model, tokenizer = always_eos(), tiny_tokenizer()
    (rollout,) = sample_text(model, tokenizer, ["a", "b"], config=SamplingConfig(max_new_tokens=4))
    assert rollout.response_mask.shape == (2, 1) and rollout.finished(0).all()
    short = SamplingConfig(max_new_tokens=4)
    config = GroupConfig(steps=1, prompts_per_step=2, minibatch_size=8, sampling=short)
    _, history = train_group(model, tokenizer, ["a", "b"], constant, config)
    assert history[0]["length"] == 1 and history[0]["reward_std"] == 0
    _, _, history = train_ppo(
        always_eos(),
        ScalarModel(tiny_policy(1).base_model),
        tokenizer,
        ["a", "b"],
        constant,
        PPOConfig(steps=1, batch_size=4, minibatch_size=4, sampling=short),
    )
    nan = {name for name, value in history[0].items() if value != value}
    assert nan <= {"explained_variance"}  # explained variance is undefined if all returns are equal


def test_nan_weights_and_a_nan_loss_stop_before_an_update():
    model = tiny_policy()
    with torch.no_grad():
        model.transformer.wte.weight[5].fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="NaN"):
        sample_text(model, tiny_tokenizer(), ["a"])
    pairs = standard(Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}]))
    before = model.transformer.h[0].mlp.c_fc.weight.clone()
    with pytest.raises(FloatingPointError, match="weights were left as they were"):
        train_dpo(model, tiny_tokenizer(), pairs, DPOConfig(steps=1, batch_size=1))
    assert torch.equal(before, model.transformer.h[0].mlp.c_fc.weight)


def test_eos_written_inside_a_response_is_text_and_at_its_end_it_is_the_end():
    tokenizer = load_policy("tiny-reviews-sft")[1]
    batch = encode(tokenizer, ["a"] * 3, ["good<|endoftext|>bad", "good", "good<|endoftext|>\n"])
    eos = batch.response_ids == tokenizer.eos_token_id
    assert (eos & batch.response_mask).sum(1).tolist() == [1, 1, 1]
    inside, plain, ended = batch.response_mask.sum(1).tolist()
    assert inside > plain == ended and batch.finished(tokenizer.eos_token_id).all()
    assert tokenizer.decode(batch.response_ids[0][: inside - 1]) == "good<|endoftext|>bad"
