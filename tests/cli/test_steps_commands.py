"""step-dpo and prm: on their own task, on files of the reader's own, and what they refuse."""

import json

import pytest
from typer.testing import CliRunner

from minirlhf import cli
from minirlhf.cli import step_dpo, step_labels
from minirlhf.cli.step_options import step_end_of
from minirlhf.loops.checkpoint import Stopped
from minirlhf.loops.pretrain import new_gpt2
from minirlhf.models.load import load_policy, load_scalar, same_weights, save_policy
from minirlhf.runtime import LABELS, History, seed_all
from minirlhf.show.progress import Progresses
from minirlhf.tasks.arithmetic import character_tokenizer, step_tokenizer

PROMPTS = ["0", "1", "00", "01", "10", "11"]
JUDGE = """
calls = [0]

def right_step(prompt, before, step):
    calls[0] += 1
    {}
    return len(step) % 2 == 0
"""
REWARD = "def reward(prompts, completions, **columns):\n    return [{} for t in completions]\n"
LABELLED = [
    {"prompt": p, "completions": ["1", "0"], "labels": [True, i % 3 / 2]}
    for i, p in enumerate(PROMPTS * 2)
]


def tiny(tokenizer):
    seed_all(0)
    return new_gpt2(tokenizer, layers=1, width=16, heads=2, positions=128)


def lines(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)))


@pytest.fixture
def own(tmp_path):
    """A policy of the symbols 0, 1 and =, prompts, labelled steps, a judge and a reward."""
    tokenizer = character_tokenizer("01=")
    save_policy(tiny(tokenizer), tokenizer, tmp_path / "policy")
    lines(tmp_path / "rows.jsonl", [{"prompt": p} for p in PROMPTS])
    lines(tmp_path / "labelled.jsonl", LABELLED)
    (tmp_path / "judge.py").write_text(JUDGE.format(""))
    (tmp_path / "reward.py").write_text(REWARD.format("len(t) % 2"))
    return tmp_path


@pytest.fixture
def arithmetic(tmp_path, monkeypatch):
    """A policy with the symbols of the arithmetic problems, of which there are few."""
    save_policy(tiny(step_tokenizer()), step_tokenizer(), tmp_path / "policy")
    monkeypatch.setattr(step_dpo, "long_problems", lambda: ["1+2+3=", "9-4=", "2*3+1="])
    monkeypatch.setattr(step_dpo, "ASKED", 3)
    monkeypatch.setattr(step_labels, "PROBLEMS", 6)
    return tmp_path


def run(own, command, *more, data="rows.jsonl", steps=2):
    given = ["--model", own / "policy", "--steps", steps, "--batch-size", 4, "--out", own / "out"]
    given += ["--dataset", own / data, "--step-end", "="] * bool(data)
    if command == "step-dpo":
        given += ["--tries", 2, "--lr", 0.01] + ["--judge", own / "judge.py"] * bool(data)
    if command == "step-dpo" or data == "rows.jsonl" or not data:
        given += ["--max-new-tokens", 30]
    return CliRunner().invoke(cli.app, [command, *map(str, [*given, *more])])


def said(result):
    assert result.exception is None, repr(result.exception)
    return " ".join(result.output.split())


def test_step_dpo_says_right_answers_and_right_steps_before_and_after(arithmetic):
    told = said(run(arithmetic, "step-dpo", data="", steps=1))
    assert "3 held-out problems, 4 samples of each" in told and "right steps" in told
    assert "before" in told and "after" in told and "Change of right answers:" in told
    assert "labels" in History.load(arithmetic / "out" / "metrics.jsonl")[0]


def test_step_dpo_trains_on_own_prompts_with_an_own_judge(own):
    told = said(run(own, "step-dpo"))
    assert "rows.jsonl: 6 rows; prompt." in told and "held-out problems" not in told
    history = History.load(own / "out" / "metrics.jsonl")
    assert len(history) == 2 and {"right", "labels", "mended"} <= history[0].keys()
    assert not same_weights(load_policy(own / "out")[0], load_policy(own / "policy")[0])


