"""The planted faults of lesson 09's atlas: wrong formulas, a wrong score, or a badly trained start.

A fault enters a run through its arguments, as a student's own function does.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from minirlhf.core.kl import kl_shaped_rewards
from minirlhf.core.rollout import Rollout, Score
from minirlhf.loops.sft import SFTConfig, SFTFormulas, train_sft
from minirlhf.models.adapters import Policy
from minirlhf.models.forward import encode, response_values
from minirlhf.models.heads import ScalarModel
from minirlhf.models.load import load_policy
from minirlhf.tasks import reviews


@dataclass(frozen=True)
class Fault:
    """What a faulty run of PPO does differently. `Fault()` changes nothing.

    formulas: field of PPOFormulas -> the wrong function. score: changes a score function, which
    takes a Rollout and returns (B,) scores. start: returns the (policy, tokenizer) that PPO starts
    from.
    """

    formulas: dict[str, Callable] = field(default_factory=dict)
    score: Callable[[Score], Score] = lambda score: score
    start: Callable[[], tuple] = lambda: load_policy("tiny-reviews-sft")

    def source(self) -> str:
        """SHA-256 of all files that the fault's functions stand in.

        Two faults with equal names and other functions differ in it. It covers whole files, so that
        a function which such a function calls counts as well.
        """
        functions: list[Callable] = [*self.formulas.values(), self.score, self.start]
        modules = {inspect.getmodule(inspect.unwrap(f)) for f in functions}
        sources = sorted(inspect.getsource(module) for module in modules if module)
        names = sorted(f"{name} {f.__qualname__}" for name, f in self.formulas.items())
        names += [self.score.__qualname__, self.start.__qualname__]
        return sha256("\n".join([*names, *sources]).encode()).hexdigest()


def zero_values(critic: ScalarModel, rollout: Rollout) -> torch.Tensor:
    """Values of a critic that always says 0."""
    return 0 * response_values(critic, rollout)


def kl_bonus(
    scores: torch.Tensor,
    old_logprobs: torch.Tensor,
    ref_logprobs: torch.Tensor,
    response_mask: torch.Tensor,
    **settings: float,
) -> torch.Tensor:
    """Shaped rewards with the sign of the KL penalty turned: drifting away is rewarded."""
    return kl_shaped_rewards(scores, ref_logprobs, old_logprobs, response_mask, **settings)


def twentyfold(score: Score) -> Score:
    """Twenty times the score."""
    return lambda rollout: 20 * score(rollout)


def always_one(score: Score) -> Score:
    """A score of 1 for every response, as at the optimum of a rule."""
    return lambda rollout: 0 * score(rollout) + 1


def encode_without_eos(
    tokenizer: PreTrainedTokenizerBase, *texts: list[str], **limits: Any
) -> Rollout:
    """Encoded texts whose masks are `ids != pad`.

    Padding is the EOS token here, so these masks take the real EOS token for padding.
    """
    batch = encode(tokenizer, *texts, **limits)
    mask = batch.response_mask & (batch.response_ids != tokenizer.eos_token_id)
    return replace(batch, response_mask=mask, action_mask=mask)


def start_without_eos() -> tuple[Policy, PreTrainedTokenizerBase]:
    """(policy, tokenizer): an SFT model that was never trained to stop."""
    base, tokenizer = load_policy("tiny-reviews")
    model, _ = train_sft(
        base.requires_grad_(True),
        tokenizer,
        reviews.sft_dataset(tokenizer),
        SFTConfig(),
        formulas=SFTFormulas(encode=encode_without_eos),
    )
    return model.requires_grad_(False), tokenizer


FAULTS = {
    "dead critic": Fault(formulas={"response_values": zero_values}),
    "KL sign wrong": Fault(formulas={"kl_shaped_rewards": kl_bonus}),
    "reward scale wrong": Fault(score=twentyfold),
    "EOS never trained": Fault(start=start_without_eos),
    "whitening at the optimum": Fault(score=always_one),
}
