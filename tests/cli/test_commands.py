import json
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from minirlhf import cli
from minirlhf.cli import experiment, group, preference, pretrain, terminal
from minirlhf.cli import ppo as ppo_command
from minirlhf.cli import reward as reward_command
from minirlhf.cli import run as tour_command
from minirlhf.cli import sft as sft_command
from minirlhf.experiments import practice
from minirlhf.loops.checkpoint import Stopped
from minirlhf.loops.family import FAMILY
from minirlhf.loops.group import GroupConfig
from minirlhf.loops.ppo import PPOConfig
from minirlhf.loops.preference import DPOConfig
from minirlhf.loops.pretrain import PretrainConfig
from minirlhf.loops.reward import RewardConfig
from minirlhf.loops.sft import SFTConfig
from minirlhf.models.heads import ScalarModel
from minirlhf.models.load import committed, fingerprint, load_policy, load_scalar, save_policy
from minirlhf.rewards.gold import correlation, ensemble_judge, gold_judge
from minirlhf.runtime import History
from minirlhf.tour import Tour, TourConfig, write_tour_report
from tests.tiny import tiny_policy, tiny_tokenizer

run = CliRunner().invoke


def test_the_installed_command_is_cli_main():
    (command,) = (e for e in metadata.entry_points(group="console_scripts") if e.name == "minirlhf")
    assert command.load() is cli.main


@pytest.mark.parametrize(
    "name, module, train, default",
    [
        ("pretrain", pretrain, "train_base", PretrainConfig()),
        ("sft", sft_command, "train_sft", SFTConfig()),
        ("reward", reward_command, "train_reward_model", RewardConfig()),
        ("ppo", ppo_command, "train_ppo", PPOConfig()),
        ("grpo", group, "train_group", GroupConfig()),
        ("dpo", preference, "train_dpo", DPOConfig()),
    ],
)
def test_a_command_without_options_uses_the_defaults_of_its_loop(
    name, module, train, default, monkeypatch, tmp_path
):
    seen = []
    monkeypatch.setattr(
        module,
        train,
        lambda *a, **k: seen.extend(x for x in a if isinstance(x, type(default))) or 1 / 0,
    )
    assert isinstance(
        run(cli.app, [name, "--out", str(tmp_path / "out")]).exception, ZeroDivisionError
    )
    assert seen == [default]


@pytest.mark.parametrize("name", FAMILY)
def test_every_algorithm_is_a_command_on_both_tasks(name, monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(
        group,
        "train_group",
        lambda *a, **k: seen.extend(x for x in a if isinstance(x, GroupConfig)) or 1 / 0,
    )
    # the evaluation before training has a test of its own, below
    monkeypatch.setattr(group, "judged", lambda *a, **k: {})
    monkeypatch.setattr(group, "print_passes", lambda *a, **k: None)
    for task in practice.TASKS:
        given = [
            name,
            "--task",
            task,
            "--steps",
            "3",
            "--seed",
            "2",
            "--lr",
            "0.01",
            "--kl-coef",
            "0.25",
            "--out",
            str(tmp_path / "out"),
        ]
        assert isinstance(run(cli.app, given).exception, ZeroDivisionError)
        own = practice.group_config(task, name, steps=3, seed=2)
        assert seen[-1] == replace(
            own, kl=replace(own.kl, kl_coef=0.25), optimiser=replace(own.optimiser, lr=0.01)
        )


def test_training_on_arithmetic_evaluates_before_and_after(monkeypatch, tmp_path):
    monkeypatch.setattr(practice, "ASKED", 4)
    monkeypatch.setattr(practice, "practice_problems", lambda: ["3+4*2=", "(5-2)*6=", "1+1+1="])
    result = run(
        cli.app, ["grpo", "--task", "arithmetic", "--steps", "1", "--out", str(tmp_path / "out")]
    )
    assert result.exit_code == 0, result.output
    said = " ".join(result.output.split())
    assert (
        "pass@16" in said
        and "before" in said
        and "after" in said
        and "Judged by the 95 % intervals of the paired differences, this is" in said
    )
    _, tokenizer = load_policy(tmp_path / "out")
    assert tokenizer.decode(tokenizer("12*3=").input_ids) == "12*3="
    assert History.load(tmp_path / "out" / "metrics.jsonl")[0]["stage"] == "grpo"
    assert "task is 'chess'" in str(run(cli.app, ["grpo", "--task", "chess"]).exception)


def test_pretraining_on_arithmetic_is_reproducible(monkeypatch, tmp_path):
    monkeypatch.setattr(practice, "ASKED", 4)
    monkeypatch.setattr(practice, "DEMONSTRATIONS", 128)
    monkeypatch.setattr(practice, "MORE_STEPS", 1)
    for name in ("whole", "again"):
        result = run(
            cli.app,
            ["pretrain", "--task", "arithmetic", "--steps", "2", "--out", str(tmp_path / name)],
        )
        assert result.exit_code == 0 and "Held-out problems" in result.output, result.output
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "again"))
    assert one == two and len(History.load(tmp_path / "whole" / "metrics.jsonl")) == 3