@pytest.mark.parametrize(
    "line, sentence",
    [
        (
            "1 / 0",
            "The judge right_step raised ZeroDivisionError: division by zero (judge.py, line",
        ),
        ("exit()", "The judge right_step raised SystemExit"),
        ("return 'yes'", "right_step returned 'yes', of type str, for the step '"),
        ("return None", "returned None, of type NoneType"),
        ("return 2", "returned 2, of type int"),
    ],
)
def test_a_judge_that_fails_is_one_sentence_that_names_the_row(line, sentence, own):
    (own / "judge.py").write_text(JUDGE.format(f"if prompt == '01': {line}"))
    error = run(own, "step-dpo", "--batch-size", 6).exception
    assert isinstance(error, ValueError) and sentence in str(error)
    assert "of prompt '01'" in str(error)
    assert error.__notes__[0] == "Prompt 4 is rows.jsonl, row 4."


def test_numbers_and_numpy_are_answers_of_a_judge(own):
    for line in ("return len(step) % 2", "import numpy; return numpy.equal(len(step) % 2, 1)"):
        (own / "judge.py").write_text(JUDGE.format(line))
        assert "Wrote" in said(run(own, "step-dpo"))


def test_a_mended_judge_goes_on_as_if_it_had_never_failed(own):
    said(run(own, "step-dpo", steps=4))
    labels = [row["labels"] for row in History.load(own / "out" / "metrics.jsonl")]
    (own / "out").rename(own / "whole")
    (own / "judge.py").write_text(JUDGE.format(f"assert calls[0] <= {sum(labels[:2]) + 1}"))
    assert "raised AssertionError" in str(run(own, "step-dpo", steps=4).exception)
    (own / "judge.py").write_text(JUDGE.format(""))
    told = said(run(own, "step-dpo", "--resume", steps=4))
    assert "Changed since step 2: the score (the reward function or the judge" in told
    assert same_weights(load_policy(own / "out")[0], load_policy(own / "whole")[0])


@pytest.mark.parametrize(
    "code, sentence",
    [
        ("x = 1", "judge.py has no function right_step; define right_step(prompt, before, step)"),
        (
            "def right_step(question, answer):\n    return True",
            "judge.py: right_step takes (question, answer); define right_step(prompt, before, step)",
        ),
        (
            "def right_step(before, prompt, step):\n    return True",
            "takes (before, prompt, step); define",
        ),
        ("def right_step(prompt, before, step, more): return True", "further ones need a default"),
        ("raise KeyError('no')", "judge.py cannot be run: KeyError: 'no' (line 1)"),
    ],
)
def test_a_judge_that_cannot_be_called_is_refused_before_the_first_step(code, sentence, own):
    (own / "judge.py").write_text(code)
    assert sentence.lower() in str(run(own, "step-dpo").exception).lower()
    assert not (own / "out").exists()


@pytest.mark.parametrize(
    "more, sentence",
    [
        (["--step-end", "x"], "step_end is 'x'; it must be a text that a token"),
        (["--judge", "none.py"], "--judge is 'none.py'; it must be a Python file with a function"),
        (["--loss", "kto"], "loss is 'kto'; it must be a loss of pairs"),
        (["--tries", 0], "tries is 0; it must be at least 1"),
        (["--max-new-tokens", 110], "exceeds the 128 positions"),
    ],
)
def test_step_dpo_refuses(more, sentence, own):
    assert sentence in str(run(own, "step-dpo", *more).exception)
    assert not (own / "out" / "model.safetensors").exists()


def test_step_dpo_needs_a_judge_for_own_prompts(own):
    given = ["step-dpo", "--dataset", str(own / "rows.jsonl")]
    error = CliRunner().invoke(cli.app, given).exception
    assert str(error) == "--judge is None; it must be a file of yours with --dataset."


def test_two_characters_stand_for_a_line_break():
    assert step_end_of("\\n\\n", "rows") == "\n\n"
    assert (step_end_of(None, "rows"), step_end_of(None, "")) == ("\n", "=")


def test_prm_labels_the_steps_of_the_arithmetic_problems(arithmetic):
    told = said(run(arithmetic, "prm", "--continuations", 2, data="", steps=1))
    assert "of 6 responses ended and are labelled" in told
    assert "held-out rows" in told and "on the right side of 1/2" in told
    assert load_scalar(str(arithmetic / "out"))[0].scale == 1.0


def test_prm_trains_on_labelled_steps(own):
    told = said(run(own, "prm", data="labelled.jsonl"))
    assert "labelled.jsonl: 12 of 12 rows; prompt; completions; labels." in told
    assert "On 2 held-out rows (4 labelled steps; a tenth of the prompts, not learned)" in told
    assert "loss" in History.load(own / "out" / "metrics.jsonl")[0]


