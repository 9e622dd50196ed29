"""Low-rank adapters (LoRA) and other ways to train a larger model with less memory.

    W x  ->  W x + (alpha / rank) B A x

W (out, in) stays frozen. A (rank, in) and B (out, rank) are trained, and B is 0 at the start
(Hu et al. 2022, section 4). With its adapter switched off, the model is the reference policy, so no
second copy is needed. Recomputing activations in the backward pass saves memory as well.
"""

import copy
import warnings
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, Union

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.activations import NewGELUActivation
from transformers.modeling_layers import GradientCheckpointingLayer

from minirlhf.runtime import check

if TYPE_CHECKING:  # importing peft takes two seconds
    from peft import PeftModel
    from typing_extensions import TypeIs

Policy = Union[PreTrainedModel, "PeftModel"]  # a language model, which may have adapters
Model = TypeVar("Model", bound=nn.Module)
SomePolicy = TypeVar("SomePolicy", bound=Policy)


def with_lora(model: nn.Module, rank: int = 16, *, seed: int = 0) -> "PeftModel":
    """Freeze a model and add trainable low-rank adapters to every linear layer of its blocks.

    alpha is 2 rank. The adapters are float32, whatever the type of the model.

    Args:
        model: a transformers model; its layers are wrapped in place.
        rank: of A and B, at least 1.
        seed: of the initial A; torch's global generator is left as it was.

    Returns:
        The peft model, in evaluation mode.

    Raises:
        ValueError: the rank is below 1.
    """
    from peft import LoraConfig, get_peft_model  # imported here: it takes two seconds

    check("rank", rank, rank >= 1, "at least 1")
    # peft and transformers warn about each other
    quiet = warnings.catch_warnings(action="ignore")
    # drawn on the CPU, then moved to the model's device by peft
    with quiet, torch.random.fork_rng(), torch.device("cpu"):
        torch.manual_seed(seed)
        settings = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear")
        return get_peft_model(model, settings).eval()


def has_adapter(model: nn.Module) -> "TypeIs[PeftModel]":
    """Whether the model has adapters that can be switched off, as `with_lora` gives them."""
    return hasattr(model, "disable_adapter")


def merged(model: Model) -> Model:
    """A model with its adapters added to its weights, in float32.

        W + (alpha / rank) B A

    A model with adapters is copied, and the result is an ordinary transformers model. A model
    without adapters is returned as it is. The sum is taken in float32: a bfloat16 weight has 8 bits
    of precision, an adapter usually changes a weight by less than 1/256 of it, so most of what the
    adapter learned would be lost.
    """
    return copy.deepcopy(model).float().merge_and_unload() if has_adapter(model) else model


class BelowAdapter:
    """A model with its adapter switched off: the policy before training, without a second copy.

    Call it like the model. `config` and `eval` are there for functions that expect a model.
    """

    def __init__(self, model: "PeftModel") -> None:
        self.model, self.config = model, model.config

    def eval(self) -> "BelowAdapter":
        """Itself; the wrapped model keeps its mode."""
        return self

    def parameters(self) -> Iterator[nn.Parameter]:
        """The wrapped model's parameters, which tell its device."""
        return self.model.parameters()

    def __call__(self, **given: Any) -> Any:
        """The output of the model without its adapter, for the same keyword arguments."""
        frozen = [p for p in self.model.parameters() if not p.requires_grad]
        with self.model.disable_adapter():
            answer = self.model(**given)
        for p in frozen:  # switching on makes every adapter trainable
            p.requires_grad_(False)
        return answer


LanguageModel = Policy | BelowAdapter  # what log-probabilities can be read from


def reference_of(model: Policy) -> LanguageModel:
    """The reference policy: the model as it is now, unchanged by later training.

    If the model's adapter has learned nothing yet (B = 0), the reference is the model with the
    adapter switched off (`BelowAdapter`). Otherwise it is a copy, in evaluation mode.
    """
    learned = any(p.any() for name, p in model.named_parameters() if "lora_B" in name)
    if has_adapter(model) and not learned:
        return BelowAdapter(model)
    return copy.deepcopy(model).eval()


def recompute_activations(model: Model) -> Model:
    """Gradient checkpointing, in place: each block keeps its input only.

    The block is computed again in the backward pass. The gradients are the same. transformers' own
    switch works in training mode only, where dropout is active; RL trains in evaluation mode.

    Returns:
        The same model.

    Raises:
        ValueError: the model has no blocks that transformers can recompute.
    """
    layers = [
        module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)
    ]
    check(
        "model",
        type(model).__name__,
        bool(layers),
        "a transformers model with blocks that transformers can recompute",
    )
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    return model


def fused_gelu(model: Model) -> Model:
    """Replace GPT-2's gelu by one fused kernel, in place; returns the same model.

    The function is the same (the tanh approximation). One kernel replaces seven, in a third of the
    time and with a fifth of the memory.
    """
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(module, name, torch.nn.GELU(approximate="tanh"))
    return model


def fitted(
    model: Model, *, lora: int = 0, bf16: bool = False, recompute: bool = False
) -> Union[Model, "PeftModel"]:
    """Prepare a model for training on a small machine.

    Each option saves memory and costs something: adapters limit the rank of the update, bfloat16
    costs precision, recomputing costs time.

    Args:
        model: a transformers model.
        lora: rank of the adapters (`with_lora`); 0 trains all weights.
        bf16: store the frozen weights in bfloat16; needs adapters, which stay in float32.
        recompute: recompute activations in the backward pass (`recompute_activations`).

    Raises:
        ValueError: bf16 without adapters. A bfloat16 weight has 8 bits of precision, so an update
            of less than 1/256 of the weight would be lost.
    """
    check(
        "bf16",
        bf16,
        lora > 0 or not bf16,
        "used with adapters, which stay in float32: set lora to a rank above 0",
    )
    model = model.to(torch.bfloat16) if bf16 else model
    model = recompute_activations(model) if recompute else model
    return with_lora(model, lora) if lora else model