def test_pages_without_table_marks_are_refused_before_an_experiment_runs(monkeypatch, tmp_path):
    (tmp_path / "README.md").write_text("no table here")
    monkeypatch.setattr(experiment.pages_to_fill, "__defaults__", (tmp_path,))
    monkeypatch.setattr(experiment, "run_experiment", lambda *a, **k: 1 / 0)
    assert "The table 'tour' stands on no page" in str(run(cli.app, ["grid"]).exception)


def test_tables_are_filled_without_training(monkeypatch):
    monkeypatch.setattr(experiment, "run_experiment", lambda *a, **k: 1 / 0)
    monkeypatch.setattr(experiment, "fill_pages", lambda: [experiment.ROOT / "docs" / "results.md"])
    assert (
        "Filled the tables in docs/results.md." in run(cli.app, ["experiment", "--tables"]).output
    )
    monkeypatch.setattr(experiment, "fill_pages", lambda: [])
    said = run(cli.app, ["experiment", "--tables"]).output
    assert "The tables agree with the records." in said


@pytest.mark.parametrize("error", [KeyboardInterrupt, Stopped("Stopped after step 3.")])
def test_a_stopped_experiment_says_that_the_same_command_goes_on(error, monkeypatch, tmp_path):
    def stopped(*args, **settings):
        raise error

    monkeypatch.setattr(experiment, "run_experiment", stopped)
    result = run(cli.app, ["experiment", "leash", "--out", str(tmp_path)])
    assert result.exit_code == 130
    said = "".join(result.output.split())
    assert f"Finishedrunsarekeptin{tmp_path};thesamecommandgoesonfromthere." in said


