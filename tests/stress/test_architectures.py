"""Every kind of loop on small random models of several families of transformers."""

import math

import pytest
import torch
import transformers

from minirlhf.loops.config import KLConfig, OptimiserConfig
from minirlhf.loops.group import GroupConfig, train_group
from minirlhf.loops.online import OnlineConfig, train_online
from minirlhf.loops.ppo import PPOConfig, train_ppo
from minirlhf.loops.preference import DPOConfig, train_dpo
from minirlhf.loops.reward import RewardConfig, train_reward_model
from minirlhf.loops.sft import SFTConfig, train_sft
from minirlhf.models.forward import encode, encode_prompts, policy_logprobs
from minirlhf.models.heads import ScalarModel
from minirlhf.models.sampling import SamplingConfig, sample
from tests.loops.test_loops import PAIRS, PROMPTS, first_half
from tests.tiny import tiny_tokenizer

SIZE = dict(
    vocab_size=257,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    max_position_embeddings=64,
    bos_token_id=0,
    eos_token_id=0,
    pad_token_id=0,
)
GROUPED = SIZE | {"num_key_value_heads": 1}
FAMILIES = {
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=257, n_embd=32, n_layer=2, n_head=2, n_positions=64, eos_token_id=0
    ),
    "llama": lambda: transformers.LlamaConfig(**GROUPED),
    "mistral": lambda: transformers.MistralConfig(**GROUPED, sliding_window=None),
    "qwen2": lambda: transformers.Qwen2Config(**GROUPED),
    "qwen3": lambda: transformers.Qwen3Config(**GROUPED, head_dim=16),
    "gemma2": lambda: transformers.Gemma2Config(**GROUPED, head_dim=16),
    "gpt-neox": lambda: transformers.GPTNeoXConfig(**SIZE),
    "phi": lambda: transformers.PhiConfig(**SIZE),
    "olmo2": lambda: transformers.Olmo2Config(**GROUPED),
}
SHORT, QUICK = SamplingConfig(max_new_tokens=8), OptimiserConfig(lr=1e-3)


def made(family, seed=0):
    torch.manual_seed(seed)
    config = FAMILIES[family]()
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def completions():
    return PAIRS.rename_column("chosen", "completion").remove_columns("rejected")


TRAIN = {
    "sft": lambda model: train_sft(
        model, tiny_tokenizer(), completions(), SFTConfig(batch_size=4, optimiser=QUICK)
    )[1],
    "reward": lambda model: train_reward_model(
        model.base_model,
        tiny_tokenizer(),
        PAIRS,
        RewardConfig(steps=3, batch_size=4, optimiser=QUICK),
    )[1],
    "ppo": lambda model: train_ppo(
        model,
        ScalarModel(made(model.config.model_type.replace("_", "-"), 1).base_model),
        tiny_tokenizer(),
        PROMPTS,
        first_half,
        PPOConfig(
            steps=3, batch_size=8, minibatch_size=4, sampling=SHORT, actor=QUICK, critic=QUICK
        ),
    )[2],
    "grpo": lambda model: train_group(
        model,
        tiny_tokenizer(),
        PROMPTS,
        first_half,
        GroupConfig(
            steps=3,
            prompts_per_step=2,
            group_size=4,
            minibatch_size=4,
            sampling=SHORT,
            optimiser=QUICK,
            kl=KLConfig(kl_coef=0.1),
        ),
    )[1],
    "dpo": lambda model: train_dpo(
        model, tiny_tokenizer(), PAIRS, DPOConfig(steps=3, batch_size=4, optimiser=QUICK)
    )[1],
    "online": lambda model: train_online(
        model,
        tiny_tokenizer(),
        PROMPTS,
        first_half,
        OnlineConfig(sampling=SHORT, dpo=DPOConfig(steps=3, batch_size=4, optimiser=QUICK)),
    )[1],
}


@pytest.mark.parametrize("family", FAMILIES)
def test_sampled_log_probabilities_equal_those_of_a_second_forward(family, record_property):
    model, tokenizer = made(family), tiny_tokenizer()
    ids, mask = encode_prompts(tokenizer, ["a", "a longer prompt\n", "mid"])
    generator = torch.Generator().manual_seed(0)
    batch = sample(
        model, ids, mask, eos_id=tokenizer.eos_token_id, config=SHORT, generator=generator
    )
    again = policy_logprobs(model, batch, temperature=SHORT.temperature)
    difference = (again - batch.old_logprobs).abs().max().item()
    assert batch.response_mask.any() and difference < 1e-4
    record_property(f"{family}: sampled against read again", f"{difference:.0e} nats at most")


@pytest.mark.parametrize("family", FAMILIES)
def test_left_padding_changes_nothing(family):
    model, tokenizer = made(family), tiny_tokenizer()
    prompts, responses = ["a", "a longer prompt\n", "mid"], ["x", "some words", "yes"]
    together = policy_logprobs(model, encode(tokenizer, prompts, responses))
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        alone = policy_logprobs(model, encode(tokenizer, [prompt], [response]))[0]
        torch.testing.assert_close(together[row, : len(alone)], alone, rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("loop", TRAIN)
def test_every_loop_trains_every_family(family, loop):
    model = made(family)
    history = TRAIN[loop](model)
    numbers = [x for row in history for x in row.values() if isinstance(x, float)]
    assert len(history) >= 3 and numbers and all(map(math.isfinite, numbers))
    first = history[0]
    if loop in ("ppo", "grpo"):  # nothing was updated before the first minibatch
        assert abs(first["kl"]) < 1e-3
    if loop in ("dpo", "online"):  # policy and reference are equal
        assert first["loss"] == pytest.approx(math.log(2), abs=1e-4)
