"""Lesson 10, saving resources: every number of its prose, and every claim about a recorded run."""

import math
from dataclasses import replace

import pytest
import torch

from minirlhf import core, experiments, loops, models
from minirlhf.evaluate import paired_difference
from tests.claims.prose import lesson

SEEDS = range(3)
SFT, SHARED, LORA = "critic from the SFT model", "shared trunk", "adapters of rank 16"
PLAN = models.Plan(prompts=128, group_size=8, bf16=True)
SMALL = models.Plan(
    prompts=64, prompt_tokens=12, response_tokens=32, epochs=2, micro_batch=32
)  # lesson 06's PPO
NONE = {"critic": "none"}
H100_BYTES = models.H100.memory_bytes


# ---- the cost model


def peak(shape=models.LLAMA_70B, plan=PLAN, **change):
    return models.peak_bytes(models.four_models(replace(plan, **change), shape))


def parts(**change):
    return models.step_seconds(models.H100.times(64), replace(PLAN, **change), models.LLAMA_70B)


def gpus(size):
    return math.ceil(size / H100_BYTES)


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


# ---- the record


@pytest.fixture(scope="module")
def runs():
    return experiments.results("ablations", "resources")


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


def test_the_shared_trunk_goes_further_for_no_more_gold(runs):
    for name, more in (("kl", 1), ("length", -1)):
        pairs = zip(column(runs, SHARED, name), column(runs, "as it is", name), strict=True)
        assert all(more * (a - b) > 0 for a, b in pairs)
    low, high = both(runs, SHARED)
    assert low < 0 < high
    assert not any(low > 0 for _, low, _ in seed_by_seed(runs, SHARED))


def test_adapters_at_the_same_rate_have_less_gold_at_less_than_half_of_the_kl(runs, history):
    assert all(high < 0 for _, _, high in seed_by_seed(runs, LORA))
    assert both(runs, LORA)[1] < 0
    pairs = zip(column(runs, LORA, "kl"), column(runs, "as it is", "kl"), strict=True)
    assert all(a < b / 2 for a, b in pairs)
    last = [logged(history, LORA, step, "score") for step in (10, 15, 20, 23)]
    assert last == sorted(last)  # still rising
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


