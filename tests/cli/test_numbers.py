"""Every numeric option of every command with odd numbers, and options that a command would ignore.

Only the command line is read, so no model is loaded: `make_context` runs the checks of the options.
"""

import re

import pytest
from typer.testing import CliRunner

from minirlhf import cli
from minirlhf.cli.commands import COMMANDS, loaded
from minirlhf.loops.config import KLConfig, OptimiserConfig
from minirlhf.loops.family import FAMILY
from minirlhf.loops.online import ONLINE
from minirlhf.loops.pretrain import PretrainConfig
from minirlhf.models.sampling import SamplingConfig
from minirlhf.runtime import check_seed, seed_all

ODD = ("0", "-1", "nan", "inf", "1e400", "1e-320", str(2**63), str(2**64), "")
FINE = {  # what an option may be among these; all else is refused
    "0": {
        "lora",
        "micro_batch",
        "best_of",
        "sync_every",
        "kl_coef",
        "seed",
        "draw",
        "repeats",
        "missing_eos_penalty",
        "overlong_buffer",
        "error_rate",
    },
    "1e-320": {"kl_coef", "missing_eos_penalty"},
    str(2**63): {"kl_coef", "beta", "temperature", "missing_eos_penalty"},
    str(2**64): {"kl_coef", "beta", "temperature", "missing_eos_penalty"},
}
NEEDED = {"sample": ["x"], "score": ["x"], "grade": ["folder"], "label-agreement": ["a.jsonl"]}


def numeric(name: str) -> list:
    """The options of a command that take a number."""
    kinds = {p.name: p.type_descriptor.annotation for p in loaded(name).params}
    numbers = [int, float, int | None, float | None]
    return [p for p in loaded(name).params if kinds[p.name] in numbers and p.opts[0][:2] == "--"]


OPTIONS = [(name, p.name, p.opts[0]) for name in COMMANDS for p in numeric(name)]


def refusal(name: str, *given: str) -> str:
    """What the command line says about the options; "" if it takes them."""
    try:
        with loaded(name).make_context(name, [*NEEDED.get(name, []), *given]):
            return ""
    except ValueError as error:
        return str(error)
    except Exception as error:  # typer's own: not a number at all
        assert error.exit_code == 2
        return error.format_message()


def test_the_table_has_every_numeric_option():
    found = {option for _, option, _ in OPTIONS}
    assert {"seed", "steps", "lr", "n", "rows", "temperature", "seconds", "draw"} <= found
    assert len(OPTIONS) > 100


def test_the_commands_of_a_family_take_the_same_numbers():
    flags = {name: [p.opts for p in numeric(name)] for name in (*FAMILY, *ONLINE)}
    assert all(flags[name] == flags["grpo"] for name in FAMILY)
    assert all(flags[name] == flags["rso"] for name in ONLINE)


# of each family one command, because they are made by one function
@pytest.mark.parametrize("name", sorted({*COMMANDS} - {*FAMILY, *ONLINE, "grid"} | {"grpo", "rso"}))
def test_an_odd_number_is_refused_before_anything_is_loaded(name):
    for command, option, flag in OPTIONS:
        if command != name:
            continue
        for number in ODD:
            said = refusal(name, flag, number)
            if option in FINE.get(number, ()):
                assert not said, (flag, number, said)
            else:
                assert "\n" not in said, (flag, number)
                assert re.search(rf"\b{option}\b|{flag}\b", said), (flag, number, said)


