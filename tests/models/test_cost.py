"""Cost and roofline: a small model by hand, real models to the byte."""

import copy
from dataclasses import replace

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, MistralConfig

from minirlhf.core.rollout import Rollout
from minirlhf.loops.common import clipped_step, make_optimizer
from minirlhf.loops.config import OptimiserConfig
from minirlhf.models.adapters import recompute_activations, reference_of, with_lora
from minirlhf.models.cost import (
    LLAMA_7B,
    LLAMA_70B,
    SMOLLM2_135M,
    TINY_REVIEWS,
    Plan,
    Shape,
    activation_bytes,
    decode_step,
    forward_flop,
    four_models,
    gradient_bytes,
    kv_cache_bytes,
    measured,
    optimiser_bytes,
    peak_bytes,
    weights_bytes,
)
from minirlhf.models.forward import policy_logprobs, response_values
from minirlhf.models.heads import ScalarModel, SharedCritic
from minirlhf.models.load import load_policy, load_scalar
from minirlhf.models.roofline import (
    H100,
    Machine,
    decode_seconds,
    measure_machine,
    step_seconds,
    train_seconds,
)
from minirlhf.models.sampling import SamplingConfig, sample
from tests.tiny import tiny_policy

GPT2 = Shape(layers=1, width=4, heads=2, kv_heads=2, ffn=16, vocab=10, tied=True, positions=8)
LLAMA = Shape(layers=1, width=4, heads=2, kv_heads=1, ffn=6, vocab=10)  # keys: width 2
B, P, R = 4, 8, 12
T = P + R


def llama(tied=False, **given):
    torch.manual_seed(0)
    sizes = dict(
        vocab_size=257,
        hidden_size=32,
        intermediate_size=80,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
        eos_token_id=0,
        pad_token_id=0,
        bos_token_id=0,
    )
    return LlamaForCausalLM(LlamaConfig(**sizes | given)).eval()


def tiny_reviews():
    return load_policy("tiny-reviews-sft")[0]


MODELS = pytest.mark.parametrize(
    "make",
    [tiny_reviews, llama, lambda: llama(tied=True, num_key_value_heads=1)],
    ids=["gpt2", "llama", "one head of keys"],
)


def rollout(padding=0):
    torch.manual_seed(1)
    prompts, responses = torch.randint(1, 257, (B, P)), torch.randint(1, 257, (B, R))
    prompt_mask = torch.ones_like(prompts, dtype=torch.bool)
    prompt_mask[0, :padding] = False
    return Rollout(
        prompts,
        prompt_mask,
        responses,
        torch.ones_like(responses, dtype=torch.bool),
        torch.zeros(B, R),
    )


def size(model):
    return sum(p.numel() for p in model.parameters())


# By hand


def test_parameters_by_hand():
    # GPT-2: qkv 4 x 12 + 12 = 60, output 16 + 4 = 20, MLP 64 + 16 + 64 + 4 = 148, two norms 2 x 8 = 16: a block has 244;
    # words 40, positions 32, last norm 8: 324 in all, the head tied
    assert GPT2.matrices == 48 + 16 + 64 + 64 and GPT2.parameters == 244 + 40 + 32 + 8
    # Llama: q 16, k 8, v 8, output 16, MLP 3 x 24 = 72, norms 2 x 4: a block has 128; words 40, last norm 4, head 40
    assert LLAMA.keys == 2 and LLAMA.matrices == 120 and LLAMA.parameters == 128 + 40 + 4 + 40
    assert LLAMA.trunk == 128 + 40 + 4 and GPT2.trunk == GPT2.parameters
    assert LLAMA.read == 128 + 4 + 40 and GPT2.read == 244 + 8 + 40
    # rank 2: GPT-2 4 -> 12, 4 -> 4, 4 -> 16, 16 -> 4; Llama 4 -> 4 twice, 4 -> 2 twice, 4 -> 6 twice, 6 -> 4
    assert GPT2.adapters(2) == 2 * (16 + 8 + 20 + 20) and LLAMA.adapters(2) == 2 * (
        2 * 8 + 2 * 6 + 3 * 10
    )


