"""Adapters, recomputed activations and the fused gelu give the same numbers."""

import copy

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from minirlhf.loops.config import OptimiserConfig
from minirlhf.loops.ppo import PPOConfig, train_ppo
from minirlhf.loops.preference import DPOConfig, train_dpo
from minirlhf.models.adapters import (
    BelowAdapter,
    fitted,
    fused_gelu,
    merged,
    recompute_activations,
    reference_of,
    with_lora,
)
from minirlhf.models.forward import encode, policy_logprobs
from minirlhf.models.heads import ScalarModel
from minirlhf.models.load import load_policy, save_policy
from minirlhf.models.sampling import SamplingConfig
from tests.loops.test_loops import PAIRS, PROMPTS, first_half
from tests.tiny import tiny_policy, tiny_tokenizer


def tiny_llama():
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=257,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            eos_token_id=0,
            pad_token_id=0,
        )
    ).eval()


MODELS = pytest.mark.parametrize("make", [tiny_policy, tiny_llama])
BATCH = encode(tiny_tokenizer(), ["one", "a second"], ["abc", "d"])


def logps(model):
    with torch.no_grad():
        return policy_logprobs(model, BATCH)


def trained(make):
    """A policy with adapters after three DPO steps, and what it was before."""
    start = make()
    model = with_lora(copy.deepcopy(start), 4)
    train_dpo(
        model,
        tiny_tokenizer(),
        PAIRS,
        DPOConfig(steps=3, batch_size=9, optimiser=OptimiserConfig(lr=1e-2)),
    )
    return model, start


@MODELS
def test_a_new_adapter_changes_no_output_and_is_all_that_is_trained(make):
    model = with_lora(make(), 4)
    torch.testing.assert_close(logps(model), logps(make()), rtol=0, atol=1e-6)
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    assert names and all("lora_" in name for name in names)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) < 0.6 * sum(
        p.numel() for p in make().parameters()
    )


@MODELS
def test_the_model_without_its_adapter_is_unchanged(make):
    model, start = trained(make)
    assert (logps(model) - logps(start)).abs().max() > 1e-3
    reference = BelowAdapter(model)
    assert reference.eval() is reference
    torch.testing.assert_close(logps(reference), logps(start), rtol=0, atol=1e-6)
    assert (
        logps(model) - logps(start)
    ).abs().max() > 1e-3  # the adapter is active again after the reference was used


@MODELS
def test_a_merged_and_saved_adapter_gives_the_same_log_probabilities(make, tmp_path):
    model, _ = trained(make)
    torch.testing.assert_close(logps(merged(model)), logps(model), rtol=0, atol=1e-5)
    save_policy(model, tiny_tokenizer(), tmp_path / "model")
    loaded, _ = load_policy(tmp_path / "model")
    torch.testing.assert_close(logps(loaded), logps(model), rtol=0, atol=1e-5)
    assert (logps(model) - logps(trained(make)[1])).abs().max() > 1e-3  # merging worked on a copy


@MODELS
def test_saving_a_bfloat16_model_keeps_its_trained_adapter(make, tmp_path):
    model = fitted(make(), lora=4, bf16=True)
    train_dpo(
        model,
        tiny_tokenizer(),
        PAIRS,
        DPOConfig(steps=10, batch_size=9, optimiser=OptimiserConfig(lr=1e-2)),
    )
    assert (logps(model) - logps(BelowAdapter(model))).abs().max() > 0.1
    torch.testing.assert_close(logps(merged(model)), logps(model).float(), rtol=0, atol=0.03)
    start, saved = (
        dict(make().bfloat16().float().named_parameters()),
        dict(merged(model).named_parameters()),
    )
    moved = [
        (saved[name] != p).float().mean().item()
        for name, p in start.items()
        if not torch.equal(saved[name], p)
    ]
    assert moved and min(moved) > 0.95  # merged in bfloat16, most entries would not change
    save_policy(model, tiny_tokenizer(), tmp_path / "model", dtype=torch.float32)
    torch.testing.assert_close(
        logps(load_policy(tmp_path / "model")[0]), logps(merged(model)), rtol=0, atol=1e-5
    )


