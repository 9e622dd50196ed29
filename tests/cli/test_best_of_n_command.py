"""minirlhf best-of-n: the table, the verdict, the files, and what is refused before sampling."""

import json
import shutil

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from minirlhf import cli, evaluate
from minirlhf.cli import best_of_n
from minirlhf.models.heads import ScalarModel
from minirlhf.models.load import load_scalar, save_policy
from minirlhf.tasks import reviews
from minirlhf.tasks.hub import named_demonstrations
from tests.tasks.test_formats import chat_tokenizer
from tests.tiny import ending_policy, tiny_policy, tiny_tokenizer

PROMPTS = [{"question": f"q{i} ", "letter": "ab"[i % 2]} for i in range(4)]
SIZES = """
def reward(completions, letter, **columns):
    return [len(text) * (1.0 if each == "a" else -0.5) for text, each in zip(completions, letter)]
"""
SHORT = """
def reward(completions, **columns):
    return [-float(len(text)) for text in completions]
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder with two policies and two reward models."""
    folder = tmp_path_factory.mktemp("models")
    save_policy(ending_policy(), tiny_tokenizer(), folder / "own")
    save_policy(tiny_policy(vocab_size=300, positions=128), chat_tokenizer(), folder / "chat")
    for seed in (0, 1):
        torch.manual_seed(seed)
        ScalarModel(tiny_policy(seed).base_model).save(folder / f"rm{seed}", tiny_tokenizer())
    return folder