def test_the_numbers_of_the_prose(runs, history, at_two):
    trained, read = 16, 2
    seven, seventy = (n * 1e9 for n in (7, 70))
    room = H100_BYTES / 1e9
    sums = [2 * (trained + read) * n / 1e9 for n in (seven, seventy)]
    tiny = models.TINY_REVIEWS
    per_token, per_weight = 16, 12
    rule = per_token / per_weight
    actor = models.four_models(PLAN, models.LLAMA_7B)["actor"]
    tokens = PLAN.tokens
    raw = replace(models.H100, mfu=1, mbu=1)
    reads = 2 * seven / raw.bytes_per_second  # of all weights, in seconds

    def computes(flop):
        return flop / raw.flop_per_second

    with lesson("10") as said:
        # 1: the idea
        said("In words: a weight that is trained takes eight times", read, 7, 7)
        assert trained / read == 8
        said("| model | trained?", 7, 70)
        for name, each in (("actor", 16), ("critic", 16), ("reference", 2), ("reward model", 2)):
            said(f"| {name} |", each, *(each * n for n in (7, 70)))
        said("| **all four**", *sums)
        cards = [math.ceil(total / room) for total in sums]
        said("processor (GPU), has room for", room, H100_BYTES / 2**30)
        said("these parts alone fill", cards[0], 7, cards[1], 70)
        said("The critic takes", trained * seven / 1e9 / sums[0])
        # 2: memory
        token = models.kv_cache_bytes(models.LLAMA_7B, 1, 1, bf16=True)
        said("In a", 7, 32, models.LLAMA_7B.width, 2, 2, 32, 4096, 2, token / 1e6)
        said("A number has", 4, 2)
        said("| bfloat16 |", 2, 2, 4, 4, 4, 16)
        said("| float32 |", 4, 4, 4, 4, 0, 16)
        said("The batch has", 16, 8, 24, 32)
        said("The model has", tiny.parameters / 1e6, 4, models.weights_bytes(tiny.parameters) / 1e6)
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
        said("**Predict.** A", 7)
        said("in bfloat16. A response has", tokens)
        said("For each token, a block of width", per_token)
        by_rule = 2 * rule * tokens / models.LLAMA_7B.width
        said("By the rule, one response makes", rule, tokens, 4096, by_rule / 2, by_rule)
        said("The optimiser takes", 12, 12 / by_rule)
        times = actor["optimiser"] / actor["activations"]
        assert 9 < times < 10  # nine are not enough
        said("in the actor's row, are", actor["optimiser"] / 1e9, actor["activations"] / 1e9, 10)
        said("The cache of", PLAN.decode_batch, actor["cache"] / 1e9)
        said("Altogether, four", 7, peak(models.LLAMA_7B) / 1e9, gpus(peak(models.LLAMA_7B)), 3)
        # 3: time
        said("An H100 does at most", raw.flop_per_second / 1e9, raw.bytes_per_second / 1e9)
        said("machine reads all weights:", 2 * seven / 1e9)
        said("To write one token with a", 7)
        said("That takes", 14, raw.bytes_per_second / 1e9, 1000 * reads)
        said("The arithmetic, 2 ·", 7, 14, 1000 * computes(14e9))
        said("The arithmetic,", 2)
        said("Each response has 500 tokens so far. How long", 100, 500)
        said("**Predict.** Each response has", 500)
        cache = 500 * token

        def step(n):
            return raw.seconds(2 * seven * n, 2 * seven + cache * n)

        reading = cache / raw.bytes_per_second
        said("The three times are", *(1000 * step(n) for n in (1, 100, 500)))
        said("it is the cache, with", 100 * 1000 * reading)
        said("longest. For", 100)
        assert all(raw.seconds(14e9 * n, 0) < step(n) for n in (1, 100, 500))
        assert 2.7 < step(100) / step(1) < 3.1
        assert raw.seconds(14e9 * 100, 0) < 100 * reading > reads > reading
        said("behind the reading. So", 100)
        said("But each adds", 1000 * reading)
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
        said("No more than", (H100_BYTES - 14e9) // (1000 * token))
        # 4: LoRA
        said("$U$ is", 0)
        adapter = 16 * (4096 + 4096)
        said("For a matrix of", 4096, 4096, 16, 16, 4096, 4096, adapter, adapter / 4096**2, 2, 16)
        # 5: the savings
        said(
            "It samples",
            PLAN.sequences,
            PLAN.response_tokens,
            PLAN.prompt_tokens,
            PLAN.decode_batch,
        )
        said("- The memory,", 7, 70)
        said("**training**: seconds at", 70, 64, models.H100.mfu, models.H100.mbu)
        said("- **PPO, four models.** At", 70, gpus(peak()))
        llama = models.LLAMA_7B
        shared, narrow = (1 - peak(x, critic="shared") / peak(x) for x in (models.LLAMA_70B, llama))
        said("That saves half of the training, and", shared, 70, narrow, 7)
        dropped = [1 - peak(x, **NONE) / peak(x) for x in (models.LLAMA_70B, llama)]
        assert dropped == pytest.approx([shared, narrow], abs=0.005)
        left = [peak(x, lora=16) / peak(x) for x in (models.LLAMA_70B, llama)]
        said("Memory falls to", left[0], 70, left[1], 7)
        times = [sum(parts(**change).values()) for change in ({"lora": 16}, {})]
        said("the whole step", *times)
        less = 1 - parts(lora=16)["training"] / parts()["training"]
        said("Training takes a third less", abs(less - 1 / 3) < 0.01)
        less = 1 - parts(**NONE)["scoring"] / parts()["scoring"]
        said("and a third of the scoring", abs(less - 1 / 3) < 0.01)
        said("has at most rank", 16)
        said("It saves only", 1 - peak(reward_model=False) / peak())
        said("Savings combine:", gpus(peak(lora=16, critic="none")), gpus(peak()), 70)
        said("shows the parts of four plans at", 7)
        rows = models.four_models(replace(PLAN, lora=16), llama)
        total = {part: sum(row[part] for row in rows.values()) for part in rows["actor"]}
        said("With LoRA the cache is the largest", max(total, key=total.get) == "cache")
        said("largest part. Decoding", PLAN.decode_batch / 2, PLAN.decode_batch)
        # 6: the record
        films = len(runs[runs.variant == "as it is"].gold_by_prompt.iloc[0])
        said("as in lesson 06:", 24, 64, 3)
        said("minibatches of", SMALL.micro_batch)
        said("is measured on", films)
        assert SMALL.micro_batch == loops.PPOConfig().minibatch_size
        saved = 1 - peak(tiny, SMALL, lora=16) / peak(tiny, SMALL)
        said("adapters save only a third", abs(saved - 1 / 3) < 0.03)
        said("If it includes", 0)
        for variant in (SFT, SHARED):
            low, high = both(runs, variant)
            assert low < 0 < high
        explained = {
            step: [logged(history, v, step, "explained_variance") for v in ("as it is", SFT)]
            for step in (5, 10)
        }
        said("- **Critic from the SFT model: yes, for gold.** The interval includes", 0)
        said("After five steps", *explained[5])
        said("After ten steps it is", *explained[10])
        said("- **Shared trunk: roughly.** The interval includes", 0)
        kl = [
            a / b
            for a, b in zip(column(runs, SHARED, "kl"), column(runs, "as it is", "kl"), strict=True)
        ]
        said("on every seed its KL is higher", min(kl), max(kl))
        longer = logged(history, SHARED, 0, "grad_norm") / logged(history, SFT, 0, "grad_norm")
        said("of both losses together is", longer, loops.PPOConfig().actor.max_grad_norm)
        # 7: the family
        said("have the scores", 4, 2, 2, 0, 8, 6, 6, 4, 4, 3)
        family(said)
        said("each with", len(core.World.random(3, 3, seed=0).sequences))
        said("its running mean is", 0)
        said("The gap is", 2)
        said("if the gap were", 0)
        coin = torch.tensor([3.0, -1])
        said("Say the gradient is", *coin, coin.mean(), coin.std(correction=0))
        assert coin.var(correction=0) / coin.mean() ** 2 == 4
        said("so its $n^*$ counts", 5 / 4)
        said("it pays two for one,", at_two["ReMax"])
        order = ("critic", "true", "RLOO", "ReMax of four", "running")
        said("At a gap of", 2, *(at_two[name] for name in order))
        near = two_prompts(0)
        said("Without a gap the running mean needs", needed(near, score), needed(near, others, 4))
        said("is ahead from a gap of about", round(crossing() * 20) / 20)
        said("as noisy as the running mean", at_two["REINFORCE++"], 2)
        # to remember
        said("- In bfloat16 a trained weight takes", 16, 2)
        said("sharing or dropping the critic saves", shared)
        said("- At", 70)
        said("but the step takes only", 1 - times[0] / times[1])
        exercises(said)
        further(said, runs, at_two)


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
    said("to make", 16)
    said("gets the advantage", 0)
    small = models.Shape(22, 2048, 32, 4, 5632, 32000)
    said("You have one GPU of", 24, small.parameters / 1e9)


def further(said, runs, at_two):
    shape = models.LLAMA_70B
    token = models.kv_cache_bytes(shape, 1, 1, bf16=True)
    many = models.kv_cache_bytes(replace(shape, kv_heads=64), 1, 1, bf16=True)
    said("To make the cache smaller. Our", 70, shape.heads, shape.kv_heads)
    said("takes 2 ·", 80, 8, 128, 2, token, shape.layers, 128)
    said("a token of its cache takes", 2)
    said(
        "holds nothing else has room for",
        round(H100_BYTES / token, -3),
        64,
        round(H100_BYTES / many, -3),
    )
    said("The cell samples", 1, 64, 64)
    said("activations are up to about", 1.6)
    raw = models.H100
    seven = models.kv_cache_bytes(models.LLAMA_7B, 1, 500, bf16=True) / raw.bytes_per_second
    training = 6 * 7e9 / raw.flop_per_second
    assert seven > training
    said("With section 3's", 7, 500, 1000 * seven, 1000 * training)
    said("For our", 70, 49, raw.mfu, raw.mbu)
    equal = [parts(decode_batch=n, **NONE) for n in (49,)]
    assert abs(equal[0]["sampling"] / equal[0]["training"] - 1) < 0.01
    said("lesson 11b). Between", 8, 512)
    said("spreads the", 16)
    lower = [d < 0 for d, _, _ in seed_by_seed(runs, SFT)]
    said("includes 0, and all three means are lower", all(lower))
    said("the interval over films includes", 0)
    said("the shared trunk gets", mean(runs, SHARED, "proxy"), mean(runs, "as it is", "proxy"))
    slow, fast = (column(runs, v, "seconds") for v in (LORA, SFT))
    said("a run took", min(slow), max(slow), min(fast), max(fast))
    said("runs any of the", len(loops.FAMILY))
    said("with groups of two needs", at_two["RLOO of two"])


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
