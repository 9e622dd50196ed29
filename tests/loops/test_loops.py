"""Each loop: known values at the first step, and a short seeded run that must learn."""

import copy
import functools
import itertools
import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from datasets import Dataset

from minirlhf.core.baselines import group_relative
from minirlhf.core.bradley_terry import last_token_scores
from minirlhf.loops.common import linear_decay
from minirlhf.loops.config import KLConfig, OptimiserConfig
from minirlhf.loops.family import Algorithm, GroupFormulas
from minirlhf.loops.gold import GoldConfig, train_gold
from minirlhf.loops.group import GroupConfig, train_group
from minirlhf.loops.ppo import PPOConfig, train_ppo
from minirlhf.loops.preference import DPOConfig, train_dpo
from minirlhf.loops.reward import RewardConfig, comparison_batches, text_scores, train_reward_model
from minirlhf.loops.sft import SFTConfig, train_sft
from minirlhf.models.forward import encode, token_scores
from minirlhf.models.heads import ScalarModel
from minirlhf.models.sampling import SamplingConfig, sample_text
from minirlhf.rewards.model import normalise_scores, rollout_score
from minirlhf.tasks.reviews import Review
from tests.tiny import tiny_policy, tiny_tokenizer

PROMPTS = ["one", "a second", "3"]
SHORT = SamplingConfig(max_new_tokens=6)
FAST_LR = OptimiserConfig(lr=1e-2)


def first_half(rollout):
    """A rule to be learned: the share of response tokens from the first half of the vocabulary. A random policy: about one half."""
    hits = (rollout.response_ids < 129) & rollout.response_mask
    return hits.sum(1) / rollout.response_mask.sum(1)


PAIRS = Dataset.from_list(
    [
        {"prompt": p, "chosen": c * 3, "rejected": r * 3}
        for p in PROMPTS
        for c, r in ("ax", "ey", "iz")
    ]
)


def shuffled(rollout):
    """The same scores in random order, from which nothing can be learned."""
    scores = first_half(rollout)
    return scores[torch.randperm(len(scores))]


def ppo_config(**given):
    defaults = dict(
        steps=12,
        batch_size=32,
        minibatch_size=16,
        epochs=2,
        missing_eos_penalty=0.0,
        sampling=SHORT,
        actor=FAST_LR,
        critic=FAST_LR,
        kl=KLConfig(kl_coef=0.0),
    )
    return PPOConfig(**{**defaults, **given})


def run_ppo(seed=0, score=first_half, *, on_step=lambda row: None, **given):
    actor, critic = tiny_policy(seed), ScalarModel(tiny_policy(seed + 1).base_model)
    config = ppo_config(seed=seed, **given)
    return train_ppo(actor, critic, tiny_tokenizer(), PROMPTS, score, config, on_step=on_step)


def run_group(
    seed=0, score=first_half, formulas=GroupFormulas(), *, on_step=lambda row: None, **given
):
    defaults = dict(
        steps=12,
        prompts_per_step=8,
        group_size=4,
        minibatch_size=16,
        missing_eos_penalty=0.0,
        sampling=SHORT,
        optimiser=FAST_LR,
        kl=KLConfig(kl_coef=0.0),
    )
    config = GroupConfig(seed=seed, **{**defaults, **given})
    on = {"formulas": formulas, "on_step": on_step}
    return train_group(tiny_policy(seed), tiny_tokenizer(), PROMPTS, score, config, **on)


@functools.cache
def history_of(algorithm, steps, score=first_half, kl_coef=0.0):
    """The history of a run with seed 0; tests that read the same run share it."""
    run = {"ppo": run_ppo, "grpo": run_group}[algorithm]
    return run(steps=steps, score=score, kl=KLConfig(kl_coef=kl_coef))[-1]


def test_ppo_starts_at_ratio_one_with_nothing_clipped_and_no_kl():
    _, _, history = run_ppo(steps=1, epochs=1, minibatch_size=32)
    row = history[0]
    assert abs(row["ratio"] - 1) < 1e-5 and row["clip_fraction"] == 0
    assert abs(row["kl"]) < 1e-4  # the reference is the actor's copy
    assert row["entropy"] == pytest.approx(
        math.log(257), rel=0.1
    )  # a random model is nearly uniform


