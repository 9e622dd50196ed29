"""The recorded PPO run that is read token by token: what is read, and that reading changes nothing."""

from dataclasses import replace

import pytest
import torch

from minirlhf import core, show
from minirlhf.experiments import load_results, microscope, recording, results, runs
from minirlhf.experiments.records import RESULTS, record
from minirlhf.loops.ppo import PPOConfig, train_ppo
from minirlhf.models.load import load_policy, load_scalar
from minirlhf.models.sampling import SamplingConfig
from minirlhf.rewards.model import rollout_score
from minirlhf.tasks import reviews
from minirlhf.tour import trainable

BRIEFLY = {"steps": 2, "batch_size": 4, "minibatch_size": 2, "epochs": 1}
ONE = {"as it is": {"ppo": BRIEFLY, "read_at": (0, 2), "prompts": 2}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of two steps, recorded."""
    folder = tmp_path_factory.mktemp("recorded")
    with pytest.MonkeyPatch.context() as patch:
        for module in (runs, recording):
            patch.setattr(module, "EXPERIMENTS", {"microscope": ONE})
        patch.setattr(reviews, "eval_prompts", lambda split: ["a film\n", "another\n", "third\n"])
        recording.run_experiment("microscope", folder / "out", results=folder)
    return folder


def test_the_record_is_a_row_a_token_ready_for_the_microscope(folder):
    table = results("microscope", folder=folder)
    assert set(table["experiment"]) == {"microscope"} and "gold" not in table
    assert table["step"].unique().tolist() == [0, 2]
    sources = table.groupby("source")["text"].unique().map(list).to_dict()
    assert sources == {"fixed": [0, 1], "fresh": [0, 1]}
    assert (
        table.groupby(["source", "text"])["prompt"].first().tolist()
        == ["a film\n", "another\n"] * 2
    )
    assert {"prefix_reward", "kl", "advantage", "clipped", "ref_alternatives"} <= set(table)
    for pairs in (*table["alternatives"], *table["ref_alternatives"]):
        assert len(pairs) == 5 and all(isinstance(p, float) for _, p in pairs)
    scope = show.microscope(table[table["source"] == "fresh"], "advantage")
    assert scope.data["steps"] == [0, 2] and "<script" in scope.html
    assert scope.data["sides"][0]["settings"] == {
        "kl_coef": PPOConfig().kl.kl_coef,
        "gamma": PPOConfig.gamma,
        "lam": PPOConfig.lam,
    }


def test_the_fixed_responses_keep_their_tokens_and_change_their_numbers(folder):
    table = results("microscope", folder=folder)
    fixed = table[table["source"] == "fixed"]
    before, after = (fixed[fixed["step"] == s].reset_index(drop=True) for s in (0, 2))
    same = ["text", "position", "token", "prefix_reward", "ref_logprob", "score"]
    assert before[same].equals(after[same])
    assert before["kl"].abs().max() == 0  # at step 0 the policy is the reference
    assert after["kl"].abs().max() > 0 and (before["value"] != after["value"]).any()
    assert after["kl"].to_numpy() == pytest.approx(
        (after["logprob"] - after["ref_logprob"]).to_numpy(), abs=1e-3
    )


def test_the_fresh_responses_are_those_of_the_policy_of_the_step(folder):
    table = results("microscope", folder=folder)
    fresh = table[(table["source"] == "fresh") & (table["step"] == 2)]
    # sampled by this very policy: the ratio is 1 up to rounding
    assert fresh["ratio"].to_numpy() == pytest.approx(1.0, abs=1e-3)
    start = table[table["step"] == 0].groupby("source")["token"].sum()
    assert start["fixed"] == start["fresh"]  # at step 0 both sets are the SFT model's, same seed


def test_the_recorded_advantages_are_those_of_gae(folder):
    table = results("microscope", folder=folder)
    for _, text in table.groupby(["source", "step", "text"]):
        rewards, values = (torch.tensor([text[n].tolist()]) for n in ("reward", "value"))
        mask = torch.ones(rewards.shape, dtype=torch.bool)
        advantages, returns = core.gae(rewards, values, mask, lam=PPOConfig.lam)
        assert text["advantage"].tolist() == pytest.approx(advantages[0].tolist(), abs=1e-3)
        assert text["return"].tolist() == pytest.approx(returns[0].tolist(), abs=1e-3)
        last = text.iloc[-1]
        assert last["reward"] == pytest.approx(last["score"] - 0.5 * last["kl"], abs=1e-3)


def test_the_penalty_for_a_missing_eos_is_part_of_the_score(monkeypatch):
    given = []
    real = microscope.evaluate.token_table

    def spy(batch, tokenizer, **models):
        given.append((batch, tokenizer, models["reward_model"]))
        return real(batch, tokenizer, **models)

    monkeypatch.setattr(microscope.evaluate, "token_table", spy)
    monkeypatch.setattr(reviews, "eval_prompts", lambda split: ["a film\n", "another\n"])
    monkeypatch.setattr(microscope, "judged", lambda *a, **k: {})
    config = PPOConfig(**BRIEFLY | {"steps": 1}, sampling=SamplingConfig(max_new_tokens=3))
    microscope.microscope_run({"read_at": (0,), "prompts": 2}, config, lambda row: None)
    batch, tokenizer, scorer = given[0]
    unfinished = ~batch.finished(tokenizer.eos_token_id)
    assert unfinished.any()
    expected = rollout_score(scorer, tokenizer.eos_token_id)(batch) - unfinished.float()
    assert batch.scores.tolist() == pytest.approx(expected.tolist(), abs=1e-6)


def test_reading_leaves_the_run_as_it_is_without_reading(folder):
    policy, tokenizer = load_policy("tiny-reviews-sft")
    scorer, _ = load_scalar("tiny-reviews-reward")
    score = rollout_score(scorer, tokenizer.eos_token_id)
    plain = train_ppo(
        trainable(policy),
        trainable(scorer),
        tokenizer,
        reviews.rl_prompts(),
        score,
        PPOConfig(**BRIEFLY),
    )[2]
    read = load_results("microscope_history", folder=folder)
    for with_reading, without in zip(read, plain, strict=True):
        assert {key: with_reading[key] for key in without} == without


def test_a_row_has_its_origin_and_the_numbers_that_a_repeated_run_must_reproduce(folder):
    (row,) = load_results("microscope", folder=folder)
    assert row["command"] == "minirlhf experiment microscope --seeds 1" and row["seed"] == 0
    assert all(key in row for key in ("gold", "proxy", "kl", "length", "commit", "seconds"))
    assert len(row["tables"]) == 4  # two steps, two sources


def test_numbers_are_rounded_to_five_significant_digits(folder):
    assert microscope.rounded(0.000123456789) == 0.00012346
    assert microscope.rounded([("a", 123456.789), True, 3]) == [["a", 123460.0], True, 3]
    (row,) = load_results("microscope", folder=folder)
    assert all(float(f"{x:.5g}") == x for x in row["tables"][0]["advantage"])


def test_results_of_several_records_may_hold_a_token_table(folder):
    origin = {"claim": "x", "seed": 0, "commit": "c", "command": "c"}
    record("x", [origin | {"gold": 1.0}], folder=folder)
    both = results("x", "microscope", folder=folder)
    assert both["experiment"].value_counts()["x"] == 1 and len(both) > 10
    assert both["gold"].tolist()[0] == 1.0 and both["gold"].isna().sum() == len(both) - 1


def test_the_committed_record_shows_a_critic_that_learns():
    table = results("microscope")
    assert table["step"].unique().tolist() == [0, 4, 8, 12, 18, 24]
    size = table[["td_error", "advantage"]].abs()
    mean = size.groupby([table["source"], table["step"]]).mean()
    fixed, fresh = mean.loc["fixed"], mean.loc["fresh"]
    # the TD error of the fixed responses falls by two thirds in four steps, and goes on falling
    assert fixed["td_error"][4] < 0.4 * fixed["td_error"][0]
    assert fixed["td_error"][24] < 0.25 * fixed["td_error"][0]
    # fresh responses: the advantage is smaller at every reading than at the one before
    assert fresh["advantage"].is_monotonic_decreasing
    assert fresh["advantage"][24] < 0.4 * fresh["advantage"][0]
    # fixed responses: it halves from first to last, but not steadily, since the policy and with it
    # what the critic expects go on changing
    assert fixed["advantage"][24] < 0.6 * fixed["advantage"][0]
    assert not fixed["advantage"].is_monotonic_decreasing
    history = results("microscope_history")
    explained = history["explained_variance"]
    assert explained[0] < 0 and explained.tail(5).min() > 0.6


def test_the_committed_record_and_its_page_are_small():
    assert (RESULTS / "microscope.jsonl").stat().st_size < 700_000
    table = results("microscope")
    page = show.microscope(table[table["source"] == "fixed"], "advantage").html
    assert len(page.encode()) < 300_000


# ---- one batch, read at each of its updates


@pytest.fixture(scope="module")
def one_batch(tmp_path_factory):
    """Two short steps, recorded: batches of four responses, minibatches of two, two epochs."""
    folder, made = tmp_path_factory.mktemp("recorded"), microscope.one_batch_config({"seed": 0})
    config = replace(made, steps=2, batch_size=4, minibatch_size=2)
    with pytest.MonkeyPatch.context() as patch:
        for module in (runs, recording):
            patch.setattr(module, "EXPERIMENTS", {"one_batch": {"as it is": {"texts": 3}}})
        run = (lambda settings: config, microscope.one_batch_run)
        patch.setitem(runs.RUNS, "one_batch", run)
        recording.run_experiment("one_batch", folder / "out", results=folder)
    return config, folder


def test_one_batch_is_read_before_each_update_and_after_the_last(one_batch):
    config, folder = one_batch
    table = results("one_batch", folder=folder)
    assert table.step.unique().tolist() == [0, 1, 2, 3, 4] and table.text.unique().tolist() == [
        0,
        1,
        2,
    ]
    fixed = ["text", "position", "token", "old_logprob", "reward", "value", "advantage", "return"]
    first, *later = (table[table.step == n].reset_index(drop=True) for n in range(5))
    assert first.ratio.to_numpy() == pytest.approx(1.0, abs=1e-4)
    for reading in later:
        assert reading[fixed].equals(first[fixed])
        assert (reading.ratio - 1).abs().max() > 1e-4
    used = table.groupby(["text", "step"]).used.first().unstack()
    assert (used[[0, 1]].sum(axis=1) == 1).all() and (used[[2, 3]].sum(axis=1) == 1).all()
    assert not used[4].any()


def test_reading_one_batch_leaves_the_run_as_it_is_without_reading(one_batch):
    config, folder = one_batch
    policy, tokenizer = load_policy("tiny-reviews-sft")
    scorer, _ = load_scalar("tiny-reviews-reward")
    score = rollout_score(scorer, tokenizer.eos_token_id)
    models = (trainable(policy), trainable(scorer))
    plain = train_ppo(*models, tokenizer, reviews.rl_prompts(), score, config)[2]
    for with_reading, without in zip(
        load_results("one_batch_history", folder=folder), plain, strict=True
    ):
        assert {key: with_reading[key] for key in without} == without


def test_the_committed_batch_is_small_and_has_the_command_that_makes_it():
    (row,) = load_results("one_batch")
    assert (
        row["command"] == "minirlhf experiment one_batch --seeds 1" and "dirty" not in row["commit"]
    )
    assert (RESULTS / "one_batch.jsonl").stat().st_size < 100_000
