"""Lesson 10, saving resources: every number of its prose, and every claim about a recorded run."""

import functools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from minirlhf import core, experiments, loops, models
from minirlhf.evaluate import paired_difference
from minirlhf.experiments.registry import EXPERIMENTS
from tests.claims.prose import lesson

SEEDS = range(3)
SFT, SHARED, LORA = "critic from the SFT model", "shared trunk", "adapters of rank 16"
PLAN = models.Plan(prompts=128, group_size=8, bf16=True)
SMALL = models.Plan(
    prompts=64, prompt_tokens=12, response_tokens=32, epochs=2, micro_batch=32
)  # lesson 06's PPO
SMALL_LLAMA = models.Shape(22, 2048, 32, 4, 5632, 32000)  # of exercise 6
NONE = {"critic": "none"}
H100_BYTES = models.H100.memory_bytes


# ---- the cost model


def peak(shape=models.LLAMA_70B, plan=PLAN, **change):
    return models.peak_bytes(models.four_models(replace(plan, **change), shape))


def parts(**change):
    return models.step_seconds(models.H100.times(64), replace(PLAN, **change), models.LLAMA_70B)


def gpus(size):
    return math.ceil(size / H100_BYTES)


def moments(shape, **change):
    """(bytes while sampling, bytes while training, bytes of each part), with all models."""
    table = models.four_models(replace(PLAN, **change), shape)
    held = {part: sum(row[part] for row in table.values()) for part in table["actor"]}
    held["activations"] = max(row["activations"] + row["logits"] for row in table.values())
    both = held["weights"] + held["optimiser"]
    return both + held["cache"], both + held["gradients"] + held["activations"], held


def test_the_worst_phase_is_sampling_at_7b_and_training_at_70b():
    for change in ({}, NONE, {"lora": 16}, {"lora": 16, "critic": "none"}):
        for shape, worst in ((models.LLAMA_7B, 0), (models.LLAMA_70B, 1)):
            sampling, training, _ = moments(shape, **change)
            assert peak(shape, **change) == max(sampling, training)
            assert (sampling, training)[worst] > (sampling, training)[1 - worst]


def kept_and_weights(shape):
    """Numbers that a block keeps per token, and weights of its matrices: from two depths."""
    tokens, one = 1000, replace(shape, layers=1)
    kept = models.activation_bytes(replace(shape, layers=2), 1, tokens)
    kept -= models.activation_bytes(one, 1, tokens)
    return kept / 4 / tokens / shape.width, one.matrices / shape.width**2


def test_the_rule_of_thumb_for_activations():
    kept, weights = kept_and_weights(models.TINY_REVIEWS)
    assert kept == pytest.approx(16, abs=0.1) and weights == 12
    for shape in (models.LLAMA_7B, models.LLAMA_70B, models.SMOLLM2_135M):
        kept, weights = kept_and_weights(shape)
        assert kept / weights == pytest.approx(1.7, abs=0.12)
    kept, weights = kept_and_weights(models.LLAMA_7B)  # the table of a block
    assert round(kept, 1) == 20.8 and round(weights, 1) == 12.1
    inner = models.LLAMA_7B.ffn / models.LLAMA_7B.width
    assert (round(inner, 1), round(4 * inner, 1), round(3 * inner, 1)) == (2.7, 10.8, 8.1)


def test_the_count_of_the_whole_model_includes_the_embedding_and_the_logits():
    tiny, numbers = models.TINY_REVIEWS, models.activation_bytes(models.TINY_REVIEWS, 16, 32) / 4
    blocks = tiny.layers * tiny.matrices
    assert numbers / blocks == pytest.approx(16 / 12 * 16 * 32 / tiny.width, rel=0.04)
    with_logits = models.activation_bytes(tiny, 16, 32, response=24) / 4
    embedding, logits = tiny.vocab * tiny.width, 16 * 24 * tiny.vocab
    assert tiny.parameters == pytest.approx(blocks + embedding, rel=0.02)
    assert with_logits - numbers == pytest.approx(logits, rel=0.04)


def test_what_each_saving_does_to_the_memory():
    four, none = peak(), peak(**NONE)
    assert 1.7 < four / none < 1.8
    assert abs(peak(critic="shared") / none - 1) < 0.01  # the shared trunk saves as much
    assert none / peak(critic="none", reward_model=False) < 1.12
    assert four / peak(lora=16, critic="shared") > 7
    assert peak(lora=16) < four / 5
    for one in ({"reward_model": False}, {"reference": False}):
        assert 0.04 < 1 - peak(**one) / four < 0.06


def test_what_each_saving_does_to_the_time():
    four = parts()
    assert abs(parts(critic="shared")["training"] / four["training"] - 0.5) < 0.01
    assert four["training"] / sum(four.values()) == pytest.approx(0.5, abs=0.04)
    lora = parts(lora=16)
    assert lora["sampling"] == four["sampling"] and lora["scoring"] == four["scoring"]
    assert parts(critic="shared")["scoring"] == four["scoring"] > parts(**NONE)["scoring"]


def ratio(shape=models.LLAMA_70B, machine=models.H100, **change):
    """Seconds of sampling over seconds of training, on 64 machines."""
    each = models.step_seconds(machine.times(64), replace(PLAN, **change), shape)
    return each["sampling"] / each["training"]


TOP = replace(models.H100, mfu=1, mbu=1)


def against_section_3():
    """By what sampling is shorter, beside training, than in section 3; the last one is a rise."""
    seven = models.LLAMA_7B
    fewer = ratio(seven, TOP, **NONE, prompt_tokens=1, response_tokens=1000)
    together = ratio(
        seven, TOP, **NONE, prompt_tokens=1, response_tokens=1000, prompts=125, decode_batch=100
    )
    return {
        "two models": ratio(**NONE) / ratio(),
        "speed": ratio(machine=TOP) / ratio(),
        "cache": ratio(seven) / ratio(),
        "64 together": fewer / together,
    }


