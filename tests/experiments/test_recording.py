"""The tour as an experiment of several seeds: recorded, continued and repeated."""

from minirlhf import tour
from minirlhf.experiments import load_results, recording, repeat_tour, run_experiment
from minirlhf.experiments.records import record
from minirlhf.tasks import reviews
from tests.tiny import tiny_tour


def test_the_tour_is_recorded_and_a_repeated_seed_is_compared(tmp_path, monkeypatch):
    config, results, titles = tiny_tour(), tmp_path / "results", reviews.rl_prompts()[:32]
    monkeypatch.setattr(tour, "human_ceiling", lambda pairs, low, high: 0.9)
    monkeypatch.setattr(reviews, "rl_prompts", lambda: titles)
    monkeypatch.setattr(recording, "commit", lambda: "a commit")  # another may be made meanwhile
    run_experiment("tour", tmp_path / "out", 2, results=results, config=config)
    rows = load_results("tour", folder=results)
    assert [row["seed"] for row in rows] == [0] * 6 + [1] * 6 and "texts" not in rows[0]
    assert {row["command"] for row in rows} == {"minirlhf experiment tour --seeds 2"}
    assert load_results("tour_history", folder=results) and (results / "methods.png").is_file()
    run_experiment("reward_model", tmp_path / "alone", 1, results=tmp_path, config=config)
    alone, with_tour = (load_results("reward_model", folder=f) for f in (tmp_path, results))
    for row in alone + with_tour:
        del row["command"]
    assert alone == [row for row in with_tour if row["seed"] == 0]
    assert len(with_tour) == 2 * len(alone) > 0
    assert not list((tmp_path / "alone").glob("*/ppo*"))  # only the stages up to the reward model
    which, wrong = repeat_tour(tmp_path / "again", config, draw=0, results=results)
    assert which in ("The tour's seed 0", "The tour's seed 1") and wrong == []
    for row in rows:
        row["gold"] += 5.0
    record("tour", rows, folder=results)
    _, wrong = repeat_tour(tmp_path / "again", config, draw=0, results=results)
    assert len(wrong) == 6 and all("gold: recorded" in line for line in wrong)