@pytest.mark.parametrize("hard", [False, True])
def test_prm_labels_responses_by_an_own_reward_and_writes_the_rows(hard, own):
    given = ["--reward", own / "reward.py", "--continuations", 2, "--labels", own / "l.jsonl"]
    told = said(run(own, "prm", *given, *["--hard"] * hard))
    assert "A response counts as right where the reward is above 0." in told
    rows = [json.loads(line) for line in (own / "l.jsonl").read_text().splitlines()]
    assert {label for row in rows for label in row["labels"]} <= {0.0, 1.0, *[0.5] * (not hard)}
    assert "Wrote" in said(run(own, "prm", "--skip-invalid", data="l.jsonl"))


def test_micro_batches_of_a_prm_give_the_same_losses(own):
    histories = []
    for size in (0, 3):
        said(run(own, "prm", "--micro-batch", size, "--batch-size", 8, data="labelled.jsonl"))
        histories.append(History.load(own / "out" / "metrics.jsonl"))
    for one, other in zip(*histories, strict=True):
        for name in ("loss", "right", "grad_norm"):
            assert one[name] == pytest.approx(other[name], rel=1e-4)


@pytest.mark.parametrize(
    "row, sentence",
    [
        ({"labels": [True]}, "labelled.jsonl, row 3 has 2 steps in completions and 1 labels"),
        ({"labels": [1, 2]}, "labelled.jsonl, row 3, step 2: the label is 2; it must be from 0"),
        ({"labels": ["+", "-"]}, "row 3, step 1: the label is '+'; it must be"),
        ({"labels": [None, None]}, "row 3: no step has a label; leave the row out"),
        ({"completions": "1=0"}, "row 3: completions is '1=0'; it must be a list"),
        ({"completions": ["1=", "0"]}, "row 3, step 1 is '1='; a step must have text, without '='"),
        ({"prompt": " "}, "labelled.jsonl, row 3: the prompt is empty"),
        ({"prompt": 5}, "labelled.jsonl, row 3: the prompt is '5', of type int; it must be text"),
    ],
)
def test_labelled_rows_that_cannot_be_used_are_refused(row, sentence, own):
    lines(own / "labelled.jsonl", [*LABELLED[:2], LABELLED[2] | row, *LABELLED[3:]])
    assert sentence in str(run(own, "prm", data="labelled.jsonl").exception)
    assert not (own / "out").exists()


def test_prm_leaves_out_labelled_rows_that_cannot_be_used(own):
    lines(own / "labelled.jsonl", [*LABELLED[:2], {"prompt": "p"}, *LABELLED[3:]])
    told = said(run(own, "prm", "--skip-invalid", data="labelled.jsonl"))
    assert "labelled.jsonl: 11 of 12 rows" in told and "Left out: 1 row (3). The first:" in told


@pytest.mark.parametrize(
    "data, more, sentence",
    [
        ("rows.jsonl", [], "rows.jsonl has the columns prompt, which hold no labelled steps; give"),
        ("labelled.jsonl", ["--hard"], "--hard is True, but it works only with prompts"),
        ("labelled.jsonl", ["--columns", "prompt=p"], "--columns is 'prompt=p', but it works only"),
        (
            "labelled.jsonl",
            ["--max-response", 3],
            "labelled.jsonl, row 1: the response has 4 tokens",
        ),
        ("rows.jsonl", ["--reward", "none.py"], "--reward is 'none.py'; it must be a Python file"),
    ],
)
def test_prm_refuses(data, more, sentence, own):
    result = CliRunner().invoke(
        cli.app,
        [
            "prm",
            *map(
                str,
                [
                    "--model",
                    own / "policy",
                    "--dataset",
                    own / data,
                    "--step-end",
                    "=",
                    "--out",
                    own / "out",
                    *more,
                ],
            ),
        ],
    )
    assert sentence in str(result.exception) and not (own / "out").exists()


@pytest.mark.parametrize(
    "rows, value, sentence",
    [
        ([{"prompt": "0"}, {"prompt": "0"}], "1", "rows.jsonl, row 1 and rows.jsonl, row 2 have"),
        ([{"prompt": "0"}, {"prompt": "1"}], "None", "The reward of a response to"),
    ],
)
def test_prm_refuses_prompts_and_rewards(rows, value, sentence, own):
    lines(own / "rows.jsonl", rows)
    (own / "reward.py").write_text(REWARD.format(value))
    assert sentence in str(run(own, "prm", "--reward", own / "reward.py").exception)