def test_the_reference_of_a_trained_adapter_is_a_copy():
    model, start = trained(tiny_policy)
    assert isinstance(reference_of(with_lora(tiny_policy(), 4)), BelowAdapter)
    torch.testing.assert_close(logps(reference_of(model)), logps(model), rtol=0, atol=0)
    model.requires_grad_(False)
    torch.testing.assert_close(logps(BelowAdapter(model)), logps(start), rtol=0, atol=1e-6)
    assert not any(p.requires_grad for p in model.parameters())


def test_adapters_are_deterministic_and_draw_no_random_numbers():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one, two = with_lora(tiny_policy(3), 4), with_lora(tiny_policy(3), 4)
    assert all(map(torch.equal, one.parameters(), two.parameters()))
    torch.manual_seed(5)
    with_lora(one.base_model.model, 2)
    assert torch.equal(torch.rand(1), expected)


def test_dpo_with_an_adapter_equals_dpo_with_a_copied_reference():
    free, copied = with_lora(tiny_policy(), 4), with_lora(tiny_policy(), 4)
    copied.load_state_dict(free.state_dict())
    config = DPOConfig(steps=3, batch_size=9, optimiser=OptimiserConfig(lr=1e-2))
    _, a = train_dpo(free, tiny_tokenizer(), PAIRS, config)
    _, b = train_dpo(copied, tiny_tokenizer(), PAIRS, config, reference=tiny_policy())
    assert [row["loss"] for row in a] == pytest.approx([row["loss"] for row in b], abs=1e-6) and a[
        0
    ]["loss"] != a[2]["loss"]


def test_ppo_runs_with_adapters_on_actor_and_critic():
    critic = ScalarModel(tiny_policy(1).base_model)
    critic.backbone = with_lora(critic.backbone, 4)
    config = PPOConfig(
        steps=2, batch_size=8, minibatch_size=4, sampling=SamplingConfig(max_new_tokens=4)
    )
    actor, critic, history = train_ppo(
        with_lora(tiny_policy(), 4), critic, tiny_tokenizer(), PROMPTS, first_half, config
    )
    assert abs(history[0]["kl"]) < 1e-4 and history[1]["value_loss"] > 0


@MODELS
def test_recomputed_activations_give_the_same_gradients(make):
    def gradient(model):
        (-policy_logprobs(model, BATCH).sum()).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    plain, again = make().double().eval(), recompute_activations(make().double()).eval()
    torch.testing.assert_close(gradient(again), gradient(plain), rtol=0, atol=1e-9)
    twin = copy.deepcopy(again)  # a copy must recompute its own layers, not those of the original
    with torch.no_grad():
        for p in again.parameters():
            p.zero_()
    torch.testing.assert_close(logps(twin).double(), logps(plain).double(), rtol=0, atol=1e-9)


def test_recomputed_activations_need_less_memory():
    kept = {}
    for name, change in (("plain", lambda m: m), ("recomputed", recompute_activations)):
        model, total = change(tiny_policy()), []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x, total=total: total.append(x.numel()) or x, lambda x: x
        ):
            policy_logprobs(model, BATCH).sum()
        kept[name] = sum(total)
    assert kept["recomputed"] < 0.5 * kept["plain"]


def test_bfloat16_log_probabilities_have_a_bounded_error():
    exact, rounded = tiny_llama(), fitted(tiny_llama(), lora=4, bf16=True)
    assert {p.dtype for p in rounded.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in rounded.parameters() if not p.requires_grad} == {torch.bfloat16}
    error = (logps(rounded) - logps(exact)).abs().max()
    assert 0 < error < 0.03  # 0.004 was measured
    with pytest.raises(ValueError, match="adapters"):
        fitted(tiny_policy(), bf16=True)
    with pytest.raises(ValueError, match="blocks that transformers can recompute"):
        recompute_activations(torch.nn.Linear(2, 2))


def test_the_fused_gelu_equals_the_gelu_of_gpt2():
    config = GPT2Config(
        vocab_size=50,
        n_positions=16,
        n_embd=16,
        n_layer=2,
        n_head=2,
        activation_function="gelu_new",
    )
    torch.manual_seed(0)
    model = GPT2LMHeadModel(config).double().eval()
    ids = torch.randint(50, (2, 9))
    before = model(ids).logits
    after = fused_gelu(model)(ids).logits
    assert not [m for m in model.modules() if type(m).__name__ == "NewGELUActivation"]
    torch.testing.assert_close(after, before, rtol=0, atol=1e-9)