@pytest.mark.parametrize(
    "train",
    [
        lambda model, reference: train_ppo(
            model,
            ScalarModel(tiny_policy(9).base_model),
            tiny_tokenizer(),
            PROMPTS,
            first_half,
            ppo_config(steps=1),
            reference=reference,
        ),
        lambda model, reference: train_group(
            model,
            tiny_tokenizer(),
            PROMPTS,
            first_half,
            GroupConfig(
                steps=1, prompts_per_step=2, group_size=2, minibatch_size=4, sampling=SHORT
            ),
            reference=reference,
        ),
        lambda model, reference: train_dpo(
            model, tiny_tokenizer(), PAIRS, DPOConfig(steps=1, batch_size=4), reference=reference
        ),
    ],
)
def test_a_given_reference_is_unchanged_and_still_trainable(train):
    model, reference = tiny_policy(0), tiny_policy(1)
    before = [p.clone() for p in reference.parameters()]
    train(model, reference)
    assert all(map(torch.equal, before, reference.parameters()))
    assert all(p.requires_grad and p.grad is None for p in reference.parameters())


@pytest.mark.parametrize("config", [PPOConfig, GroupConfig])
@pytest.mark.parametrize("penalty", [-1.0, math.inf, math.nan])
def test_a_missing_eos_penalty_is_a_finite_number_of_0_or_more(config, penalty):
    with pytest.raises(ValueError, match="missing_eos_penalty is .*; it must be 0 or more"):
        config(missing_eos_penalty=penalty)


@pytest.mark.parametrize("algorithm", ["ppo", "grpo"])
def test_ppo_and_grpo_learn_a_rule_but_not_from_shuffled_scores(algorithm):
    # On seeds 0 to 5 the mean of the last four steps was 0.97 to 0.99, and 0.46 to 0.61 with
    # shuffled scores. One seed is run here.
    learned = history_of(algorithm, 25).column(algorithm, "score")
    assert sum(learned[:4]) / 4 < 0.6 and sum(learned[-4:]) / 4 > 0.9
    nothing = history_of(algorithm, 25, shuffled).column(algorithm, "score")
    assert sum(nothing[-4:]) / 4 < 0.7


@pytest.mark.parametrize("algorithm", ["ppo", "grpo"])
def test_a_larger_kl_coefficient_keeps_the_kl_small(algorithm):
    free = history_of(algorithm, 25)[-1]["kl"]
    tied = history_of(algorithm, 25, kl_coef=1.0)[-1]["kl"]
    assert 0 < tied < 0.25 * free


@pytest.mark.parametrize(
    "run", [lambda **k: run_ppo(**k)[2], lambda **k: run_group(**k)[1]], ids=["ppo", "grpo"]
)
def test_the_adaptive_kl_coefficient_follows_its_rule(run):
    column = [
        row["kl_coef"] for row in run(steps=4, kl=KLConfig(kl_coef=0.1, target=50.0, horizon=100.0))
    ]
    # kl is far below 50 nats: error -0.2, factor 1 - 0.2 * 32 / 100 a step
    torch.testing.assert_close(column, [0.1 * 0.936**k for k in range(4)])


@pytest.mark.parametrize(
    "setting",
    [
        {"gamma": 0.5},
        {"lam": 0.0},
        {"whiten": False},
        {"missing_eos_penalty": 1.0},
        {"clip_eps": 0.01},
        {"epochs": 1},
        {"critic": OptimiserConfig(lr=1e-3)},
        {"value_clip_eps": 1e-3},
        {"value_coef": 0.5},
    ],
    ids=str,
)
def test_each_setting_of_ppo_reaches_the_update(setting):
    plain, other = history_of("ppo", 3), run_ppo(steps=3, **setting)[2]
    assert plain[0]["score"] == other[0]["score"]  # the same first rollout ...
    assert (plain[-1]["policy_loss"], plain[-1]["value_loss"]) != (
        other[-1]["policy_loss"],
        other[-1]["value_loss"],
    )


@pytest.mark.parametrize(
    "setting",
    [
        {"scale": "none"},
        {"scale": "batch std"},
        {"baseline": "others' mean", "scale": "none"},
        {"scale": "none", "kl": "tokens"},
        {"kl": "k2 loss"},
        {"kl": "k3 loss"},
        {"ratio": "sequence"},
        {"ratio": "sequence mean"},
        {"aggregation": "sequence_sum"},
        {"clip_eps": 0.02},
        {"clip_eps_high": 0.9},
        {"clip": "none"},
        {"clip": "cispo"},
        {"min_std": 0.5},
    ],
    ids=str,
)
def test_each_choice_of_an_algorithm_reaches_the_update(setting):
    common = {"steps": 3, "kl": KLConfig(kl_coef=0.1)}
    plain, other = (
        run_group(**common, algorithm=Algorithm(**{"clip_eps": 0.01} | choices))[1]
        for choices in ({}, setting)
    )
    assert (
        plain[0]["score"] == other[0]["score"] and plain[-1]["grad_norm"] != other[-1]["grad_norm"]
    )