def test_a_small_cache_makes_sampling_short_at_70b():
    seven, seventy = models.LLAMA_7B, models.LLAMA_70B
    beside = [models.kv_cache_bytes(x, 1, 1) / x.parameters for x in (seven, seventy)]
    assert beside[0] > 16 * beside[1]
    # with a cache 16 times as small, 7B has the ratio of 70B
    assert ratio(replace(seven, kv_heads=2)) == pytest.approx(ratio(seventy), rel=0.05)
    assert ratio(replace(seventy, kv_heads=64)) > 1.5 * ratio(seventy)


def test_scoring_takes_as_long_as_training_one_model():
    assert parts()["scoring"] == pytest.approx(parts(**NONE)["training"], rel=0.02)
    assert parts()["sampling"] < parts()["scoring"] < parts()["training"]


def test_scoring_in_one_piece_takes_more_than_everything_else():
    logits = 3 * 4 * PLAN.sequences * PLAN.response_tokens * models.LLAMA_7B.vocab
    assert logits > peak(models.LLAMA_7B)


def test_adapters_are_on_every_matrix_and_their_factor_is_two():
    policy = models.load_policy("tiny-reviews-sft")[0]
    adapted = models.with_lora(policy, rank=16)
    layers = [m for m in adapted.modules() if hasattr(m, "lora_A")]
    assert len(layers) == 4 * models.TINY_REVIEWS.layers  # GPT-2 has four matrices in a block
    assert {layer.scaling["default"] for layer in layers} == {2.0}


def test_the_adapters_were_trained_with_the_learning_rate_of_full_training():
    assert EXPERIMENTS["resources"][LORA] == {"lora": 16}  # and nothing else differs
    assert EXPERIMENTS["ablations"]["as it is"] == {}


def test_the_ratio_of_sampling_to_training_moves_more_than_tenfold():
    ratios = {}
    for critic in ("separate", "shared", "none"):
        each = [parts(critic=critic, decode_batch=n) for n in (8, 64, 512)]
        ratios[critic] = [p["sampling"] / p["training"] for p in each]
    assert ratios["none"][0] > 10 * ratios["none"][-1]
    assert ratios["shared"] == pytest.approx(ratios["none"])


def test_sampling_grows_less_with_the_batch_than_training():
    # The roofline of a slow, an ordinary and a fast CPU: FLOP and bytes per second, and the seconds
    # to start a block. Seconds themselves are not tested.
    for flop, size, start in ((1.7e10, 2.8e9, 2.8e-3), (4e10, 1e10, 7e-4), (1e11, 1e10, 4e-4)):
        cpu = models.Machine(flop, size, block_seconds=start)
        growth = []
        for seconds in (models.decode_seconds, models.train_seconds):
            plans = [models.Plan(n, 1, 8, 24, decode_batch=n, micro_batch=n) for n in (1, 64)]
            one, many = (seconds(cpu, models.TINY_REVIEWS, plan) for plan in plans)
            growth.append(many / one)
        assert 1 < growth[0] < 0.5 * growth[1]
        assert growth[0] < 16


def test_the_optimiser_dominates_in_a_wide_model_and_activations_in_a_narrow_one():
    wide = models.four_models(PLAN, models.LLAMA_7B)["actor"]
    trained = ("weights", "gradients", "optimiser", "activations")
    assert max(trained, key=wide.get) == "optimiser"
    tiny = models.four_models(replace(SMALL, micro_batch=16), models.TINY_REVIEWS)["actor"]
    assert max(trained, key=tiny.get) == "activations"


def actor_7b(**change):
    plan = replace(models.Plan(bf16=True, decode_batch=1), **change)
    return models.four_models(plan, models.LLAMA_7B)["actor"]


def kept_by_a_block(shape, rank=0):
    """Bytes that a block of a Llama in bfloat16 keeps, measured, over the count."""
    tokens, measured, counted = 64, [], []
    ids = torch.zeros(1, tokens, dtype=torch.long)
    for layers in (1, 2):
        config = LlamaConfig(
            hidden_size=shape.width,
            intermediate_size=shape.ffn,
            num_hidden_layers=layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads,
            vocab_size=shape.vocab,
        )
        model = LlamaForCausalLM(config).to(torch.bfloat16)
        model = models.with_lora(model, rank) if rank else model
        run = functools.partial(model, ids, use_cache=False)
        measured.append(models.measured(run)[0])
        one = replace(shape, layers=layers)
        counted.append(models.activation_bytes(one, 1, tokens, bf16=True))
    return (measured[1] - measured[0]) / (counted[1] - counted[0])


@pytest.mark.parametrize("kv_heads, ffn", [(8, 1376), (1, 1792)])  # as wide as at 7B and at 70B
def test_adapters_in_bfloat16_keep_more_than_the_count(kv_heads, ffn):
    shape = models.Shape(1, 512, 8, kv_heads, ffn, 64)
    assert kept_by_a_block(shape, rank=16) == pytest.approx(1.6, abs=0.05)
    assert kept_by_a_block(shape) == pytest.approx(1.1, abs=0.05)


def with_measured_adapters(shape, plan=PLAN, **change):
    """Bytes of a plan with adapters, if activations are 1.6 times the count."""
    plan = replace(plan, **change)
    table = models.four_models(plan, shape)
    for row in table.values():
        row["activations"] *= 1.6
    return models.peak_bytes(table)


# ---- the record

CURVE = ["kl_coef 2", "kl_coef 1", "kl_coef 0.5", "kl_coef 0.25"]


@pytest.fixture(scope="module")
def runs():
    return experiments.results("ablations", "resources", "leash")


@pytest.fixture(scope="module")
def history():
    return experiments.results("ablations_history", "resources_history")