@pytest.fixture
def tiny(models, tmp_path, monkeypatch):
    """The models, prompts, a reward and a judge, in the current folder."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(models, tmp_path, dirs_exist_ok=True)
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, PROMPTS)))
    (tmp_path / "sizes.py").write_text(SIZES)
    (tmp_path / "short.py").write_text(SHORT)
    return tmp_path


def run(*given):
    return CliRunner().invoke(cli.app, list(map(str, given)))


def said(*given):
    result = run("best-of-n", *given)
    assert result.exit_code == 0, (result.output, repr(result.exception))
    return " ".join(result.output.split())


def refused(*given):
    error = run("best-of-n", *given).exception
    assert isinstance(error, ValueError), error
    return " ".join([str(error), *getattr(error, "__notes__", [])])


OWN = ["--model", "own", "--dataset", "mine.jsonl", "--max-response", 9, "--n", 4]


def test_the_command_prints_the_table_a_verdict_and_what_is_kept_and_writes_both_files(tiny):
    files = ["--out", "best.jsonl", "--table", "t.csv"]
    given = [*OWN, "--reward", "sizes.py", "--judge", "short.py", "--temperature", 1]
    text = said(*given, "--samples", 6, *files)
    assert "4 prompts, 6 responses to each. Of n responses the one with the highest" in text
    assert "the model as it sampled: at --temperature, and cut at --max-response." in text
    assert "Verdict: the mean of short.py" in text and "With fewer than 20 prompts" in text
    table, best = pd.read_csv("t.csv"), pd.read_json("best.jsonl", lines=True)
    assert table.n.tolist() == [1, 2, 4] and (table.score.diff()[1:] > 0).all()
    assert f"{table.kl_bound[2]:.2f}" in text
    assert list(best) == ["prompt", "completion", "score"]
    assert best.prompt.tolist() == [row["question"] for row in PROMPTS]
    wanted = [len(t) * [1, -0.5][i % 2] for i, t in enumerate(best.completion)]
    assert best.score.tolist() == wanted
    assert not [p for p in tiny.iterdir() if p.name.startswith(".")]  # no temporary files
    # a micro-batch bounds the memory; what it holds at once sets which samples are drawn
    said(*given, "--samples", 6, "--micro-batch", 5, "--table", "u.csv")
    assert pd.read_csv("u.csv").score.tolist() != table.score.tolist()


@pytest.mark.parametrize("name", ["best.jsonl", "best.csv"])
def test_what_is_kept_is_read_by_sft_as_it_was_sampled(name, tiny):
    (tiny / "mine.jsonl").write_text("\n".join(map(json.dumps, [*PROMPTS, {"question": "é\n"}])))
    said(*OWN, "--scorer", "rm0", "--out", name)
    rows = named_demonstrations(name, tiny_tokenizer(), rows=9, say=lambda text: None)
    assert rows["prompt"][:] == [*(row["question"] for row in PROMPTS), "é\n"]
    result = run("sft", "--model", "own", "--dataset", name, "--check-only")
    assert result.exit_code == 0 and "5 of 5 rows are kept" in result.output, result.exception


def test_prompts_of_the_chat_template_are_read_by_sft_as_the_same_tokens(tiny):
    given = ["--model", "chat", "--dataset", "mine.jsonl", "--chat", "--n", 2, "--out", "b.jsonl"]
    text = said(*given, "--reward", "short.py")
    shown = "prompt '<user>q0 <assistant>'"
    whole = ["--max-response", 99, "--check-only"]
    result = run("sft", "--model", "chat", "--dataset", "b.jsonl", *whole)
    assert result.exit_code == 0, result.exception
    assert shown in text and shown in " ".join(result.output.split())


def test_a_reward_model_chooses_and_another_one_judges(tiny):
    text = said(*OWN, "--scorer", "rm0", "--judge", "rm1", "--prompts", 3, "--seed", 2)
    assert "3 prompts, 8 responses to each." in text and "The second judge, rm1," in text
    assert "second judge" in text.partition("What is kept")[2]


def test_without_a_judge_there_is_no_verdict_on_own_data(tiny):
    text = said(*OWN, "--scorer", "rm0")
    assert "No verdict: there is no second judge (--judge)." in text
    assert "second judge" not in text.partition("What is kept")[2]
    assert "have no EOS: they are cut at 9 tokens (--max-response)" in said(
        *OWN[:4], "--max-response", 9, "--n", 2, "--scorer", "rm1", "--temperature", 30
    )


def test_without_options_it_judges_film_reviews_by_gold(monkeypatch):
    monkeypatch.setattr(best_of_n, "FILMS", 2)
    text = said("--n", 2)
    assert "2 prompts, 4 responses to each." in text and "tiny-reviews-reward is kept" in text
    assert "The second judge, gold, does not choose." in text
    first = reviews.eval_prompts("test")[0].strip()
    assert first in text.partition("What is kept")[2]


D, M, S = ["--dataset", "mine.jsonl"], ["--model", "own"], ["--scorer", "rm0"]


@pytest.mark.parametrize(
    "given, sentence",
    [
        ([*M, *D], "Give --scorer or --reward: what scores the responses to the prompts of"),
        ([*M, *D, *S, "--reward", "short.py"], "and --reward is a function: leave it out."),
        ([*M, *D, *S, "--judge", "rm0"], "--judge is 'rm0'; it must be another than what chooses"),
        ([*M, *D, *S, "--judge", "copy"], "--judge is 'copy'; it must be another than what"),
        ([*M, *D, "--reward", "short.py", "--judge", "short.py"], "another than what chooses"),
        ([*M, *D, "--reward", "short.py", "--judge", "copy.py"], "another than what chooses"),
        ([*M, *D, *S, "--judge", "own"], "or a Python file whose name ends in .py."),
        ([*M, *D, *S, "--judge", "gone.py"], "--judge is 'gone.py'; it must be a Python file with"),
        ([*M, *D, *S, "--judge", "empty.py"], "empty.py has no function reward"),
        ([*M, *D, *S, "--n", "4", "--samples", "3"], "--samples is 3; it must be at least 4, as"),
        ([*M, *D, *S, "--n", "1"], "n is 1; it must be at least 2"),
        ([*M, *D, *S, "--rows", "1"], "The number of different prompts is 1; it must be at least"),
        ([*M, *D, *S, "--max-response", "90"], "tokens, EOS included, exceeds the 64 positions"),
        ([*M, *D, *S, "--out", "a.txt"], "--out is 'a.txt'; it must be a file that ends in .csv"),
        ([*M, *D, *S, "--out", "a.csv", "--table", "a.csv"], "must be another than --out"),
        ([*M, *S, "--chat"], "--chat is True, but it works only with --dataset"),
        ([*M, *S, "--columns", "prompt=a"], "but it works only with --dataset"),
        (["--dataset", "no.jsonl", *M, *S], "no.jsonl"),
        (["--model", "rm0", *D, *S], "is a reward model, which cannot write responses"),
        ([*M, "--dataset", "plain.jsonl", *S, "--judge", "sizes.py"], "needs the argument letter"),
    ],
)
def test_what_cannot_be_used_is_refused_before_sampling(given, sentence, tiny, monkeypatch):
    monkeypatch.setattr(evaluate.comparison, "sample", None)
    shutil.copytree(tiny / "rm0", tiny / "copy")
    shutil.copy(tiny / "short.py", tiny / "copy.py")
    (tiny / "empty.py").write_text("")
    (tiny / "plain.jsonl").write_text('{"prompt": "p"}\n{"prompt": "q"}')
    before = sorted(tiny.iterdir())
    assert sentence in refused(*given)
    assert sorted(tiny.iterdir()) == before


def test_another_scale_makes_no_second_judge_of_a_reward_model(tiny):
    model, tokenizer = load_scalar("rm0")
    model.shift, model.scale = 3.0, 2.0
    model.save("scaled", tokenizer)
    assert "it must be another than what chooses" in refused(*OWN, *S, "--judge", "scaled")


def test_an_error_of_the_judge_names_the_row_and_a_full_disk_hides_no_table(tiny, monkeypatch):
    (tiny / "nan.py").write_text(
        "def reward(completions, letter, **c):\n"
        "    return [None if each == 'b' else 1.0 for each in letter]\n"
    )
    told = refused(*OWN, *S, "--judge", "nan.py")
    assert "The judge's score of a response to the prompt 'q1 ' is nan" in told
    assert told.endswith("Prompt 2 is mine.jsonl, row 2.")

    def full(*_, **__):
        raise OSError("the disk is full")

    monkeypatch.setattr(pd.DataFrame, "to_json", full)
    result = run("best-of-n", *OWN, *S, "--out", "best.jsonl", "--table", "t.csv")
    assert isinstance(result.exception, OSError) and "No verdict" in result.output
    assert (tiny / "t.csv").exists() and not (tiny / "best.jsonl").exists()