@pytest.mark.parametrize(
    "setting",
    [{"epochs": 1}, {"missing_eos_penalty": 1.0}, {"mask_truncated": True}, {"minibatch_size": 32}],
    ids=str,
)
def test_each_setting_of_grpo_reaches_the_update(setting):
    # a random model writes EOS once in 257 tokens: with 50 tokens a sixth of the responses finish, so both truncated and finished ones occur
    plain, other = (
        run_group(steps=3, sampling=SamplingConfig(max_new_tokens=50), **given)[1]
        for given in ({}, setting)
    )
    assert 0 < plain[0]["missing_eos"] < 1
    assert (
        plain[0]["score"] == other[0]["score"] and plain[-1]["grad_norm"] != other[-1]["grad_norm"]
    )
    assert abs(plain[0]["kl"]) < 1e-4  # policy and reference at one temperature


def test_grpo_subtracts_the_missing_eos_penalty_before_the_group_mean():
    seen, found = [], []

    def watched(scores, **given):
        seen.append((scores.clone(), given))
        return group_relative(scores, **given)

    _, history = run_group(
        steps=1,
        missing_eos_penalty=5.0,
        score=lambda r: found.append(r) or first_half(r),
        formulas=GroupFormulas(group_relative=watched),
    )
    (scores, given), (rollout, *_) = seen[0], found
    expected = first_half(rollout) - 5.0 * ~rollout.finished(0)
    torch.testing.assert_close(scores.flatten(), expected, rtol=0, atol=1e-5)
    assert given == {"scale_by_std": True} and history[0]["missing_eos"] > 0.5


def test_ppo_can_sample_several_responses_per_prompt():
    seen = []
    run_ppo(steps=1, samples_per_prompt=8, score=lambda r: seen.append(r) or first_half(r))
    prompts = [
        tuple(ids[mask].tolist())
        for ids, mask in zip(seen[0].prompt_ids, seen[0].prompt_mask, strict=True)
    ]
    assert (
        len(prompts) == 32
        and all(len(set(prompts[i : i + 8])) == 1 for i in range(0, 32, 8))
        and len(set(prompts)) > 1
    )
    with pytest.raises(
        ValueError, match="samples_per_prompt is 5; it must be a divisor of batch_size"
    ):
        ppo_config(samples_per_prompt=5)


def test_the_learning_rate_warms_up_and_decays_linearly():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    rates = []
    for step in range(
        10
    ):  # warm-up over two steps, then a straight line: 1/2 * 1, then 1 - step / 10
        linear_decay(optimizer, 2.0, step, 10, warmup=2)
        rates.append(optimizer.param_groups[0]["lr"])
    torch.testing.assert_close(rates, [1.0] + [2 * (1 - step / 10) for step in range(1, 10)])


def test_an_empty_dataset_is_refused():
    nothing = Dataset.from_dict({"prompt": [], "chosen": [], "rejected": [], "completion": []})
    for train in (
        lambda: train_sft(tiny_policy(), tiny_tokenizer(), nothing),
        lambda: train_dpo(tiny_policy(), tiny_tokenizer(), nothing),
        lambda: train_group(tiny_policy(), tiny_tokenizer(), [], first_half),
    ):
        with pytest.raises(ValueError, match="rows to train on is 0"):
            train()


def test_critic_warm_up_does_not_change_the_actor():
    actor, critic = tiny_policy(), ScalarModel(tiny_policy(1).base_model)
    before, head = copy.deepcopy(actor.state_dict()), critic.head.weight.clone()
    train_ppo(
        actor, critic, tiny_tokenizer(), PROMPTS, first_half, ppo_config(steps=1, critic_warmup=1)
    )
    assert all(torch.equal(before[k], v) for k, v in actor.state_dict().items())
    assert not torch.equal(head, critic.head.weight)


