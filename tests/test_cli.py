import json
import subprocess
import sys

import pytest
import torch
from typer.testing import CliRunner

from minirlhf import cli
from minirlhf.classroom.claims import load_results, record
from minirlhf.grid import record_grid, rerun
from minirlhf.models.load import committed, load_policy, load_scalar
from minirlhf.rewards.gold import correlation, ensemble_judge, gold_judge
from minirlhf.tour import Tour, TourConfig, write_tour_report

run = CliRunner().invoke


def test_every_command_explains_itself():
    for name in ("tour", "pretrain", "sft", "reward", "ppo", "dpo", "grpo", "sample", "score", "gold", "grid", "data", "course", "claims"):
        result = run(cli.app, [name, "--help"])
        assert result.exit_code == 0 and "--" in result.output, name


def test_score_prints_both_readings_and_writes_an_escaped_page(tmp_path):
    text = "I love to walk the dog, <script>what</script> do you like?"
    result = run(cli.app, ["score", text, "--html", str(tmp_path / "s.html")])
    assert result.exit_code == 0, result.output
    assert "prefix + EOS" in result.output and "one pass" in result.output and "further" in result.output
    page = (tmp_path / "s.html").read_text(encoding="utf-8")
    assert "<script>" not in page and page.count("<span") > 20


def test_score_knows_good_from_bad():
    model, tokenizer = load_scalar("tiny-reviews-reward")
    from minirlhf.rewards.model import text_judge

    texts = ["A brilliant, moving and funny film.", "A boring, dull and pointless mess."]
    good, bad = text_judge([model], tokenizer)(["the film\n"] * 2, texts)
    assert good > bad + 1  # more than one standard deviation of SFT samples


def test_sample_shows_unselected_text():
    result = run(cli.app, ["sample", "a film", "--n", "2", "--max-new-tokens", "5"])
    assert result.exit_code == 0 and result.output.count("a film") == 2


@pytest.mark.parametrize("arguments, sentence", [
    (["score", "x", "--scorer", "nobody"], "No reward model 'nobody'"),
    (["sample", "x", "--model", "no-such-model"], "No model 'no-such-model'"),
    (["sample", "x", "--temperature", "0"], "temperature is 0.0; it must be above 0"),
    (["score", ""], "empty"),
])
def test_a_wrong_input_ends_in_one_sentence(arguments, sentence):
    done = subprocess.run([sys.executable, "-m", "minirlhf.cli", *arguments], capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert sentence in " ".join(done.stderr.split())


def test_the_committed_models_are_there_small_and_whole():
    assert {"tiny-reviews", "tiny-reviews-sft", "tiny-reviews-reward", "gold-0", "gold-1", "gold-2"} <= set(committed())
    for name in ("tiny-reviews", "tiny-reviews-sft"):
        model, tokenizer = load_policy(name)
        assert model.dtype == torch.float32 and 2e6 < sum(p.numel() for p in model.parameters()) < 6e6
        assert tokenizer.decode(tokenizer("A caf\u00e9, \u2603!").input_ids) == "A caf\u00e9, \u2603!"
    for path in cli.Path(load_policy.__globals__["CHECKPOINTS"]).glob("*/*.safetensors"):
        assert path.stat().st_size < 12e6, path


def test_the_ridge_is_gold_because_it_predicts_people_better():
    ridge, ensemble = correlation(gold_judge()), correlation(ensemble_judge())
    assert ridge > ensemble > 0.4


def test_a_grid_is_recorded_and_a_rerun_compares(tmp_path):
    config, results = TourConfig.reduced(), tmp_path / "results"
    record_grid(tmp_path / "grid", 2, config, command="test", on_step=lambda row: None, results=results)
    rows = load_results("tour", folder=results)
    assert [row["seed"] for row in rows] == [0] * 6 + [1] * 6 and "texts" not in rows[0]
    assert load_results("tour_history", folder=results) and load_results("reward_model", folder=results)
    seed, wrong = rerun(tmp_path / "again", config, draw=0, on_step=lambda row: None, results=results)
    assert seed in (0, 1) and wrong == []
    for row in rows:
        row["gold"] += 5.0
    record("tour", rows, folder=results)
    _, wrong = rerun(tmp_path / "again", config, draw=0, on_step=lambda row: None, results=results)
    assert len(wrong) == 6 and all("gold: recorded" in line for line in wrong)


def test_the_tour_runs_reduced_reuses_what_it_made_and_reports(tmp_path, monkeypatch):
    config = TourConfig.reduced()
    first = Tour(tmp_path / "tour", config)
    rows = first.run()
    assert [row["method"] for row in rows] == ["SFT", "best-of-4", "best-of-16", "PPO", "DPO", "GRPO"]
    assert all(row["gold_low"] <= row["gold"] <= row["gold_high"] for row in rows)
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-3)
    page = write_tour_report(first, tmp_path / "tour" / "report.html").read_text(encoding="utf-8")
    assert "PPO" in page and page.count("data:image/png") >= 5
    stages = {json.loads(line)["stage"] for line in (tmp_path / "tour" / "metrics.jsonl").read_text().splitlines()}
    assert stages == {"sft", "reward", "ppo", "dpo", "grpo"}

    def never(*args, **kwargs):
        raise AssertionError("a cached stage was made again")

    for name in ("train_sft", "train_reward_model", "train_ppo", "train_dpo", "train_group"):
        monkeypatch.setattr(f"minirlhf.tour.{name}", never)
    assert Tour(tmp_path / "tour", config).run() == rows
    with pytest.raises(AssertionError, match="made again"):
        Tour(tmp_path / "tour", config.seeded(1)).run()  # other settings: nothing may be reused