def column(runs, variant, name):
    values = runs[runs.variant == variant].sort_values("seed")[name].tolist()
    assert len(values) == len(SEEDS)
    return values


def mean(runs, variant, name):
    return sum(column(runs, variant, name)) / 3


def seed_by_seed(runs, variant):
    """(difference in gold from the run as it is, low, high) of each seed, over films."""
    pairs = zip(*(column(runs, v, "gold_by_prompt") for v in (variant, "as it is")), strict=True)
    return [paired_difference(a, b) for a, b in pairs]


def both(runs, variant):
    table = experiments.difference_over_prompts_and_seeds(runs, "gold", "as it is", [variant])
    return tuple(table.loc[variant, ["low", "high"]])


def logged(history, variant, step, name):
    rows = history[(history.variant == variant) & (history.step == step)]
    assert len(rows) == len(SEEDS)
    return rows[name].mean()


def test_the_start_of_the_critic_makes_no_difference_in_gold(runs):
    assert all(low < d < 0 < high for d, low, high in seed_by_seed(runs, SFT))
    low, high = both(runs, SFT)
    assert low < 0 < high


def test_the_critic_from_the_reward_model_learns_sooner_on_every_seed(history):
    early = history[history.step == 5].pivot(
        index="seed", columns="variant", values="explained_variance"
    )
    assert (early["as it is"] > early[SFT] + 0.3).all()


def by_seed(runs, variant, other, name):
    """The variant's value minus that of another one, for each seed."""
    pairs = zip(column(runs, variant, name), column(runs, other, name), strict=True)
    return [a - b for a, b in pairs]


def from_the_line(runs, variant):
    """The gold of each run minus that of PPO with the same seed, at the same KL."""
    kl, gold = (np.array([column(runs, name, x) for name in CURVE]) for x in ("kl", "gold"))
    assert (np.diff(kl, axis=0) > 0).all()
    its = zip(column(runs, variant, "kl"), column(runs, variant, "gold"), strict=True)
    return [
        of_run - np.interp(np.log(at), np.log(kl[:, seed]), gold[:, seed])
        for seed, (at, of_run) in enumerate(its)
    ]


@pytest.fixture(scope="module")
def ahead(runs):
    """Distance from the line at equal KL, with intervals."""
    return experiments.above_curve(runs, "gold", CURVE, [SFT, SHARED])


def test_the_shared_trunk_goes_further_for_no_more_gold(runs):
    for other in ("as it is", SFT):
        assert min(by_seed(runs, SHARED, other, "kl")) > 0
        assert max(by_seed(runs, SHARED, other, "length")) < 0
    low, high = both(runs, SHARED)
    assert low < 0 < high
    assert not any(low > 0 for _, low, _ in seed_by_seed(runs, SHARED))


def test_at_equal_kl_the_shared_trunk_has_less_gold(runs, ahead):
    assert ahead.high[SHARED] < 0
    assert ahead.low[SFT] < 0 < ahead.high[SFT]
    assert max(from_the_line(runs, SHARED)) < min(from_the_line(runs, SFT))
    alone = experiments.above_curve(runs, "gold", CURVE, [SHARED], minus=SFT)
    assert alone.high[SHARED] < 0  # more than the start of the critic
    # by KL per token it is the same
    runs = runs.assign(per_token=runs.kl / runs.length)
    ahead = experiments.above_curve(runs, "gold", CURVE, [SHARED], kl="per_token")
    assert ahead.high[SHARED] < 0


def test_only_adapters_are_not_near_the_line(runs):
    low, high = mean(runs, CURVE[0], "kl"), mean(runs, CURVE[-1], "kl")
    kls = {name: mean(runs, name, "kl") for name in (SFT, SHARED, LORA)}
    assert [n for n, kl in kls.items() if not 0.9 * low <= kl <= 1.1 * high] == [LORA]
    assert kls[LORA] < low


def test_adapters_have_more_gold_at_less_kl_than_ppo_with_a_large_coefficient(runs):
    assert min(by_seed(runs, LORA, CURVE[0], "gold")) > 0
    assert max(by_seed(runs, LORA, CURVE[0], "kl")) < 0


def test_adapters_at_the_same_rate_have_less_gold_at_less_than_half_of_the_kl(runs, history):
    assert all(high < 0 for _, _, high in seed_by_seed(runs, LORA))
    assert both(runs, LORA)[1] < 0
    pairs = zip(column(runs, LORA, "kl"), column(runs, "as it is", "kl"), strict=True)
    assert all(a < b / 2 for a, b in pairs)
    config = loops.PPOConfig()
    assert config.actor.max_grad_norm == 1 and (config.steps, config.batch_size) == (24, 64)


# ---- the exact world


def two_prompts(gap, seeds=(0, 1)):
    prompts = []
    for seed, level in zip(seeds, (gap / 2, -gap / 2), strict=True):
        world = core.World.random(3, 3, seed=seed)
        mean = world.expectation(world.ref_logits, world.rewards)
        prompts.append(replace(world, rewards=world.rewards - mean + level))
    return prompts


def needed(prompts, advantages, size=1, sampled=None):
    """Responses until the noise of the mean gradient is as long as the gradient."""
    noise = length = 0.0
    for world in prompts:
        grads = torch.autograd.functional.jacobian(world.logprobs, world.ref_logits).flatten(2)
        groups, chance = world.groups(world.ref_logits, size)
        pushes = advantages(world, groups)
        if pushes.dim() == 2:
            by_response = grads.sum(1)[groups]
            estimates = torch.einsum("mg,mgd->md", pushes, by_response) / size
        else:
            estimates = torch.einsum("mgt,mgtd->md", pushes, grads[groups]) / size
        center = chance @ estimates
        noise += chance @ (estimates - center).square().sum(1)
        length += center.square().sum()
    return ((sampled or size) * noise / length).item()


def score(world, groups):
    return world.rewards[groups]


def true_mean(world, groups):
    return score(world, groups) - world.expectation(world.ref_logits, world.rewards)