@pytest.mark.parametrize(
    "given, sentence",
    [
        (["pretrain", "--task", "arithmetic", "--layers", "2"], "--layers is 2, but it works only"),
        (["pretrain", "--task", "arithmetic", "--width", "64"], "--width is 64, but it works only"),
        (["pretrain", "--task", "arithmetic", "--bf16"], "--bf16 is True, but it works only with"),
        (["grpo", "--task", "arithmetic", "--scorer", "x"], "only with the task reviews"),
        (["sft", "--scorer", "x"], "--scorer is 'x', but it works only with --best-of"),
        (["sft", "--steps", "5", "--epochs", "1"], "--epochs is 1.0; it must be left out with"),
        (["ppo", "--batch-size", "10", "--group-size", "4"], "batch_size is 10; it must be a mul"),
        (
            ["grpo", "--group-size", "3"],
            "batch_size is 64; it must be a multiple of group_size = 3",
        ),
        (["ppo", "--minibatch-size", "5"], "minibatch_size is 5; it must be a divisor of batch_s"),
        (["reinforce", "--epochs", "2"], "without an importance ratio, samples are good for one"),
        (["dapo", "--max-new-tokens", "4"], "overlong_buffer is 6; it must be at most max_new_tok"),
        (["sft", "--rows", "5"], "--rows is 5, but it works only with --dataset"),
        (["sft", "--best-of", "2", "--rows", "5"], "--rows is 5, but it works only with --dataset"),
        (["sft", "--best-of", "2", "--dataset", "x.jsonl"], "best_of is 2; it must be 0, or 2 and"),
        *[
            ([name, "--bf16"], "--bf16 is True, but it works only with --lora, such as --lora 16:")
            for name in ("sft", "reward", "ppo", "dpo", "grpo", "rso")
        ],
        (["sft", "--bf16", "--lora", "0"], "--bf16 is True, but it works only with --lora"),
        (["dpo", "--bf16", "--lora", "4", "--dataset", "no.jsonl"], "no.jsonl"),
        *[
            ([name, "--reward", "x.py", "--scorer", "x"], "and --reward is a function: leave it")
            for name in ("grpo", "online-dpo")
        ],
        (["dpo", "--mixup", "0.5"], "mixup is 0.5; it must be"),
        (["dpo", "--loss", "simpo", "--sync-every", "5"], "sync_every is 5; it must be 0 without"),
        (["dpo", "--loss", "simpo", "--reference-free"], "off with simpo: it has no reference"),
        (["dpo", "--setting", "penalty=5"], "settings is ['penalty']"),
        (["dpo", "--beta", "1", "--setting", "beta=2"], "given once"),
        (["dpo", "--setting", "beta=1e400"], "setting is 'beta=1e400'; it must be"),
        (["experiment", "--tables", "--seeds", "2"], "--seeds is 2, but it works only with runs"),
        (["label", "--pairs", "x.csv", "--count", "3"], "left out with --pairs"),
        (["score", "x", "--model", "tiny-reviews"], "given together with --html"),
        (["data", "--model", "gpt2"], "model is 'gpt2'"),
    ],
)
def test_an_option_that_a_command_would_ignore_is_refused(given, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    error = CliRunner().invoke(cli.app, given).exception
    assert isinstance(error, ValueError) and sentence in str(error), error
    assert not [*tmp_path.iterdir()]  # no folder was made before it was said


@pytest.mark.parametrize("seed", [-1, 2**32, 2**63, 2**64, 1.5, True, None, "1"])
def test_a_seed_outside_its_limits_is_refused_in_python_too(seed):
    for made in (check_seed, seed_all, lambda seed: PretrainConfig(seed=seed)):
        with pytest.raises(ValueError, match="seed is .*; it must be a whole number from 0 to"):
            made(seed)


@pytest.mark.parametrize(
    "made, sentence",
    [
        (lambda x: SamplingConfig(temperature=x), "temperature is .* logits divided by it"),
        (lambda x: OptimiserConfig(lr=x), "lr is .* from 1e-30 to 1e30"),
        (lambda x: KLConfig(target=x), "target is .* from 1e-30 to 1e30"),
        (lambda x: KLConfig(horizon=x), "horizon is .* from 1e-30 to 1e30"),
        (lambda x: PretrainConfig(lr=x), "lr, matrix_lr is .* from 1e-30 to 1e30"),
    ],
)
@pytest.mark.parametrize("number", [1e-320, 1e300, float("inf"), float("nan"), 0.0])
def test_a_setting_that_would_under_or_overflow_is_refused(made, sentence, number):
    with pytest.raises(ValueError, match=sentence):
        made(number)


def test_numbers_at_the_limits_are_taken():
    assert refusal("sample", "--temperature", "1e-30", "--n", "1000000") == ""
    assert refusal("pretrain", "--seed", str(2**32 - 1), "--steps", str(10**9)) == ""