def test_missing_eos_is_penalised_in_the_reward_not_in_the_logged_score():
    quiet = run_ppo(steps=1, missing_eos_penalty=0.0)[2][0]
    loud = run_ppo(steps=1, missing_eos_penalty=5.0)[2][0]
    assert quiet["missing_eos"] > 0.5 and loud["score"] == quiet["score"]
    assert loud["value_loss"] > 4 * quiet["value_loss"]


def test_runs_are_reproducible():
    a, b = run_ppo(steps=3)[2], run_ppo(steps=3)[2]
    assert a == b
    assert run_group(steps=3)[1] == run_group(steps=3)[1]


def test_training_refuses_top_k_and_top_p_sampling():
    with pytest.raises(ValueError, match="top_k"):
        run_ppo(sampling=SamplingConfig(max_new_tokens=6, top_k=5))
    with pytest.raises(ValueError, match="top_k"):
        run_group(sampling=SamplingConfig(max_new_tokens=6, top_p=0.9))


def test_a_nan_score_stops_the_run_before_it_touches_the_weights():
    actor, critic = tiny_policy(), ScalarModel(tiny_policy(1).base_model)
    before = copy.deepcopy(actor.state_dict())
    with pytest.raises(
        ValueError, match="The score of response 1 of .*, to prompt .*must be finite"
    ):
        train_ppo(
            actor,
            critic,
            tiny_tokenizer(),
            PROMPTS,
            lambda r: torch.full((32,), torch.nan),
            ppo_config(steps=1),
        )
    assert all(torch.equal(before[k], v) for k, v in actor.state_dict().items())


def test_dpo_starts_at_ln_two_and_separates_the_pairs():
    model = tiny_policy()
    _, history = train_dpo(
        model,
        tiny_tokenizer(),
        PAIRS,
        DPOConfig(steps=20, batch_size=9, optimiser=OptimiserConfig(lr=1e-3)),
    )
    assert (
        abs(history[0]["loss"] - math.log(2)) < 1e-6
        and history[0]["rewards/margins"] == 0
        and history[0]["rewards/accuracies"] == 0
    )
    assert history[-1]["loss"] < 0.5 and history[-1]["rewards/accuracies"] == 1


def test_reward_model_orders_unseen_pairs_and_normalises_scores():
    tokenizer, model = tiny_tokenizer(), None
    config = RewardConfig(steps=40, batch_size=9, optimiser=OptimiserConfig(lr=3e-3))
    model, history = train_reward_model(tiny_policy().base_model, tokenizer, PAIRS, config)
    assert abs(history[0]["loss"] - math.log(2)) < 0.3
    batch = encode(tokenizer, ["new prompt"] * 2, ["aea", "xyx"])  # unseen prompt and order
    good, bad = last_token_scores(token_scores(model, batch), batch.attention_mask)
    assert good > bad
    rollouts = sample_text(tiny_policy(7), tokenizer, PROMPTS * 20, config=SHORT)
    normalise_scores(model, rollouts, 0)
    scores = torch.cat([rollout_score(model, 0)(r) for r in rollouts])
    torch.testing.assert_close(scores.mean(), torch.tensor(0.0), rtol=0, atol=1e-4)
    torch.testing.assert_close(scores.std(), torch.tensor(1.0), rtol=0, atol=1e-4)


def test_a_batch_holds_all_pairs_of_its_responses_and_an_epoch_uses_each_response_once():
    texts = [f"t{i}" for i in range(12)]
    rows = [
        {"prompt": p, "chosen": a, "rejected": b}
        for p in "xy"
        for i, a in enumerate(texts)
        for b in texts[i + 1 :]
    ]
    rows.append({"prompt": "z", "chosen": "alone", "rejected": "other"})
    batches = comparison_batches(
        Dataset.from_list(rows), RewardConfig(batch_size=4, texts_per_prompt=4, seed=0)
    )
    dealt = [
        pair for batch in itertools.islice(batches, 7) for pair in batch
    ]  # 26 responses: six sets of 4, one of 2
    # 4 responses have 6 pairs; the set of 2 shares a batch with the next set
    assert sorted(Counter(prompt for prompt, _, _ in dealt[:37]).values()) == [1, 18, 18]
    assert len({(p, t) for p, *both in dealt[:37] for t in both}) == 26
    assert all(
        texts.index(a) < texts.index(b) for p, a, b in dealt if p != "z"
    )  # the preferred one stays first
    other = comparison_batches(
        Dataset.from_list(rows), RewardConfig(batch_size=4, texts_per_prompt=4, seed=1)
    )
    assert next(other) != dealt[: len(next(other))]
    with pytest.raises(ValueError, match="no pairs"):
        next(
            comparison_batches(
                Dataset.from_dict({"prompt": [], "chosen": [], "rejected": []}), RewardConfig()
            )
        )


