"""Fit a larger model on a small machine: low-rank adapters, whose base is the reference for free, and recomputed activations.

W x  ->  W x + (alpha / rank) B A x          A (rank, in), B (out, rank), B = 0 at the start (Hu et al. 2022, section 4)
"""

import copy
import warnings
from functools import partial

import torch
from torch.utils.checkpoint import checkpoint
from transformers.activations import NewGELUActivation
from transformers.modeling_layers import GradientCheckpointingLayer

from minirlhf.runtime import check


def with_lora(model, rank: int = 16, *, seed: int = 0):
    """The same model, frozen, with trainable adapters of that rank in every linear layer, float32 whatever its own type.

    `seed` draws A; the global generator is left as it was.
    """
    from peft import LoraConfig, get_peft_model  # two seconds to import: paid by who asks for it

    check("rank", rank, rank >= 1, "at least 1")
    with (
        warnings.catch_warnings(action="ignore"),
        torch.random.fork_rng(),
    ):  # what peft and transformers say of each other
        torch.manual_seed(seed)
        return get_peft_model(
            model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear")
        ).eval()


def has_adapter(model) -> bool:
    return hasattr(model, "disable_adapter")


def merged(model):
    """An ordinary model: adapters multiplied out and added to the weights, in float32; a model without adapters as it is.

    In bfloat16 most of what an adapter learned would be lost in the sum: it is less than 1/256 of the weight that it is added to.
    """
    return copy.deepcopy(model).float().merge_and_unload() if has_adapter(model) else model


class BelowAdapter:
    """The model with its adapter switched off: what it was before training, and no second copy of it."""

    def __init__(self, model):
        self.model, self.config = model, model.config

    def eval(self) -> "BelowAdapter":
        return self

    def __call__(self, **given):
        frozen = [p for p in self.model.parameters() if not p.requires_grad]
        with self.model.disable_adapter():
            answer = self.model(**given)
        for p in frozen:  # switching on again makes all adapters trainable
            p.requires_grad_(False)
        return answer


def reference_of(model):
    """The policy as it is now, never trained: what lies below an adapter that has learned nothing yet, or a copy."""
    fresh = has_adapter(model) and not any(
        p.any() for name, p in model.named_parameters() if "lora_B" in name
    )
    return BelowAdapter(model) if fresh else copy.deepcopy(model).eval()


def recompute_activations(model):
    """Gradient checkpointing: a block keeps its input only and is computed again in the backward pass. The same gradients.

    transformers' own switch works in training mode alone, where there is dropout; RL needs both off.
    """
    layers = [
        module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)
    ]
    check(
        "model",
        type(model).__name__,
        bool(layers),
        "built of blocks that transformers can recompute",
    )
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    return model


def fused_gelu(model):
    """GPT-2's gelu in one kernel for seven: the same function, a third of its time, a fifth of its memory. In place."""
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(module, name, torch.nn.GELU(approximate="tanh"))
    return model


def fitted(model, *, lora: int = 0, bf16: bool = False, recompute: bool = False):
    """The model as a small machine can train it: each option costs something (rank, precision, time) and saves memory.

    Raises:
        ValueError: bf16 without adapters: an update of less than 1/256 of a weight would be lost in its 8 bits.
    """
    check(
        "bf16", bf16, lora or not bf16, "used with adapters (a rank above 0), which stay in float32"
    )
    model = model.to(torch.bfloat16) if bf16 else model
    model = recompute_activations(model) if recompute else model
    return with_lora(model, lora) if lora else model