def reward_that(own, does):
    """The file of a reward function that does this when it is asked about the prompt 11."""
    (own / "reward.py").write_text(
        "def reward(prompts, completions, **columns):\n"
        f"    if '11' in prompts:\n        {does}\n"
        "    return [len(t) % 2 for t in completions]\n"
    )
    return ["--reward", own / "reward.py", "--continuations", 2, "--labels", own / "l.jsonl"]


@pytest.mark.parametrize(
    "fault, sentence",
    [
        ("1 / 0", "raised ZeroDivisionError"),
        ("return [None for t in completions]", "The reward of a response to '1"),
        ("raise KeyboardInterrupt", "Stopped. The labels of 2 of 3 groups of prompts are in"),
    ],
)
def test_labels_are_kept_where_the_labelling_stops(fault, sentence, own, monkeypatch):
    monkeypatch.setattr(step_labels, "AT_ONCE", 2)
    said(run(own, "prm", *reward_that(own, "pass")))
    whole = (own / "l.jsonl").read_text()
    assert not (own / "out" / LABELS).exists()
    (own / "out").rename(own / "whole")
    error = run(own, "prm", *reward_that(own, fault)).exception
    assert sentence in str(error)
    if not isinstance(error, Stopped):
        assert error.__notes__[0] in [f"Prompt {i} is rows.jsonl, row {i}." for i in (5, 6)]
        assert "The labels of 2 of 3 groups of prompts are in" in error.__notes__[1]
    given = reward_that(own, "pass")
    assert "of a run that was stopped" in str(run(own, "prm", *given).exception)
    other = run(own, "prm", *given, "--resume", "--seed", 1).exception
    assert "belongs to another run, which differs in: seed (0 in the file, 1 now)" in str(other)
    told = said(run(own, "prm", *given, "--resume"))
    assert "Continues: 2 of 3 groups of prompts are labelled." in told
    assert (own / "l.jsonl").read_text() == whole
    assert same_weights(*(load_scalar(str(own / name))[0] for name in ("whole", "out")))
    assert not (own / "out" / LABELS).exists()


@pytest.mark.parametrize("text", ["{", "[]", '{"rows": 1}', '{"generator": "00"}'])
def test_a_damaged_file_of_labels_is_refused(text, own):
    (own / "out").mkdir()
    (own / "out" / LABELS).write_text(text)
    error = run(own, "prm", "--reward", own / "reward.py", "--resume").exception
    assert "does not hold labels that can be read" in str(error)


def test_a_prm_that_stops_in_training_keeps_its_labels(own, monkeypatch):
    given = reward_that(own, "pass")

    def stop(progress, row):
        if row["stage"] == "prm":
            raise ValueError("stop")

    with monkeypatch.context() as patch:
        patch.setattr(Progresses, "__call__", stop)
        assert run(own, "prm", "--save-every", 1e-9, *given).exception
    given = reward_that(own, "1 / 0")  # it is not asked again
    told = said(run(own, "prm", *given, "--resume"))
    assert "Continues: 1 of 1 groups of prompts" in told and "Changed since" not in told


def test_a_stopped_prm_resumes_to_the_same_weights(own, monkeypatch):
    given = {"data": "labelled.jsonl", "steps": 3}
    said(run(own, "prm", **given))
    (own / "out").rename(own / "whole")

    def stop(progress, row):
        if row["step"] == 1:
            raise ValueError("stop")

    with monkeypatch.context() as patch:
        patch.setattr(Progresses, "__call__", stop)
        assert run(own, "prm", "--save-every", 1e-9, **given).exception
    assert "Continues: 1 of 3 steps is done." in said(run(own, "prm", "--resume", **given))
    one, other = (load_scalar(str(own / name))[0] for name in ("whole", "out"))
    assert same_weights(one, other)


@pytest.mark.parametrize(
    "command, data, more",
    [
        ("step-dpo", "rows.jsonl", []),
        ("prm", "labelled.jsonl", []),
        ("prm", "rows.jsonl", ["--reward", "{}/reward.py", "--labels", "{}/l.jsonl"]),
    ],
)
def test_check_only_writes_nothing_and_asks_nobody(command, data, more, own):
    (own / "judge.py").write_text(JUDGE.format("1 / 0"))
    (own / "reward.py").write_text(REWARD.format("1 / 0"))
    before = sorted(own.iterdir())
    result = run(own, command, *[text.format(own) for text in more], "--check-only", data=data)
    assert "Nothing was trained or written" in said(result) and "Lengths of" in said(result)
    assert sorted(own.iterdir()) == before