def test_the_former_folder_of_experiments_is_named_if_it_is_there(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(experiment, "run_experiment", lambda *a, **k: None)
    sentence = "out/grid, the former folder, is not used."
    assert sentence not in run(cli.app, ["experiment", "leash"]).output
    (tmp_path / "out" / "grid").mkdir(parents=True)
    assert sentence in run(cli.app, ["experiment", "leash"]).output
    assert sentence not in run(cli.app, ["experiment", "leash", "--out", "elsewhere"]).output


@pytest.mark.parametrize("given, said", [([], False), (["--reduced"], True)])
def test_a_reduced_tour_says_what_its_numbers_show(given, said, monkeypatch, tmp_path):
    class Finished:
        times = {}

        def __init__(self, *args, **settings):
            pass

        def run(self):
            return []

    monkeypatch.setattr(tour_command, "Tour", Finished)
    monkeypatch.setattr(tour_command, "print_methods", lambda rows: print("the table"))
    monkeypatch.setattr(tour_command, "write_tour_report", lambda run, path, recorded: path)
    result = run(cli.app, ["tour", "--out", str(tmp_path), *given])
    assert result.exit_code == 0, result.exception
    after = " ".join(result.output.split("the table")[1].split())
    assert ("these numbers show that all stages run" in after) == said


@pytest.fixture
def command_line(monkeypatch, capsys):
    """Runs a command as `cli.main` does, in this process: (exit code, standard output, errors)."""
    # the verbosity of other libraries and the number of threads stay as they are
    monkeypatch.setattr(cli, "prepare", lambda: None)

    def called(*arguments):
        monkeypatch.setattr(sys, "argv", ["minirlhf", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return ended.value.code, said.out, said.err

    return called


def test_course_without_the_development_packages_ends_in_one_sentence(command_line, monkeypatch):
    for name in ("jupytext", "nbclient"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "minirlhf.classroom.course", raising=False)
    for given, status, sentence in (
        ([], 1, "Error: `course` needs jupytext: run `python -m pip install -r requirements-dev"),
        (["--help"], 0, "Run the course's notebooks"),
    ):
        code, out, err = command_line("course", *given)
        assert code == status and "Traceback" not in err
        assert sentence in " ".join((out + err).split())


def test_score_prints_both_readings_and_writes_an_escaped_page(tmp_path):
    text = "I love to walk the dog, <script>what</script> do you like?"
    result = run(cli.app, ["score", text, "--html", str(tmp_path / "s.html")])
    assert result.exit_code == 0, result.output
    assert (
        "prefix + EOS" in result.output
        and "one pass" in result.output
        and "further" in result.output
    )
    page = (tmp_path / "s.html").read_text(encoding="utf-8")
    assert "<script>what" not in page
    named = lambda name: f'"name":"{name}"' in page
    assert named("prefix_reward") and named("one_pass_reward") and not named("logprob")
    assert "<p>Reward units: standard deviations of the SFT samples." in page


def test_score_with_a_model_shows_its_probabilities_too(tmp_path):
    page = tmp_path / "s.html"
    given = ["score", "A good film.", "--model", "tiny-reviews-sft", "--html", str(page)]
    assert run(cli.app, given).exit_code == 0
    text = page.read_text(encoding="utf-8")
    assert all(f'"name":"{name}"' in text for name in ("prefix_reward", "logprob"))
    assert '"alternatives":[' in text
    tiny_policy().save_pretrained(tmp_path / "other")
    tiny_tokenizer().save_pretrained(tmp_path / "other")
    given[3] = str(tmp_path / "other")
    result = run(cli.app, given)
    assert "it must be a model with the reward model's own tokenizer" in str(result.exception)


def test_the_reward_model_prefers_a_good_review():
    model, tokenizer = load_scalar("tiny-reviews-reward")
    from minirlhf.rewards.model import text_judge

    texts = ["A brilliant, moving and funny film.", "A boring, dull and pointless mess."]
    good, bad = text_judge([model], tokenizer)(["the film\n"] * 2, texts)
    assert good > bad + 1  # more than one standard deviation of SFT samples


def test_sample_prints_every_sample():
    result = run(cli.app, ["sample", "a film", "--n", "2", "--max-new-tokens", "5"])
    assert result.exit_code == 0 and result.output.count("a film") == 2


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["score", "x", "--scorer", "nobody"], "No reward model 'nobody'"),
        (["sample", "x", "--model", "no-such-model"], "No model 'no-such-model'"),
        (["sample", "x", "--temperature", "0"], "temperature is 0.0; it must be above 0"),
        (["score", ""], "empty"),
        (["score", "word " * 200], "exceeds the 128"),
        (["sample", "x", "--n", "0"], "n is 0; it must be at least 1"),
        (["sample", "x", "--model", "[/x]"], "No model '[/x]'"),
        (["reward", "--rows", "0"], "n is 0; it must be at least 1 pair"),
        (["pretrain", "--steps", "0"], "steps is 0"),
        (["course", "99"], "notebook is '99'"),
        (["score", "x", "--model", "tiny-reviews-sft"], "given together with --html"),
        (["score", "x", "--html", "/proc/no/such.html"], "/proc/no"),
    ],
)
def test_a_wrong_input_gives_one_sentence_and_no_traceback(arguments, sentence, command_line):
    code, _, err = command_line(*arguments)
    assert code == 1 and "Traceback" not in err
    assert sentence in " ".join(err.split()) and err.startswith("Error: ")


