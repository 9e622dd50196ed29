"""The group loop: baselines, replaced groups, truncated responses, and learning."""

from dataclasses import replace
from unittest.mock import patch

import pytest
import torch

from minirlhf.core.rollout import Rollout
from minirlhf.loops.config import KLConfig, OptimiserConfig
from minirlhf.loops.family import FAMILY, Algorithm
from minirlhf.loops.group import GroupConfig, train_group
from minirlhf.models.forward import encode_prompts
from minirlhf.models.sampling import SamplingConfig, sample
from tests.loops.test_loops import PROMPTS, first_half, run_group, shuffled
from tests.tiny import tiny_policy, tiny_tokenizer

SHORT = SamplingConfig(max_new_tokens=6)


def train(algorithm, *, score=first_half, steps=1, spy=None, **given):
    """A short run; `spy` is given (scores, rollout, settings) of each call for advantages."""
    if spy:
        algorithm = _watched(algorithm, spy)
    size = dict(prompts_per_step=4, group_size=4, minibatch_size=16) | given
    config = GroupConfig(
        algorithm,
        steps=steps,
        epochs=1,
        missing_eos_penalty=0.0,
        sampling=SHORT,
        kl=KLConfig(kl_coef=0.0),
        optimiser=OptimiserConfig(lr=1e-2),
        **size,
    )
    return train_group(tiny_policy(), tiny_tokenizer(), PROMPTS, score, config)


def _watched(algorithm, spy):
    class Watched(Algorithm):
        def advantages(self, scores, rollout, ref_logprobs, **given):
            spy(scores, rollout, given)
            return super().advantages(scores, rollout, ref_logprobs, **given)

    return Watched(**{name: getattr(algorithm, name) for name in Algorithm.__dataclass_fields__})