def others(world, groups):
    return core.leave_one_out(score(world, groups))


def greedy(world, groups):
    return score(world, groups) - world.rewards[world.probs(1000 * world.ref_logits).argmax()]


def perfect(world, groups):
    values, q = world.values(world.ref_logits)
    advantages = (q - values[:, None])[world.visited, world.response_ids]
    return torch.where(world.response_mask, advantages, 0.0)[groups]


def large_batch(prompts):
    """REINFORCE++ with infinitely many responses: the mean over all tokens is the baseline."""
    total = tokens = 0.0
    for world in prompts:
        lengths = world.probs(world.ref_logits) * world.response_mask.sum(1)
        total, tokens = total + (lengths * world.rewards).sum(), tokens + lengths.sum()
    return needed(prompts, lambda w, g: score(w, g) - total / tokens)


@pytest.fixture(scope="module")
def at_two():
    some = two_prompts(2)
    return {
        "running": needed(some, score),
        "ReMax": needed(some, greedy, sampled=2),  # one sampled response and the greedy one
        "ReMax of four": needed(some, greedy) * 5 / 4,
        "RLOO": needed(some, others, 4),
        "RLOO of two": needed(some, others, 2),
        "true": needed(some, true_mean),
        "critic": needed(some, perfect),
        "REINFORCE++": large_batch(some),
    }


def test_the_order_of_the_baselines(at_two):
    order = ["critic", "true", "RLOO", "ReMax of four", "RLOO of two", "running", "ReMax"]
    assert sorted((k for k in at_two if k != "REINFORCE++"), key=at_two.get) == order
    assert at_two["critic"] < at_two["true"] / 2
    assert at_two["REINFORCE++"] == pytest.approx(at_two["running"], rel=0.01)
    centred = needed(
        two_prompts(2), lambda w, g: core.group_relative(score(w, g), scale_by_std=False), 4
    )
    assert centred == pytest.approx(at_two["RLOO"])  # a constant factor


def test_only_the_running_mean_depends_on_the_gap():
    near, far = two_prompts(0), two_prompts(2)
    assert needed(near, score) == pytest.approx(needed(near, true_mean))
    assert needed(near, score) < needed(near, others, 4) < needed(far, score)
    for advantages, size in ((true_mean, 1), (greedy, 1), (others, 2), (perfect, 1)):
        assert needed(near, advantages, size) == pytest.approx(needed(far, advantages, size))


def crossing():
    """The gap at which the running mean needs as many responses as RLOO."""
    low, high, rloo = 0.0, 2.0, needed(two_prompts(0), others, 4)
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (middle, high) if needed(two_prompts(middle), score) < rloo else (low, middle)
    return low


def test_the_order_is_the_same_in_ten_other_pairs_of_worlds():
    for first in range(2, 22, 2):
        some = two_prompts(0, (first, first + 1))
        critic, true, rloo = (
            needed(some, perfect),
            needed(some, true_mean),
            needed(some, others, 2),
        )
        # with groups of G, RLOO lies between the true mean and RLOO with groups of two
        assert critic < true < needed(some, others, 3) < rloo


# ---- every number of the prose