def test_bytes_by_hand():
    assert (
        weights_bytes(3) == 12 and weights_bytes(3, bf16=True) == gradient_bytes(3, bf16=True) == 6
    )
    for bf16 in (False, True):  # ZeRO's 16 bytes
        assert (
            weights_bytes(1, bf16=bf16)
            + gradient_bytes(1, bf16=bf16)
            + optimiser_bytes(1, bf16=bf16)
            == 16
        )
    assert (
        kv_cache_bytes(LLAMA, 3, 5) == 2 * 1 * 2 * 3 * 5 * 4
        and kv_cache_bytes(LLAMA, 3, 5, bf16=True) == 120
    )
    # Llama, a token: norms 2 x (3 x 4 + 1) = 26, q and output 8, keys and values 4, a log-sum-exp for each of 2 heads, MLP 4 x 6 = 24: 64;
    # last norm 9, cos and sin 2 x 2; three tokens: 231. Hidden states for 2 + 1 tokens 12; log-probabilities 2 x 10
    assert activation_bytes(LLAMA, 1, 3, response=2) == 4 * (3 * (64 + 9 + 4) + 12 + 20)
    assert activation_bytes(LLAMA, 1, 3, response=2, bf16=True) == 2 * (231 + 12) + 4 * 20
    assert activation_bytes(LLAMA, 1, 3) == 4 * (231 + 12)  # a scalar head reads all three
    # GPT-2, a token: norms 2 x (8 + 2) = 20, q k v and output 16, heads 2, MLP 32: 70; last norm 6; 16 where the head reads
    assert activation_bytes(GPT2, 2, 4, response=3) == 4 * 2 * (4 * (70 + 6) + 16 + 30)
    # with padding a mask of 4 a token; keys and values shared by heads are copied for each: 2 (8 - 4)
    assert activation_bytes(GPT2, 1, 4, padded=True) == 4 * (4 * (74 + 6) + 16)
    two = replace(
        LLAMA, width=8, heads=4, kv_heads=2
    )  # norms 2 x 25, q and output 16, keys and values 8, heads 4, MLP 24; 17 and 2 x 2
    assert activation_bytes(two, 1, 3) == 4 * (3 * (102 + 21) + 24)
    assert activation_bytes(two, 1, 3, padded=True) == 4 * (3 * (102 + 3 + 8 + 21) + 24)
    assert activation_bytes(LLAMA, 1, 3, padded=True) == 4 * (
        3 * (64 + 3 + 13) + 12
    )  # one head of keys is not copied
    # five blocks, recomputed: 5 inputs and one block
    assert activation_bytes(replace(GPT2, layers=5), 1, 4, recompute=True) == 4 * (
        4 * (5 * 4 + 70 + 6) + 16
    )


def test_flop_and_seconds_by_hand():
    # a token: 2 x 120 and 4 x 4 for each position it attends to; 2 x 4 x 10 for logits
    assert forward_flop(LLAMA, 3, 3, logits=2) == 3 * (240 + 48) + 2 * 80
    flop, size = decode_step(LLAMA, 2, 5)
    assert flop == 2 * (240 + 80) + 2 * 80 and size == 172 * 4 + 2 * 1 * 2 * 2 * 5 * 4
    machine = Machine(100, 10, mfu=0.5, mbu=0.1, block_seconds=3)
    assert (
        machine.seconds(100, 1) == 2
        and machine.seconds(100, 5) == 5
        and machine.seconds(100, 1, 2) == 8
    )
    double = machine.times(2)
    assert (
        double.seconds(100, 1) == 1 and double.seconds(100, 5) == 2.5 and double.block_seconds == 3
    )
    assert H100.times(8).memory_bytes == 8 * 80 * 2**30

    plan = Plan(
        prompts=2, prompt_tokens=2, response_tokens=2, epochs=2, decode_batch=1, micro_batch=2
    )
    # reading 4 tokens at context 2: 4 x 272 + 2 x 80 = 1248; two rounds of 2 steps at context 3: 4 x (288 + 80) = 1472
    # a pass over 8 tokens at context 4: 8 x 304 = 2432, and 4 x 80 = 320 for the actor's and the reference's logits
    seconds = step_seconds(Machine(1, float("inf")), plan, LLAMA)
    assert seconds == {
        "sampling": 2720,
        "scoring": 2752 + 2 * 2432,
        "training": 2 * (3 * 2752 + 3 * 2432),
    }
    alone = step_seconds(
        Machine(1, float("inf")),
        replace(plan, critic="none", reference=False, reward_model=False, lora=1),
        LLAMA,
    )
    assert alone == {"sampling": 2720, "scoring": 0, "training": 2 * 2 * 2752}
    shared = step_seconds(
        Machine(1, float("inf")),
        replace(plan, critic="shared", recompute=True),
        LLAMA,
        replace(LLAMA, layers=2),
    )
    assert shared == {"sampling": 2720, "scoring": 2752 + 2 * 2432 + 2432, "training": 2 * 4 * 2752}
    # starts only: three times, one block, for one pass over both sequences, or two
    still = Machine(float("inf"), float("inf"), block_seconds=1)
    assert (
        train_seconds(still, LLAMA, plan) == 3
        and train_seconds(still, LLAMA, replace(plan, micro_batch=1)) == 6
    )
    assert decode_seconds(still, LLAMA, plan) == 2 + 2 * 2
    # bytes only: 172 weights of 4 bytes are read once for reading and once a step, each round; caches of 2 x 2 numbers at context 3
    assert decode_seconds(Machine(float("inf"), 1), LLAMA, plan) == 2 * 688 + 2 * 2 * (688 + 3 * 16)
    assert decode_seconds(
        Machine(float("inf"), 1), LLAMA, replace(plan, decode_batch=64)
    ) == 688 + 2 * (688 + 2 * 3 * 16)