def test_a_wrong_input_to_a_new_process_gives_one_sentence_and_nothing_else():
    done = subprocess.run(
        [sys.executable, "-m", "minirlhf.cli", "sample", "x", "--model", "no-such-model"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("Error: No model 'no-such-model'")
    assert done.stderr.count(".\n") == 1 and "Traceback" not in done.stderr


def test_a_reward_model_with_another_tokenizer_is_refused(tmp_path):
    ScalarModel(tiny_policy().base_model).save(tmp_path / "other", tiny_tokenizer())
    for name in ("ppo", "grpo"):
        result = run(
            cli.app, [name, "--scorer", str(tmp_path / "other"), "--out", str(tmp_path / "out")]
        )
        assert isinstance(
            result.exception, ValueError
        ) and "it must be trained with the policy's own tokenizer" in str(result.exception)
    assert not (tmp_path / "out").exists()


def test_a_folder_with_other_files_is_not_replaced(tmp_path):
    (tmp_path / "thesis.txt").write_text("years")
    with pytest.raises(ValueError, match="thesis.txt"):
        save_policy(tiny_policy(), tiny_tokenizer(), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_pickled_weights_are_not_read(tmp_path):
    save_policy(tiny_policy(), tiny_tokenizer(), tmp_path / "model")
    torch.save(tiny_policy().state_dict(), tmp_path / "model" / "pytorch_model.bin")
    (tmp_path / "model" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="safetensors"):
        load_policy(tmp_path / "model")


def test_the_committed_models_load_and_are_small():
    assert {"tiny-reviews", "tiny-reviews-sft"} <= set(committed())
    assert {"tiny-reviews-reward", "gold-0", "gold-1", "gold-2"} <= set(committed(scores=True))
    for name in ("tiny-reviews", "tiny-reviews-sft"):
        model, tokenizer = load_policy(name)
        assert (
            model.dtype == torch.float32 and 2e6 < sum(p.numel() for p in model.parameters()) < 6e6
        )
        assert (
            tokenizer.decode(tokenizer("A caf\u00e9, \u2603!").input_ids) == "A caf\u00e9, \u2603!"
        )
    for path in Path(load_policy.__globals__["CHECKPOINTS"]).glob("*/*.safetensors"):
        assert path.stat().st_size < 12e6, path


def test_the_gold_judge_predicts_ratings_better_than_the_ensemble():
    ridge, ensemble = correlation(gold_judge()), correlation(ensemble_judge())
    assert ridge > ensemble > 0.4


def test_the_gold_judge_is_fitted_on_the_gold_split_only():
    seen = []
    judge = gold_judge.__globals__["ridge_judge"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(
            gold_judge.__globals__, "ridge_judge", lambda split: seen.append(split) or judge(split)
        )
        assert gold_judge() is judge("gold") and seen == ["gold"]


@pytest.fixture(scope="module")
def reduced(tmp_path_factory):
    """A reduced tour of the validation films, and what it asked for: (tour, asked)."""
    import minirlhf.tour as module

    asked = {"pairs": [], "ridge": [], "prompts": []}
    pairs, ridge, ppo = module.reviews.preference_pairs, module.ridge_judge, module.train_ppo
    titles = module.reviews.rl_prompts()[:64]  # fewer to sample from
    tour = Tour(tmp_path_factory.mktemp("tour"), replace(TourConfig.reduced(), split="val"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            module.reviews,
            "preference_pairs",
            lambda split, *a, **k: asked["pairs"].append(split) or pairs(split, *a, **k),
        )
        patch.setattr(
            module, "ridge_judge", lambda split: asked["ridge"].append(split) or ridge(split)
        )
        patch.setattr(
            module,
            "train_ppo",
            lambda *a, **k: asked["prompts"].append(a[3] is titles) or ppo(*a, **k),
        )
        patch.setattr(module.reviews, "rl_prompts", lambda: titles)
        tour.run()
    return tour, asked


def test_the_tour_trains_on_reward_films_and_evaluates_on_held_out_films(reduced):
    import minirlhf.tour as module

    tour, asked = reduced
    rows = {row["method"]: row for row in tour.rows}
    assert asked["pairs"] == ["reward", "val", "reward"] and asked["ridge"] == ["reward"]
    assert asked["prompts"] == [True]  # those of reviews.rl_prompts
    assert set(rows["SFT"]["prompts"]) == set(module.reviews.eval_prompts("val")[:4])
    for row in rows.values():
        assert (
            row["gold"]
            == pytest.approx(gold_judge()(row["prompts"], row["texts"]).mean().item(), abs=1e-5)
            != row["proxy"]
        )
    assert rows["best-of-16"]["proxy"] > rows["best-of-4"]["proxy"] > rows["SFT"]["proxy"]
    everything = tour.reward_accuracy[-1]
    drawn = module.reviews.preference_pairs("val", tour.config.accuracy_pairs, seed=17)[:]
    judge = module.text_judge([tour.reward_model], tour.tokenizer)
    margins = judge(drawn["prompt"], drawn["chosen"]) - judge(drawn["prompt"], drawn["rejected"])
    assert everything["reward model"] == (margins > 0).float().mean().item()
    believed = (
        torch.sigmoid(margins.abs() * tour.reward_model.scale).mean().item()
    )  # Bradley-Terry probabilities need scores before normalisation
    assert everything["mean probability"] == pytest.approx(believed, abs=1e-6)
    close = (gap := torch.tensor(drawn["gap"])) < 0.5
    assert tour.reward_accuracy[0]["reward model"] == (margins[close] > 0).float().mean().item()
    assert (
        5 < close.sum() < len(gap)
        and tour.reward_accuracy[0]["human ceiling"] < everything["human ceiling"]
    )


def test_the_reduced_tour_reuses_saved_stages_and_writes_a_report(reduced, tmp_path, monkeypatch):
    first, _ = reduced
    rows, config = first.rows, first.config
    assert [row["method"] for row in rows] == [
        "SFT",
        "best-of-4",
        "best-of-16",
        "PPO",
        "DPO",
        "GRPO",
    ]
    assert all(row["gold_low"] <= row["gold"] <= row["gold_high"] for row in rows)
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-3)
    page = write_tour_report(first, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "PPO" in page and page.count("data:image/png") >= 5
    assert "token by token" in page and '"sides":[{"title":"SFT"' in page
    assert len(page) < 1_500_000
    for name in ("tour", "copy"):
        shutil.copytree(first.folder, tmp_path / name)
    stages = {
        json.loads(line)["stage"]
        for line in (tmp_path / "tour" / "metrics.jsonl").read_text().splitlines()
    }
    assert stages == {"sft", "reward", "ppo", "dpo", "grpo"}

    def never(*args, **kwargs):
        raise AssertionError("a cached stage was made again")

    for name in ("train_sft", "train_reward_model", "train_ppo", "train_dpo", "train_group"):
        monkeypatch.setattr(f"minirlhf.tour.{name}", never)
    assert Tour(tmp_path / "tour", config).run() == rows
    with pytest.raises(AssertionError, match="made again"):
        Tour(tmp_path / "tour", config.seeded(1)).run()  # other settings: nothing may be reused
    monkeypatch.setattr(
        "minirlhf.tour.fingerprint", lambda *names: "other weights under the same name"
    )
    with pytest.raises(AssertionError, match="made again"):
        Tour(tmp_path / "copy", config).run()


def test_a_fingerprint_depends_on_the_weights(tmp_path):
    save_policy(tiny_policy(seed=0), tiny_tokenizer(), tmp_path / "model")
    first = fingerprint(tmp_path / "model")
    assert (
        first == fingerprint(tmp_path / "model") != fingerprint(tmp_path / "model", "tiny-reviews")
    )
    save_policy(tiny_policy(seed=1), tiny_tokenizer(), tmp_path / "model")
    assert fingerprint(tmp_path / "model") != first


@pytest.mark.parametrize(
    "error, code, said",
    [
        (ValueError("folder '[/x]' is wrong"), 1, "Error: folder '[/x]' is wrong"),
        (ValueError("No model 'a\nb': no"), 1, "Error: No model 'a\\nb': no"),
        (ValueError("red \x1b[31m\x07"), 1, "Error: red \ufffd[31m\ufffd"),
        (MemoryError(), 1, "The memory is full. A smaller --micro-batch"),
        (torch.OutOfMemoryError("CUDA out of memory\nlong"), 1, "The memory is full."),
        (RecursionError("maximum recursion depth"), 1, "An input is nested too deeply"),
        (RuntimeError("sizes\nmore"), 1, "Error: sizes (MINIRLHF_TRACEBACK=1 shows where.)"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "x"), 1, "A text file is not UTF-8"),
        (FileNotFoundError(2, "No such file", "[/x]"), 1, "No such file: '[/x]'"),
        (
            Stopped("Stopped after step 3; saved in out/[/x]."),
            130,
            "saved in out/[/x]. To continue",
        ),
    ],
)
def test_what_stops_a_command_is_printed_as_plain_text(
    error, code, said, command_line, monkeypatch
):
    def stopped(*args, **kwargs):
        raise error

    monkeypatch.setattr("minirlhf.cli.samples.load_policy", stopped)
    status, out, err = command_line("sample", "x")
    assert status == code and said in out + err and "Traceback" not in err


@pytest.mark.parametrize("error", [KeyError("prompt"), TypeError("x"), ZeroDivisionError("x")])
def test_a_bug_keeps_its_traceback_and_says_what_to_do(error, monkeypatch):
    def stopped(*args, **kwargs):
        raise error

    monkeypatch.setattr("minirlhf.cli.samples.load_policy", stopped)
    monkeypatch.setattr(cli, "prepare", lambda: None)
    monkeypatch.setattr(sys, "argv", ["minirlhf", "sample", "x"])
    with pytest.raises(type(error)) as raised:
        cli.main()
    assert "please report it" in raised.value.__notes__[0]


def test_a_sentence_outside_a_terminal_is_one_line_with_its_brackets(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    terminal.say("Wrote [bold]/a folder/[/x]\x1b[31m" + "z" * 60)
    assert capsys.readouterr().out == "Wrote [bold]/a folder/[/x]\ufffd[31m" + "z" * 60 + "\n"


def test_a_class_list_that_is_not_utf8_is_refused_with_its_name(tmp_path):
    (tmp_path / "class.txt").write_bytes(b"J\xfcrgen\n")
    error = run(cli.app, ["grade", str(tmp_path), "--students", str(tmp_path / "class.txt")])
    assert "class.txt' cannot be read as UTF-8 text" in str(error.exception)