def test_the_numbers_of_the_prose(runs, history, ahead, at_two):
    trained, read = 16, 2
    seven, seventy = (n * 1e9 for n in (7, 70))
    room = H100_BYTES / 1e9
    sums = [2 * (trained + read) * n / 1e9 for n in (seven, seventy)]
    tiny = models.TINY_REVIEWS
    per_token, per_weight = 16, 12
    rule, llama_rule = per_token / per_weight, 1.7
    actor = models.four_models(PLAN, models.LLAMA_7B)["actor"]
    tokens = PLAN.tokens
    raw = replace(models.H100, mfu=1, mbu=1)
    reads = 2 * seven / raw.bytes_per_second  # of all weights, in seconds

    def computes(flop):
        return flop / raw.flop_per_second

    with lesson("10") as said:
        # 1: the idea
        said("In words, with", read, 7, 7, models.LLAMA_7B.parameters / 1e9)
        assert trained / read == 8
        said("| model | trained?", 7, 70)
        for name, each in (("actor", 16), ("critic", 16), ("reference", 2), ("reward model", 2)):
            said(f"| {name} |", each, *(each * n for n in (7, 70)))
        said("| **all four**", *sums)
        cards = [math.ceil(total / room) for total in sums]
        said("a large graphics processor (GPU), has room for", room, H100_BYTES / 2**30)
        said("these parts alone fill", cards[0], 7, cards[1], 70)
        said("The critic takes", trained * seven / 1e9 / sums[0])
        # 2: memory
        token = models.kv_cache_bytes(models.LLAMA_7B, 1, 1, bf16=True)
        said("new token. A", 7, 32, models.LLAMA_7B.width, 2, 2, 32, 4096, 2, token / 1e6)
        said(
            "A number has 4 bytes in the format *float32*, and 2 bytes in *bfloat16*. bfloat16",
            True,
        )
        said("Add an update of", 0.001, 1, 1)
        assert torch.tensor(1 + 0.001, dtype=torch.bfloat16) == 1
        said("A number has", 4, 2)
        assert 2 < -math.log10(torch.finfo(torch.bfloat16).eps) < 3
        said("| bfloat16 |", 2, 2, 4, 4, 4, 16)  # each count is tested in tests/models/test_cost.py
        for bf16 in (True, False):
            counts = (models.weights_bytes, models.gradient_bytes, models.optimiser_bytes)
            assert sum(count(1, bf16=bf16) for count in counts) == trained
        said("| float32 |", 4, 4, 4, 4, 0, 16)
        said("The batch has", 16, 8, 24, 32)
        at_once = 16 * 32
        said(
            "Our model has",
            16,
            32,
            at_once,
            rule * at_once / tiny.width,
            4 * rule * at_once / tiny.width,
            8,
        )
        whole = models.activation_bytes(tiny, 16, 32, response=24), 4 * tiny.parameters
        said("The moments take 8. (The", *(size / 1e6 for size in whole), whole[0] / whole[1])
        said("| part | weights, our model |", 7)
        said("For Llama the factor is", llama_rule, rule)
        said("**Predict.** A", 7)
        said("in bfloat16. A response has", tokens)
        said("In a step,", PLAN.decode_batch, PLAN.micro_batch == 1)
        by_rule = 2 * llama_rule * tokens / models.LLAMA_7B.width
        said("By the formula, one response makes", llama_rule, tokens, 4096, by_rule / 2, by_rule)
        said("The optimiser takes", 12, 12 / by_rule)
        times = actor["optimiser"] / actor["activations"]
        assert math.ceil(times) == math.ceil(12 / by_rule)
        said("So it takes", math.ceil(times))
        said(
            "The exact counts in the actor's row,",
            actor["optimiser"] / 1e9,
            actor["activations"] / 1e9,
        )
        sampling, training, all_of = moments(models.LLAMA_7B)
        weights, optimiser, gradients, activations, cache = (
            all_of[part] / 1e9
            for part in ("weights", "optimiser", "gradients", "activations", "cache")
        )
        said("| sampling, GB |", weights, optimiser, cache, sampling / 1e9)
        said("| training, GB |", weights, optimiser, gradients, activations, training / 1e9)
        said("So the worst phase is sampling", sampling > training)
        llama = models.LLAMA_7B
        said("is sampling. Four", 7, peak(llama) / 1e9, gpus(peak(llama)), cards[0])
        # 3: time
        said("An H100 does at most", raw.flop_per_second / 1e9, raw.bytes_per_second / 1e9)
        said("machine reads all weights:", 2 * seven / 1e9)
        said("To write one token with a", 7)
        said("That takes", 14, raw.bytes_per_second / 1e9, 1000 * reads)
        said("The arithmetic, 2 ·", 7, 14, 1000 * computes(14e9))
        said("The arithmetic,", 2)
        said("How long does the next token take for one response, for", 20, 100)
        said("**Predict.** Each response has", 500)
        cache = 500 * token

        def step(n):
            return raw.seconds(2 * seven * n, 2 * seven + cache * n)

        reading = cache / raw.bytes_per_second
        said("The three times are", *(1000 * step(n) for n in (1, 20, 100)))
        said("For one and for", 20)
        said("it is the cache, with", 100 * 1000 * reading)
        said("longest. For", 100)
        assert all(raw.seconds(14e9 * n, 0) < step(n) for n in (1, 20, 100))
        assert 2.7 < step(100) / step(1) < 3.1
        assert raw.seconds(14e9 * 100, 0) < 100 * reading > reads > 20 * reading
        said("behind the reading. So", 100)
        said("of a response in one pass. Take", 100, 1000)
        said("the cache holds", 500)
        arithmetic, caches = computes(2 * seven * 1e5), 1e5 * reading
        alone, together = 1e5 * reads + caches, 1000 * reads + caches
        training = computes(6 * seven * 1e5)
        said("| sample them one after the other |", 1e5, 1e5 * reads, caches, arithmetic, alone)
        said("| sample them together |", 1000, 1000 * reads, caches, arithmetic, together)
        said("| train on them, one by one", 300, 300 * reads, training, training)
        said("sampling takes a hundred times", 98 < alone / training < 102)
        said("it takes three times as long", 2.7 < together / training < 3.1)
        full = 100 * 1000 * token
        said("the cache of the", 100, full / 1e9, 14)
        # 4: LoRA
        said("$U$ is", 0)
        said("so $s$ is", 2)  # tested above
        adapter = 16 * (4096 + 4096)
        said("For a matrix of", 4096, 4096, 16, 16, 4096, 4096, adapter, adapter / 4096**2)
        said("matrices are narrow: there it is", tiny.adapters(16) / tiny.parameters, 2, 16, 16)
        # 5: the savings
        said(
            "It samples",
            PLAN.sequences,
            PLAN.response_tokens,
            PLAN.prompt_tokens,
        )
        said("| **LoRA of rank", 16, 16)
        savings(said)
        said("shows four plans at", 7)
        said("For all four plans the worst phase is sampling", True)  # tested above
        for change in ({"lora": 16}, {"lora": 16, "critic": "none"}):
            sampling, _, held = moments(llama, **change)
            said("With LoRA most of it is cache", held["cache"] > sampling / 2)
        # 6: the record
        films = len(runs[runs.variant == "as it is"].gold_by_prompt.iloc[0])
        said("as in lesson 06:", 24, 64, 3)
        said("minibatches of", SMALL.micro_batch)
        said("is measured on", films)
        assert SMALL.micro_batch == loops.PPOConfig().minibatch_size
        saved = 1 - peak(tiny, SMALL, lora=16) / peak(tiny, SMALL)
        said("adapters save only a third", abs(saved - 1 / 3) < 0.03)
        said("| KL coefficient |", *(float(name.split()[1]) for name in CURVE))
        said("| KL, nats |", *(mean(runs, name, "kl") for name in CURVE))
        said("| gold |", *(mean(runs, name, "gold") for name in CURVE))
        said("(*As it is* has the coefficient", loops.PPOConfig().kl.kl_coef)
        said("no comparison.** They end at", mean(runs, LORA, "kl"))
        assert mean(runs, LORA, "kl") < mean(runs, CURVE[0], "kl")
        for name in (SFT, SHARED):
            said(f"| {name} |", *ahead.loc[name, ["difference", "low", "high"]])
        said("| *adapters of rank", 16)
        said("All three seeds lie below the line", max(from_the_line(runs, SHARED)) < 0)
        said("is smaller, and its interval includes", 0, ahead.low[SFT] < 0 < ahead.high[SFT])
        assert abs(ahead.difference[SFT]) < abs(ahead.difference[SHARED])
        gold = mean(runs, CURVE[0], "gold") < mean(runs, LORA, "gold")
        said("PPO with the coefficient", 2, gold)
        # 7: the family
        said("have the scores", 4, 2, 2, 0, 8, 6, 6, 4, 4, 3)
        family(said)
        a_group_pays(said)
        # to remember
        said("- In bfloat16 a trained weight takes", 16, 2)
        said("- At", 70, 1 - peak(critic="shared") / peak())
        said("LoRA saves more, but only", 1 - step_time(lora=16) / step_time())
        exercises(said)
        answers(said)
        further(said)
        further_about_the_record(said, runs, history)
        further_about_the_noise(said, at_two)