def test_memory_of_the_four_models_by_hand():
    plan = Plan(prompts=2, prompt_tokens=2, response_tokens=2, decode_batch=8, micro_batch=1)
    table = four_models(plan, LLAMA)
    # the actor has 212 weights, a scalar model 172 + 5; the cache of two sequences of 3 tokens is 2 x 3 x 4 numbers
    columns = ("weights", "gradients", "optimiser", "activations", "logits", "cache")
    assert {name: tuple(row[column] for column in columns) for name, row in table.items()} == {
        "actor": (848, 848, 1696, 4 * (4 * 77 + 12 + 20), 2 * 4 * 2 * 10, 96),
        "reference": (848, 0, 0, 0, 0, 0),
        "reward": (708, 0, 0, 0, 0, 0),
        "critic": (708, 708, 1416, 4 * (4 * 77 + 16), 0, 0),
    }
    assert (
        peak_bytes(table) == 848 * 2 + 708 * 2 + 1696 + 1416 + 848 + 708 + 4 * (4 * 77 + 32) + 160
    )
    wide = peak_bytes(
        four_models(replace(plan, prompts=200, decode_batch=200), LLAMA)
    )  # 200 caches of 48 bytes need more memory than the update
    assert wide == 848 * 2 + 708 * 2 + 1696 + 1416 + 200 * 48

    def total(**given):
        return {
            name: sum(row.values())
            for name, row in four_models(replace(plan, **given), LLAMA).items()
        }

    assert (
        total(critic="none")["critic"] == 0
        and total(reward_model=False)["reward"] == 0
        and total(reference=False)["reference"] == 0
    )
    assert (
        total(critic="shared")["critic"] == 16 * 5
        and total(critic="shared")["actor"] == total()["actor"] + 4 * 4 * 4
    )
    assert total(lora=2)["reference"] == 0 and total(lora=2)["reward"] == total()["reward"]
    assert four_models(replace(plan, lora=2), LLAMA)["critic"]["optimiser"] == 8 * (
        LLAMA.adapters(2) + 5
    )
    assert four_models(replace(plan, lora=2, bf16=True), LLAMA)["actor"][
        "weights"
    ] == 2 * 212 + 4 * LLAMA.adapters(2)
    assert (
        total(bf16=True)["reference"] == 424
        and four_models(replace(plan, bf16=True), LLAMA)["actor"]["optimiser"] == 12 * 212
    )


# Real models


def test_the_named_shapes_match_the_real_models():
    assert (
        Shape.of(tiny_reviews()) == TINY_REVIEWS
        and TINY_REVIEWS.parameters == size(tiny_reviews()) == 4_240_896
    )
    reward = load_scalar("tiny-reviews-reward")[0]
    assert Shape.of(reward).trunk + Shape.of(reward).width + 1 == size(reward)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        smol = LlamaForCausalLM(config)
    assert (
        Shape.of(smol) == Shape.of(config) == SMOLLM2_135M
        and SMOLLM2_135M.parameters == size(smol) == 134_515_008
    )
    # the parameter counts of the published weights of Meta's two models
    assert LLAMA_7B.parameters == 6_738_415_616 and LLAMA_70B.parameters == 70_553_706_496