@pytest.mark.parametrize("name", FAMILY)
def test_every_algorithm_learns_a_rule_but_not_from_shuffled_scores(name):
    # seeds 0 to 2 of each row: the mean of the last four steps is 0.95 to 1.00
    size = (
        {"group_size": 4, "prompts_per_step": 8}
        if FAMILY[name].compares
        else {"group_size": 1, "prompts_per_step": 32}
    )
    given = {
        "algorithm": replace(FAMILY[name], overlong_buffer=0),
        "kl": KLConfig(kl_coef=0.01),
    } | size
    steps = 20
    if FAMILY[name].ratio == "none":  # one update a step; algorithms with a ratio make four
        given |= {"epochs": 1, "minibatch_size": 32}
        steps = 50
    learned, nothing = (
        [row["score"] for row in run_group(0, score=score, steps=n, **given)[1]]
        for score, n in ((first_half, steps), (shuffled, steps // 2))
    )
    assert sum(learned[:2]) / 2 < 0.6 and sum(learned[-4:]) / 4 > 0.9
    assert sum(nothing[-4:]) / 4 < 0.6 < sum(learned[steps // 2 - 4 : steps // 2]) / 4


def some_alike(rollout):
    """Score 1 for every response to the one-token prompt, and a score that depends on the tokens for all others."""
    weights = torch.arange(1, rollout.response_ids.shape[1] + 1)
    words = (rollout.response_ids * rollout.response_mask * weights).sum(1)
    return torch.where(rollout.prompt_mask.sum(1) == 1, 1.0, words / 1e4)


def test_groups_with_equal_scores_are_replaced():
    seen, dapo = [], replace(FAMILY["dapo"], overlong_buffer=0)
    history = train(
        dapo,
        score=some_alike,
        steps=6,
        max_refills=20,
        spy=lambda scores, rollout, given: seen.append((scores, rollout)),
    )[1]
    assert any(row["frac_reward_zero_std"] > 0 for row in history)
    for (scores, rollout), row in zip(seen, history, strict=True):
        grouped = scores.view(4, 4)
        assert (
            grouped.max(1).values > grouped.min(1).values
        ).all()  # in every group that is kept the scores differ
        assert (rollout.prompt_mask.sum(1) > 1).all() and torch.equal(
            scores, some_alike(rollout)
        )  # scores still belong to their responses
        assert row["samples"] >= 16 + 16 * row["frac_reward_zero_std"] and row["samples"] % 4 == 0
        prompts = [
            tuple(ids[mask].tolist())
            for ids, mask in zip(rollout.prompt_ids, rollout.prompt_mask, strict=True)
        ]
        assert all(
            len(set(prompts[i : i + 4])) == 1 for i in range(0, 16, 4)
        )  # groups stay side by side


def test_without_refills_groups_with_equal_scores_fill_the_batch():
    seen = []
    dapo = replace(FAMILY["dapo"], overlong_buffer=0)
    history = train(
        dapo,
        score=some_alike,
        steps=6,
        max_refills=0,
        spy=lambda scores, rollout, given: seen.append(scores.view(4, 4)),
    )[1]
    assert all(row["samples"] == 16 for row in history) and all(len(s) == 4 for s in seen)
    equal = [(s.max(1).values == s.min(1).values) for s in seen]
    assert any(e.any() for e in equal) and all(
        e.tolist() == sorted(e.tolist()) for e in equal
    )  # groups with different scores come first
    alike = train(
        dapo, score=lambda rollout: torch.ones(len(rollout.response_ids)), steps=2, max_refills=1
    )
    assert all(
        row["grad_norm"] == 0 for row in alike[1]
    )  # all scores are equal: the gradient is 0 and nothing breaks


def test_groups_with_a_spread_below_the_threshold_are_replaced():
    tremble = lambda rollout: torch.arange(len(rollout.response_ids)) % 4 * 1e-3
    history = train(Algorithm(drop_spread=0.01), score=tremble, max_refills=2)[1]
    assert history[0]["samples"] == 16 * 3
    assert train(Algorithm(drop_spread=0.001), score=tremble, max_refills=2)[1][0]["samples"] == 16


def test_remax_subtracts_the_greedy_response_of_each_prompt():
    seen = []
    train(
        FAMILY["remax"],
        spy=lambda scores, rollout, given: seen.append((rollout, given["baseline"])),
    )
    ((rollout, baseline),) = seen
    model, tokenizer = tiny_policy(), tiny_tokenizer()
    for row in range(16):
        prompt = tokenizer.decode(rollout.prompt_ids[row][rollout.prompt_mask[row]])
        greedy = sample(
            model,
            *encode_prompts(tokenizer, [prompt]),
            eos_id=0,
            config=replace(SHORT, greedy=True),
        )
        assert baseline[row] == pytest.approx(first_half(greedy).item(), abs=1e-6)


def test_the_running_mean_baseline_uses_earlier_batches():
    seen = []
    train(
        FAMILY["reinforce"],
        steps=3,
        spy=lambda scores, rollout, given: seen.append((scores.mean().item(), given["baseline"])),
    )
    means, baselines = zip(*seen, strict=True)
    assert baselines[0] == pytest.approx(means[0])  # at the first step: the mean of its own batch
    assert baselines[1] == pytest.approx(means[0]) and baselines[2] == pytest.approx(
        0.9 * means[0] + 0.1 * means[1]
    )


def test_truncated_responses_are_masked_on_request():
    graded = lambda rollout: torch.arange(len(rollout.response_ids)) % 4 / 4

    def weights(cut, **given):
        with patch.object(Rollout, "finished", lambda rollout, eos_id: ~cut):
            model, history = train(Algorithm(aggregation="sequence_sum"), score=graded, **given)
        return torch.cat([p.detach().flatten() for p in model.parameters()]), history[0]

    none, all_of_it, half = (torch.full((16,), value) for value in (False, True, False))
    half[::2] = True
    start = torch.cat([p.detach().flatten() for p in tiny_policy().parameters()])
    unmoved, row = weights(all_of_it, mask_truncated=True)
    assert (
        torch.equal(unmoved, start) and row["grad_norm"] == 0 and row["missing_eos"] == 1
    )  # no response is left: no division by 0
    moved, whole = weights(all_of_it)
    assert not torch.equal(moved, start)  # without mask_truncated they are trained on
    other, part = weights(half, mask_truncated=True)
    assert not torch.equal(other, moved) and 0 < part["grad_norm"] != whole["grad_norm"]
    assert torch.equal(weights(none, mask_truncated=True)[0], weights(none)[0])


def test_the_length_penalty_is_subtracted_before_the_group_mean():
    seen = []
    row = Algorithm(overlong_buffer=3)
    train(
        row,
        score=lambda r: torch.zeros(len(r.response_ids)),
        spy=lambda scores, rollout, given: seen.append((scores, rollout)),
    )
    ((scores, rollout),) = seen
    lengths = rollout.response_mask.sum(1)
    torch.testing.assert_close(
        scores, -((lengths - 3) / 3).clamp(0, 1)
    )  # no penalty up to 3 of 6 tokens
    assert scores.min() == -1