def step_time(**change):
    return sum(parts(**change).values())


def savings(said):
    """The table of section 5, and what it says."""
    shape = models.LLAMA_7B
    said("- The memory,", 7, 70)
    said("In the", 70, models.LLAMA_70B.heads, models.LLAMA_70B.kv_heads)
    said("**training**: seconds at", 70, 64, models.H100.mfu, models.H100.mbu)
    said("saves most memory at", 70)
    said("| plan |", 7, 70)
    both = {"lora": 16, "critic": "none"}
    plans = {
        "PPO, four models": {},
        "critic on the actor's trunk": {"critic": "shared"},
        "LoRA of rank 16": {"lora": 16},
        "no critic": NONE,
        "a rule, no reward model": {"reward_model": False},
        "no reference": {"reference": False},
        "LoRA and no critic": both,
    }
    for name, change in plans.items():
        sizes = (peak(x, **change) / 1e9 for x in (shape, models.LLAMA_70B))
        words, rank = (name[:-3], [16]) if name.endswith(" 16") else (f"{name} |", [])
        said(f"| {words}", *rank, *sizes, *parts(**change).values())
    singles = [change for change in plans.values() if len(change) == 1]
    said("LoRA saves most,", min(singles, key=lambda x: peak(**x)) == {"lora": 16})
    said("- **Memory at", 70, 1 - peak(lora=16) / peak(), 1 - peak(**NONE) / peak())
    for change in ({"reward_model": False}, {"reference": False}):
        said("leaving out a model that is only read", 1 - peak(**change) / peak())
    more = gpus(with_measured_adapters(models.LLAMA_70B, **both))
    said("LoRA without a critic needs", gpus(peak(**both)), gpus(peak()), more, 7)
    assert gpus(with_measured_adapters(shape, **both)) == gpus(peak(shape, **both)) == 1
    less = 1 - parts(lora=16)["training"] / parts()["training"]
    said("LoRA saves a third of it", abs(less - 1 / 3) < 0.01)
    said("gradients of frozen weights), but only", 1 - step_time(lora=16) / step_time())
    factor = against_section_3()
    said("two models are trained (a factor of", factor["two models"])
    gpu = models.H100
    said("The GPUs reach", gpu.mfu, gpu.mbu, factor["speed"], 70, factor["cache"], 7)
    assert 1 < factor["64 together"] < min(v for k, v in factor.items() if k != "64 together")


def family(said):
    """The table of advantages by hand, of the hard prompt."""
    hard = torch.tensor([4.0, 2, 2, 0])
    said("| method | computed as |", *hard.tolist())
    every = torch.tensor([4.0, 2, 2, 0, 8, 6, 6, 4])
    size = every.std(correction=0).item()
    said("| REINFORCE | score −", 4, *(hard - 4).tolist())
    said("| REINFORCE++ | batch mean", every.mean(), *((hard - 4) / size).tolist())
    said("| ReMax | score −", 3, *(hard - 3).tolist())
    said("| RLOO | for the first:", 4, 2, 2, 0, 3, *core.leave_one_out(hard[None])[0].tolist())
    said("| GRPO | group mean", hard.mean(), *core.group_relative(hard[None])[0].tolist())


def a_group_pays(said):
    """When a group of four has less noise than the mean of all scores."""
    said("the scores of each prompt have variance", 1)
    said("*REINFORCE* subtracts", 0)
    cross = math.sqrt(4 / 3)
    said("1/3$, at a gap of", cross)
    said("line rises from", 1, 1 + 2**2 / 4)
    torch.manual_seed(0)
    for gap in (0, cross, 2):
        scores = torch.randn(50_000, 4) + gap / 2 * torch.tensor([1.0, -1]).repeat(25_000)[:, None]
        assert scores.square().mean() == pytest.approx(1 + gap**2 / 4, rel=0.02)
        assert core.leave_one_out(scores).square().mean() == pytest.approx(4 / 3, rel=0.02)


def exercises(said):
    lora = actor_7b(lora=16)
    said("true counts as", 1)
    said("two models of", 7)
    said("`weights` has the number of weights", 4, 4)
    said("in bfloat16. Each response has", 512, 1024)
    plan = models.Plan(bf16=True, decode_batch=1)
    tiny, large = models.SMOLLM2_135M, models.LLAMA_70B
    a = models.four_models(replace(plan, micro_batch=4), tiny)["actor"]
    b = models.four_models(replace(plan, micro_batch=16), large)["actor"]
    d = models.four_models(replace(plan, decode_batch=64), large)["actor"]
    parts_ = ("weights", "gradients", "optimiser", "activations")
    found = [max(parts_, key=x.get) for x in (a, b, lora)]
    assert found == ["activations", "optimiser", "weights"] and d["weights"] > d["cache"]
    said("| A |", tiny.parameters / 1e6, tiny.layers, tiny.width, 4)
    said("| B | ", 70, large.layers, large.width, 16)
    said("| C | ", 7, 32, 4096, 16, models.LLAMA_7B.adapters(16) / 1e6)
    said("| D | ", 70, large.layers, large.width, 64)
    said("*Hint:* the", 70, large.heads, large.kv_heads, large.width / large.keys)
    said("Then count on paper, for", 4096, 4096, 16)
    said("to make", 16)
    said("gets the advantage", 0)
    said("You have one GPU with room for", 24, SMALL_LLAMA.parameters / 1e9)
    assert PLAN.decode_batch == 64 and PLAN == replace(
        models.Plan(bf16=True), prompts=128, group_size=8
    )