@pytest.mark.parametrize(
    "model",
    [
        tiny_policy(),
        llama(),
        llama(tied=True),
        llama(num_key_value_heads=1, num_hidden_layers=1),
        llama(num_key_value_heads=4),
        GPT2LMHeadModel(
            GPT2Config(vocab_size=50, n_positions=16, n_embd=24, n_layer=3, n_head=3, n_inner=40)
        ),
        GPT2LMHeadModel(
            GPT2Config(
                vocab_size=50,
                n_positions=16,
                n_embd=8,
                n_layer=1,
                n_head=1,
                tie_word_embeddings=False,
            )
        ),
    ],
)
def test_parameter_counts_are_exact(model):
    shape = Shape.of(model)
    assert shape.parameters == size(model)
    scalar = ScalarModel(copy.deepcopy(model.base_model))
    assert shape.trunk + shape.width + 1 == size(scalar) and Shape.of(scalar) == shape
    adapted = with_lora(copy.deepcopy(model), 3)
    assert shape.adapters(3) == sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert reference_of(adapted).model is adapted  # no second copy


@MODELS
def test_bytes_of_weights_gradients_and_moments_are_exact(make):
    model = make()
    shape, optimizer = Shape.of(model), make_optimizer(model, OptimiserConfig())
    policy_logprobs(model, rollout()).sum().backward()
    assert sum(p.nbytes for p in model.parameters()) == weights_bytes(shape.parameters)
    assert sum(p.grad.nbytes for p in model.parameters()) == gradient_bytes(shape.parameters)
    clipped_step(model, optimizer, 1.0)
    moments = [
        value
        for state in optimizer.state.values()
        for name, value in state.items()
        if name != "step"
    ]  # 4 bytes a tensor
    assert sum(m.nbytes for m in moments) == optimiser_bytes(shape.parameters)


@MODELS
def test_bytes_of_the_cache_are_exact(make):
    model, caches = make(), []
    handle = model.register_forward_hook(
        lambda model, given, output: caches.append(output.past_key_values)
    )
    batch = rollout()
    with torch.no_grad():
        sample(
            model,
            batch.prompt_ids,
            batch.prompt_mask,
            eos_id=-1,
            config=SamplingConfig(max_new_tokens=R),
        )
    handle.remove()
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in caches[-1].layers)
    assert held == kv_cache_bytes(Shape.of(model), B, P + R - 1)


@MODELS
@pytest.mark.parametrize("padding", [0, 3])
def test_bytes_of_activations_are_exact(make, padding):
    # Beside the prediction: the ids that the embeddings read (GPT-2 has two), 8 bytes each; the ids whose log-probabilities are gathered;
    # what is returned, 4 bytes a number: (B, R) log-probabilities, (B, T) scores.
    model, batch = make(), rollout(padding)
    shape, ids = Shape.of(model), 8 * B * T * (2 if make is tiny_reviews else 1)
    kept, peak = measured(lambda: policy_logprobs(model, batch))
    padded = dict(padded=padding > 0)
    assert (
        kept == activation_bytes(shape, B, T, response=R, **padded) + ids + (8 + 4) * B * R
        and peak > kept
    )
    critic = ScalarModel(model.base_model)
    assert (
        measured(lambda: response_values(critic, batch))[0]
        == activation_bytes(shape, B, T, **padded) + ids + 4 * B * T
    )
    both = SharedCritic(model)
    kept = (
        activation_bytes(shape, B, T, response=R, **padded) + 4 * B * T * shape.width
    )  # and what the value head reads
    assert (
        measured(lambda: both.logprobs_and_values(batch))[0]
        == kept + ids + (8 + 4) * B * R + 4 * B * T
    )


@MODELS
def test_bytes_of_recomputed_activations_are_exact(make):
    model, batch = recompute_activations(make()), rollout()
    shape, ids = Shape.of(model), 8 * B * T * 2  # a Llama's blocks hold the position ids
    block = activation_bytes(shape, B, T, response=R) - activation_bytes(
        replace(shape, layers=shape.layers - 1), B, T, response=R
    )
    predicted = activation_bytes(shape, B, T, response=R, recompute=True)
    assert (
        measured(lambda: policy_logprobs(model, batch))[0]
        == predicted - block + ids + (8 + 4) * B * R
    )  # the block's own activations appear in the backward pass
    peaks = [
        measured(lambda m=m: policy_logprobs(m, batch).sum().backward())[1] for m in (model, make())
    ]
    assert (
        peaks[0]
        <= peaks[1]
        < predicted + 4 * shape.parameters + activation_bytes(shape, B, T, response=R)
    )