def test_scoring_each_response_once_gives_the_gradient_of_separate_pairs():
    tokenizer, pairs = (
        tiny_tokenizer(),
        [("p", "aa", "b"), ("p", "aa", "cccccc"), ("long prompt", "d" * 9, "e")],
    )
    texts = list(dict.fromkeys((p, t) for p, *both in pairs for t in both))

    def gradient(loss_of):
        model = ScalarModel(tiny_policy().base_model).double().eval()
        loss_of(model).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    def once(model):
        scores = dict(
            zip(texts, text_scores(model, tokenizer, texts, 8, micro_batch=2), strict=True)
        )
        return -torch.stack(
            [torch.nn.functional.logsigmoid(scores[p, a] - scores[p, b]) for p, a, b in pairs]
        ).mean()

    def plain(model):  # every pair by itself, without padding
        losses = []
        for p, a, b in pairs:
            first, second = (
                token_scores(model, encode(tokenizer, [p], [t], max_response=8))[0, -1]
                for t in (a, b)
            )
            losses.append(-torch.nn.functional.logsigmoid(first - second))
        return torch.stack(losses).mean()

    torch.testing.assert_close(gradient(once), gradient(plain), rtol=0, atol=1e-9)


def test_sft_learns_the_response_and_its_end_but_not_the_prompt():
    data = Dataset.from_list([{"prompt": p, "completion": "ok"} for p in PROMPTS])
    model, history = train_sft(
        tiny_policy(),
        tiny_tokenizer(),
        data,
        SFTConfig(batch_size=3, epochs=100, optimiser=FAST_LR),
    )
    assert history[0]["loss"] > 5 and history[-1]["loss"] < 0.1
    (rollout,) = sample_text(model, tiny_tokenizer(), PROMPTS, config=replace(SHORT, greedy=True))
    assert (
        rollout.response_mask.sum(1).tolist() == [3, 3, 3] and rollout.finished(0).all()
    )  # o, k, EOS


def test_the_gold_model_fits_ratings():
    reviews = [
        Review("aaa", "m", "gold", (3, 3), True),
        Review("xxx", "m", "gold", (-3, -1), False),
    ]
    config = GoldConfig(batch_size=2, epochs=60, dropout=0.0, optimiser=FAST_LR)
    model, history = train_gold(tiny_policy().base_model, tiny_tokenizer(), reviews, config)
    assert history[-1]["loss"] < 0.05 < history[0]["loss"]
    short = replace(config, epochs=2)
    rows = [
        train_gold(tiny_policy().base_model, tiny_tokenizer(), reviews, replace(short, dropout=p))[
            1
        ]
        for p in (0.0, 0.0, 0.5)
    ]
    assert rows[0] == rows[1] != rows[2]


@pytest.mark.parametrize(
    "make, field",
    [
        (lambda: PPOConfig(clip_eps=-0.1), "clip_eps"),
        (lambda: PPOConfig(lam=2.0), "lam"),
        (lambda: KLConfig(kl_coef=-1.0), "kl_coef"),
        (lambda: PPOConfig(batch_size=10, minibatch_size=4), "divisor"),
        (lambda: GroupConfig(group_size=1), "group of one"),
        (lambda: DPOConfig(beta=0.0), "beta"),
        (lambda: OptimiserConfig(lr=0.0), "lr"),
        (lambda: SFTConfig(epochs=0), "epochs"),
        (lambda: KLConfig(target=-1.0), "target"),
        (lambda: RewardConfig(steps=0), "steps"),
    ],
)
def test_a_wrong_setting_is_named(make, field):
    with pytest.raises(ValueError, match=field):
        make()


def test_sft_takes_steps_instead_of_epochs():
    rows = Dataset.from_list([{"prompt": "p", "completion": f"{i}"} for i in range(6)])

    def losses(**given):
        config = SFTConfig(batch_size=4, **given)
        return train_sft(tiny_policy(), tiny_tokenizer(), rows, config)[1].column("sft", "loss")

    assert losses(steps=3) == losses(epochs=2) and len(losses(steps=3)) == 3
    for given in ({"steps": 3, "epochs": 2}, {"steps": 0}):
        with pytest.raises(ValueError, match="left out where steps is given|steps is 0; it must"):
            SFTConfig(**given)