def answers(said):
    """The folded answers of the exercises."""
    rule = 1.7
    # 2: the largest part
    plan = models.Plan(bf16=True, decode_batch=1)
    tiny, large, llama = models.SMOLLM2_135M, models.LLAMA_70B, models.LLAMA_7B
    a = models.four_models(replace(plan, micro_batch=4), tiny)["actor"]
    b = models.four_models(replace(plan, micro_batch=16), large)["actor"]
    c = actor_7b(lora=16)
    d = models.four_models(replace(plan, decode_batch=64), large)["actor"]
    said("- **A: the activations.**", a["activations"] / 1e9, a["optimiser"] / 1e9)
    kept = rule * 4 * plan.tokens / tiny.width
    said("narrow: by the formula,", rule, 4, plan.tokens, tiny.width, kept, 2 * round(kept))
    assert 2 * kept * tiny.parameters == pytest.approx(a["activations"], rel=0.05)
    said("- **B: the optimiser.**", b["optimiser"] / 1e9, b["activations"] / 1e9)
    kept = rule * 16 * plan.tokens / large.width
    said("wide that even", 16, 2 * kept, 12)
    assert 2 * kept * large.parameters == pytest.approx(b["activations"], rel=0.05)
    said("- **C: the weights.**", c["weights"] / 1e9, llama.adapters(16) / 1e6)
    said("have gradients", c["gradients"] / 1e9, c["optimiser"] / 1e9, 4, 8)
    kept = 2 * rule * plan.tokens / llama.width
    said("The activations are the second part:", kept, c["activations"] / 1e9)
    assert kept * llama.parameters == pytest.approx(c["activations"], rel=0.05)
    assert sorted(c, key=c.get)[-2:] == ["activations", "weights"]
    token = models.kv_cache_bytes(large, 1, 1, bf16=True)
    said("- **D: the weights.**", d["weights"] / 1e9, 2, large.layers, large.keys, 2, token / 1e6)
    said("bytes, 0.33 MB. With", 64, plan.tokens - 1, d["cache"] / 1e9)
    wide = models.kv_cache_bytes(replace(large, kv_heads=64), 64, plan.tokens - 1, bf16=True) / 1e9
    said("as wide as the model it would be", wide, wide > d["weights"] / 1e9)
    # 3: multiplications
    said("one after the other take", 16, 4096, 16, 4096, 16 * 2 * 4096)
    said("The product of both has", 4096, 4096, 4096**2 / 1e6, 16 * 4096**2 / 1e6)
    # 6: the budget

    def gb(**change):
        return peak(SMALL_LLAMA, models.Plan(bf16=True), **change) / 1e9

    table = models.four_models(models.Plan(bf16=True), SMALL_LLAMA)
    actor, billions = table["actor"], SMALL_LLAMA.parameters / 1e9
    assert actor["cache"] < actor["gradients"] + actor["activations"] + actor["logits"]
    said("The worst phase is training: the cache takes", actor["cache"] / 1e9)
    said("Two trained models of", billions, 16, 2 * billions, 16 * 2 * billions)
    said("So full PPO is out: it needs", gb(), gb() > 24)
    others = [table[name]["weights"] / 1e9 for name in ("reference", "reward")]
    said("Without a critic the actor takes", 16 * billions, *others)
    said("With activations and logits it is", gb(**NONE), gb(**NONE) > 24)
    fits = {
        "**No critic, and recompute**:": {"critic": "none", "recompute": True},
        "**No critic, and no reference**:": {"critic": "none", "reference": False},
        "**LoRA, with all four models**:": {"lora": 16},
    }
    for words, change in fits.items():
        said(words, gb(**change), gb(**change) < 24)
    seconds = [
        sum(
            models.step_seconds(models.H100, models.Plan(bf16=True, **change), SMALL_LLAMA).values()
        )
        for change in ({"critic": "none", "recompute": True}, NONE)
    ]
    said("in training, a third more arithmetic", *seconds)
    measured = [
        with_measured_adapters(SMALL_LLAMA, plan=models.Plan(bf16=True), lora=16, micro_batch=n)
        / 1e9
        for n in (1, 2, 3, 4)
    ]
    said("9.8 GB by our count, or", measured[0], 1.6)
    said("room for three responses at a time", measured[2], measured[2] < 24 < measured[3])