def test_measured_gives_kept_and_peak_bytes():
    assert measured(lambda: torch.zeros(10)) == (40, 40)
    assert measured(lambda: torch.zeros(100)[:10].clone()) == (
        40,
        440,
    )  # 400 bytes are freed again
    old = torch.zeros(10)
    assert measured(lambda: [old.view(5, 2), old.add_(1), old[3:]]) == (0, 0)
    assert measured(lambda: None) == (0, 0)


def test_measure_machine_gives_plausible_values():
    machine = measure_machine()
    assert (
        1e8 < machine.flop_per_second < 1e14
        and 1e8 < machine.bytes_per_second < 1e13
        and 1e-6 < machine.block_seconds < 1
    )


# What follows


def test_larger_settings_cost_more():
    base = dict(batch=2, tokens=16, response=8)
    for given in (dict(batch=3), dict(tokens=17), dict(response=9), dict(padded=True)):
        assert activation_bytes(SMOLLM2_135M, **base | given) > activation_bytes(
            SMOLLM2_135M, **base
        )
    for given in (dict(bf16=True), dict(recompute=True)):
        assert activation_bytes(SMOLLM2_135M, **base | given) < activation_bytes(
            SMOLLM2_135M, **base
        )
    plan, machine = Plan(prompts=128, group_size=8, bf16=True), H100.times(8)

    def seconds(**given):
        return step_seconds(machine, replace(plan, **given), LLAMA_70B)

    for given in (
        dict(prompts=129),
        dict(group_size=9),
        dict(response_tokens=1025),
        dict(prompt_tokens=513),
    ):
        assert all(
            more > less
            for more, less in zip(seconds(**given).values(), seconds().values(), strict=True)
        ), given
    assert (
        seconds(decode_batch=128)["sampling"] < seconds()["sampling"]
        and seconds(decode_batch=128)["training"] == seconds()["training"]
    )
    assert seconds(epochs=2)["training"] == 2 * seconds()["training"]
    for name in (
        "sampling",
        "scoring",
        "training",
    ):  # 8 times as many machines take an eighth of the time
        assert step_seconds(H100.times(64), plan, LLAMA_70B)[name] == pytest.approx(
            seconds()[name] / 8
        )
    rule = dict(critic="none", reward_model=False)
    variants = {}, dict(critic="shared"), dict(critic="none"), rule, rule | dict(lora=16)
    memory = [peak_bytes(four_models(replace(plan, **given), LLAMA_70B)) for given in variants]
    assert memory == sorted(memory, reverse=True) and len(set(memory)) == 5


def test_decoding_is_memory_bound_until_the_batch_is_large():
    # Each weight has 2 bytes and takes 2 FLOP a sequence. So, without caches, compute becomes the
    # limit above 989e12 / 3.35e12 = 295 sequences.
    raw = replace(H100, mfu=1.0, mbu=1.0)
    for batch, bound in ((100, "bytes"), (400, "flop")):
        flop, size = decode_step(LLAMA_70B, batch, 0, bf16=True)
        assert (flop / raw.flop_per_second > size / raw.bytes_per_second) == (bound == "flop")


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: replace(GPT2, layers=0), "layers is 0; it must be at least 1."),
        (lambda: replace(GPT2, heads=3), "heads is 3; it must be a divisor of the width 4."),
        (
            lambda: replace(LLAMA, heads=4, kv_heads=3),
            "kv_heads is 3; it must be a divisor of the 4 heads.",
        ),
        (lambda: Shape.of(MistralConfig()), "model_type is 'mistral'; it must be gpt2 or llama."),
        (
            lambda: Shape.of(torch.nn.Linear(2, 2)),
            "model_type is 'Linear'; it must be gpt2 or llama.",
        ),
        (lambda: Shape.of(LlamaConfig(attention_bias=True)), "without further biases"),
        (
            lambda: Shape.of(LlamaConfig(hidden_size=64, num_attention_heads=4, head_dim=8)),
            "without .* a head_dim of its own",
        ),
        (lambda: Plan(prompts=0), "prompts is 0; it must be at least 1."),
        (lambda: Plan(micro_batch=0), "micro_batch is 0"),
        (lambda: Plan(critic="both"), "critic is 'both'; it must be separate, shared or none."),
        (lambda: Plan(lora=-1), "lora is -1"),
        (
            lambda: activation_bytes(GPT2, 1, 4, response=4),
            "response is 4; it must be from 0 to 3, less than the number of tokens.",
        ),
    ],
)
def test_wrong_shapes_and_plans_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
