"""Rollout: the one record that a batch is."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad


@dataclass(frozen=True, eq=False)  # == of two tensors is a tensor, not an answer
class Rollout:
    """A batch of prompts and responses. Column t of every (B, R) tensor belongs to response token t.

    prompt_ids (B, P): left-padded.                  prompt_mask (B, P): True = a real prompt token.
    response_ids (B, R): right-padded.               response_mask (B, R): True = a real response token, EOS included.
    old_logprobs (B, R): nats, under the policy that sampled, at its temperature; 0 where masked.

    Raises:
        ValueError: shapes that do not fit, an empty batch, ids that are not integers, masks that are not bool, padding on the wrong side.
    """

    prompt_ids: Int[Tensor, "B P"]
    prompt_mask: Bool[Tensor, "B P"]
    response_ids: Int[Tensor, "B R"]
    response_mask: Bool[Tensor, "B R"]
    old_logprobs: Float[Tensor, "B R"]

    def __post_init__(self):
        shapes = {name: tuple(getattr(self, name).shape) for name in self.__dataclass_fields__}
        prompt, response = shapes["prompt_ids"], shapes["response_ids"]
        fits = (
            prompt == shapes["prompt_mask"]
            and response == shapes["response_mask"] == shapes["old_logprobs"]
        )
        if (
            not fits
            or len(prompt) != 2
            or len(response) != 2
            or prompt[0] != response[0]
            or 0 in prompt + response
        ):
            raise ValueError(
                f"A Rollout needs (B, P) prompts and (B, R) responses with B, P, R >= 1; got {shapes}."
            )
        dtypes = {name: getattr(self, name).dtype for name in shapes}
        integer = {dtypes["prompt_ids"], dtypes["response_ids"]} <= {torch.int32, torch.int64}
        boolean = dtypes["prompt_mask"] == dtypes["response_mask"] == torch.bool
        if not (integer and boolean and self.old_logprobs.is_floating_point()):
            raise ValueError(
                f"A Rollout needs integer ids, bool masks and floating-point old_logprobs; got {dtypes}."
            )
        if (self.prompt_mask[:, :-1] & ~self.prompt_mask[:, 1:]).any() or not self.prompt_mask[
            :, -1
        ].all():
            raise ValueError("Prompts must be padded on the left and have at least one token each.")
        if (~self.response_mask[:, :-1] & self.response_mask[:, 1:]).any():
            raise ValueError("Responses must be padded on the right.")

    @property
    def sequences(self) -> Int[Tensor, "B T"]:
        """Prompt and response side by side, T = P + R."""
        return torch.cat([self.prompt_ids, self.response_ids], 1)

    @property
    def attention_mask(self) -> Bool[Tensor, "B T"]:
        return torch.cat([self.prompt_mask, self.response_mask], 1)

    @property
    def position_ids(self) -> Int[Tensor, "B T"]:
        """0 at the first real token of each row: without this, left padding shifts GPT-2's absolute positions."""
        return (self.attention_mask.long().cumsum(1) - 1).clamp(min=0)

    def finished(self, eos_id: int) -> Bool[Tensor, "B"]:
        """True where the response ends in EOS; False where it was cut off (or is empty)."""
        return ((self.response_ids == eos_id) & self.response_mask).any(1)

    def select(self, index) -> "Rollout":
        """Some rows, in the order of `index`, without the outer columns that are padding in all of them."""
        prompt_mask, response_mask = self.prompt_mask[index], self.response_mask[index]
        p, r = int(prompt_mask.sum(1).max()), max(1, int(response_mask.sum(1).max()))
        return Rollout(
            self.prompt_ids[index][:, -p:],
            prompt_mask[:, -p:],
            self.response_ids[index][:, :r],
            response_mask[:, :r],
            self.old_logprobs[index][:, :r],
        )

    @classmethod
    def concat(cls, rollouts: list["Rollout"]) -> "Rollout":
        """Several batches as one, padded to the widest; padding is id 0, as no mask lets it count."""
        widths = [
            max(r.prompt_ids.shape[1] for r in rollouts),
            max(r.response_ids.shape[1] for r in rollouts),
        ]

        def joined(name: str) -> Tensor:
            left = name.startswith("prompt")
            width = widths[0 if left else 1]
            parts = [getattr(r, name) for r in rollouts]
            return torch.cat(
                [
                    pad(x, (width - x.shape[1], 0) if left else (0, width - x.shape[1]))
                    for x in parts
                ]
            )

        return cls(*(joined(name) for name in cls.__dataclass_fields__))