def further(said):
    shape = models.LLAMA_70B
    token = models.kv_cache_bytes(shape, 1, 1, bf16=True)
    many = models.kv_cache_bytes(replace(shape, kv_heads=64), 1, 1, bf16=True)
    said("To make the cache smaller. Our", 70, shape.heads, shape.kv_heads)
    said("a token of its cache takes 2 ·", 80, 8, 128, 2, token, shape.layers, 128)
    said("a token of its cache takes", 2)
    said(
        "holds nothing else has room for",
        round(H100_BYTES / token, -3),
        64,
        round(H100_BYTES / many, -3),
    )
    said("The cell samples", 1, 64, 64)
    said("one response per pass, and", PLAN.decode_batch)
    said("into *starting* operations. All", 64)
    said("the factor is far below", 64)  # tested above
    said("weights, it keeps about", 1.6)  # tested above
    said("For section 2's", 7)  # tested above
    left_out = 8 * 16 * 32 * 2 + (8 + 4) * 16 * 24  # ids, and what is returned (test_cost.py)
    kept = models.activation_bytes(models.TINY_REVIEWS, 16, 32, response=24)
    said("which the count leaves out", left_out / (kept + left_out))
    raw = models.H100
    seven = models.kv_cache_bytes(models.LLAMA_7B, 1, 500, bf16=True) / raw.bytes_per_second
    training = 6 * 7e9 / raw.flop_per_second
    assert seven > training
    said("In section 3's", 7, 500, 1000 * seven, 1000 * training)
    said("sampling always takes longer. Our", 70)
    said("a smaller cache. With", 49)
    equal = parts(decode_batch=49, **NONE)
    assert abs(equal["sampling"] / equal["training"] - 1) < 0.01
    few, many = (parts(decode_batch=n, **NONE) for n in (8, 512))
    ratios = [p["sampling"] / p["training"] for p in (few, many)]
    said("sampling takes as long as training. With", 8, ratios[0], 512, ratios[1])
    said("Section 5 decodes", PLAN.decode_batch)
    many, usual = (parts(decode_batch=n) for n in (512, 64))
    said("one response per GPU. With", 512, many["sampling"], usual["sampling"], 70)
    assert PLAN.decode_batch == 64
    assert peak(decode_batch=512) == peak()
    said("spreads the", 16)
    said("runs any of the", len(loops.FAMILY))


def further_about_the_record(said, runs, history):
    alone = experiments.above_curve(runs, "gold", CURVE, [SHARED], minus=SFT).loc[SHARED]
    said("At equal KL the shared trunk still has", -alone.difference, -alone.high, -alone.low)
    longer = logged(history, SHARED, 0, "grad_norm") / logged(history, SFT, 0, "grad_norm")
    said("clipped to length", loops.PPOConfig().actor.max_grad_norm, longer)
    explained = {
        step: [logged(history, v, step, "explained_variance") for v in ("as it is", SFT)]
        for step in (5, 10)
    }
    said("After five steps", *explained[5])
    said("After ten steps it is", *explained[10])
    further = [
        a / b for a, b in zip(column(runs, SHARED, "kl"), column(runs, SFT, "kl"), strict=True)
    ]
    said("On each seed its KL is higher, too", min(further), max(further))
    rising = [
        sum(logged(history, LORA, step, "score") for step in steps) / 4
        for steps in (range(10, 14), range(20, 24))
    ]
    said("its mean is", rising[0], 10, 13, rising[1], 20, 23)
    lowest = min(column(runs, CURVE[0], "kl"))
    said("moved less than any run of the line", max(column(runs, LORA, "kl")) < lowest)
    low, high = both(runs, SFT)
    difference = mean(runs, SFT, "gold") - mean(runs, "as it is", "gold")
    six = [g for name in ("as it is", "kl_coef 0.5") for g in column(runs, name, "gold")]
    said("For gold the difference from", difference, 0, low < 0 < high)
    said("more runs of *as it is*:", mean(runs, SFT, "gold") - sum(six) / len(six))
    for words, variant in (
        ("The gold of the shared trunk differs by", SHARED),
        ("Those of the adapters are", LORA),
    ):
        said(words, *by_seed(runs, variant, "as it is", "gold"), *both(runs, variant))


def further_about_the_noise(said, at_two):
    near, worlds = two_prompts(0), two_prompts(2)
    said("Two prompts, each with", len(core.World.random(3, 3, seed=0).sequences))
    said("| baseline |", 0, 2)
    for words, key, method in (
        ("| a perfect critic |", "critic", (perfect, 1)),
        ("| the prompt's true mean |", "true", (true_mean, 1)),
        ("| RLOO, groups of four |", "RLOO", (others, 4)),
        ("| RLOO, groups of two |", "RLOO of two", (others, 2)),
        ("| REINFORCE, mean of earlier batches |", "running", (score, 1)),
    ):
        said(words, needed(near, *method), at_two[key])
    four, one = needed(near, greedy) * 5 / 4, needed(near, greedy, sampled=2)
    said("| ReMax, four responses and the greedy one |", four, at_two["ReMax of four"])
    said("| ReMax, one response and the greedy one |", one, at_two["ReMax"])
    said("have a variance of", variance(worlds), 1)
    said("cross at a gap of", by_the_formula(worlds), math.sqrt(4 / 3))
    said("In fact they cross at about", round(crossing() * 20) / 20)


def variance(worlds):
    """The mean variance of a prompt's scores."""
    variances = []
    for world in worlds:
        chance, center = (
            world.probs(world.ref_logits),
            world.expectation(world.ref_logits, world.rewards),
        )
        variances.append((chance * (world.rewards - center).square()).sum().item())
    return sum(variances) / len(variances)


def by_the_formula(worlds):
    """The gap at which g^2 / 4 is a third of this variance."""
    return math.sqrt(4 / 3 * variance(worlds))


# ---- exercise 4


def test_with_trained_biases_the_model_without_adapters_is_no_reference():
    policy, tokenizer = models.load_policy("tiny-reviews-sft")
    ids, mask = models.encode_prompts(tokenizer, ["a cold day in august\n"] * 4)
    limit = models.SamplingConfig(max_new_tokens=8)
    batch = models.sample(policy, ids, mask, eos_id=-1, config=limit)
    with torch.no_grad():
        start = models.policy_logprobs(policy, batch)
    for biases in (False, True):
        model = models.with_lora(models.load_policy("tiny-reviews-sft")[0], rank=16)
        for name, weight in model.named_parameters():
            if biases and name.endswith("bias"):
                weight.requires_grad_(True)
        optimizer = loops.make_optimizer(model, loops.OptimiserConfig(lr=1e-3))
        (-models.policy_logprobs(model, batch).mean()).backward()
        optimizer.step()
        with torch.no_grad(), model.disable_adapter():
            off = models.policy_logprobs(model, batch)
        assert torch.allclose(off, start, atol=1e-5) != biases
        if biases:  # the reference has moved the same way, so the log-ratio is too small
            assert off.sum() > start.sum()
