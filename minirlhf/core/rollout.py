"""A batch of prompts and responses, and the numbers that belong to their tokens."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from minirlhf.core.checks import check_dense, shown


@dataclass(frozen=True, eq=False)  # == of two tensors gives a tensor, not one bool
class Rollout:
    """A batch of prompts and responses.

    Shapes: B rows, P prompt positions, R response positions, T = P + R. Entry [:, t] of every
    (B, R) tensor belongs to response token t.

    Args:
        prompt_ids: (B, P) token ids, padded on the left.
        prompt_mask: (B, P), True at the real prompt tokens.
        response_ids: (B, R) token ids, padded on the right.
        response_mask: (B, R), True at the real response tokens, end of sequence (EOS) included.
            This mask says which tokens a model reads (attention and positions).
        old_logprobs: (B, R), log-probabilities of the tokens under the policy that sampled, at its
            temperature, nats (units of the natural logarithm); 0 where masked.
        action_mask: (B, R), True at the response tokens that the policy chose; by default all of
            them. Tokens that a tool or another speaker wrote are False: they are holes in this
            mask. They are read, but have no loss and no reward. Pass this mask to the functions of
            `core`, also where their argument is called `response_mask`.
        columns: further tensors by name, (B,) or (B, R, ...); see `with_columns`.

    Raises:
        ValueError: shapes that do not fit, an empty batch, ids that are not integers, masks that
            are not bool, sparse or nested tensors, padding on the wrong side, or an action that is
            not a real token.
    """

    prompt_ids: Int[Tensor, "B P"]
    prompt_mask: Bool[Tensor, "B P"]
    response_ids: Int[Tensor, "B R"]
    response_mask: Bool[Tensor, "B R"]
    old_logprobs: Float[Tensor, "B R"]
    action_mask: Bool[Tensor, "B R"] = None  # type: ignore[assignment]  # left out: response_mask
    columns: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.action_mask is None:
            object.__setattr__(self, "action_mask", self.response_mask)
        for name, value in [(name, getattr(self, name)) for name in TENSORS] + [
            *self.columns.items()
        ]:
            if not isinstance(value, Tensor):
                raise ValueError(f"{name} is {shown(value)}; it must be a tensor.")
            check_dense(name, value)
        shapes = {name: tuple(getattr(self, name).shape) for name in TENSORS}
        prompt, response = shapes["prompt_ids"], shapes["response_ids"]
        fits = prompt == shapes["prompt_mask"] and all(
            shapes[name] == response for name in ("response_mask", "old_logprobs", "action_mask")
        )
        if (
            not fits
            or len(prompt) != 2
            or len(response) != 2
            or prompt[0] != response[0]
            or 0 in prompt + response
        ):
            raise ValueError(
                "A Rollout needs (B, P) prompts and (B, R) responses with B, P, R >= 1; "
                f"got {shapes}."
            )
        dtypes = {name: getattr(self, name).dtype for name in shapes}
        integer = {dtypes["prompt_ids"], dtypes["response_ids"]} <= {torch.int32, torch.int64}
        boolean = all(dtypes[name] == torch.bool for name in shapes if name.endswith("mask"))
        if not (integer and boolean and self.old_logprobs.is_floating_point()):
            raise ValueError(
                "A Rollout needs integer ids, bool masks and floating-point old_logprobs; "
                f"got {dtypes}."
            )
        padded_right = self.prompt_mask[:, :-1] & ~self.prompt_mask[:, 1:]
        if padded_right.any() or not self.prompt_mask[:, -1].all():
            raise ValueError("Prompts must be padded on the left and have at least one token each.")
        if (~self.response_mask[:, :-1] & self.response_mask[:, 1:]).any():
            raise ValueError("Responses must be padded on the right.")
        if (self.action_mask & ~self.response_mask).any():
            raise ValueError(
                "action_mask is True at padding; an action must be a real token. Where you replace "
                "response_mask, give the action_mask that belongs to it too."
            )
        for name, column in self.columns.items():
            if hasattr(type(self), name) or name in (*TENSORS, "columns"):
                raise ValueError(f"A column cannot be named '{name}': a batch already has that.")
            if column.shape != response[:1] and tuple(column.shape[:2]) != response:
                raise ValueError(
                    f"Column '{name}' has shape {tuple(column.shape)}; it must have one entry for "
                    f"each row, {response[:1]}, or for each response token, {response}."
                )

    def __getattr__(self, name: str) -> Tensor:
        """The column of that name. Called only if the class has no such attribute."""
        columns = self.__dict__.get("columns", {})
        if name not in columns:
            raise AttributeError(
                f"This batch has no column '{name}'. It has {', '.join(columns) or 'none'}; "
                f"add one with batch.with_columns({name}=...)."
            )
        return columns[name]

    def with_columns(self, **columns: Tensor) -> "Rollout":
        """The same batch with further tensors, which are read as attributes.

            batch = batch.with_columns(advantages=advantages, returns=returns)
            part = batch.select(rows)          # part.advantages holds the advantages of these rows

        A column that exists already is replaced.

        Args:
            columns: tensors of shape (B,), one number per row, or (B, R, ...), one entry per
                response token.

        Raises:
            ValueError: a shape that does not fit, or a name that a batch already uses for something
                else.
        """
        return replace(self, columns=self.columns | columns)

    @property
    def sequences(self) -> Int[Tensor, "B T"]:
        """Prompt and response side by side, T = P + R."""
        return torch.cat([self.prompt_ids, self.response_ids], 1)

    @property
    def attention_mask(self) -> Bool[Tensor, "B T"]:
        """True at the real tokens of prompt and response."""
        return torch.cat([self.prompt_mask, self.response_mask], 1)

    @property
    def position_ids(self) -> Int[Tensor, "B T"]:
        """Positions that start with 0 at the first real token of each row.

        Without them left padding would shift the absolute positions of GPT-2.
        """
        return (self.attention_mask.long().cumsum(1) - 1).clamp(min=0)

    @property
    def device(self) -> torch.device:
        """Where the tensors are. The loops keep batches on the CPU, whatever the model's device."""
        return self.response_ids.device

    def to(self, device: torch.device | str) -> "Rollout":
        """The same batch on another device; itself if it is there already."""
        if torch.device(device) == self.device:
            return self
        moved = {name: column.to(device) for name, column in self.columns.items()}
        tensors = {name: getattr(self, name).to(device) for name in TENSORS}
        return Rollout(**tensors, columns=moved)

    # not tuple[int, ...]: the tests' type check would draw an item from Python's random generator
    def finished(self, eos_id: int | tuple) -> Bool[Tensor, "B"]:
        """True where the last token that the policy chose is EOS, or one of several ends.

        It is False where the response was truncated or is empty.

        Args:
            eos_id: the id of the token that ends a response, or a tuple of ids.
        """
        last = self.action_mask & (self.action_mask.cumsum(1) == self.action_mask.sum(1)[:, None])
        ends = torch.tensor(eos_id, device=self.device).view(-1)
        return (torch.isin(self.response_ids, ends) & last).any(1)

    # not Sequence[int]: the tests' type check would draw an item from Python's random generator
    def select(self, index: Tensor | Sequence) -> "Rollout":
        """Some rows of the batch, in the order of `index`, with their further tensors (`columns`).

        Outer positions that are padding in all of these rows are cut off every tensor.

        Args:
            index: row numbers (a tensor or a list), or a bool for each row.

        Raises:
            ValueError: the index chooses no row, or one that does not exist.
        """
        try:
            prompt_mask, response_mask = self.prompt_mask[index], self.response_mask[index]
        except (IndexError, TypeError) as error:
            raise ValueError(
                f"index does not fit a batch of {len(self.prompt_ids)} rows: {error}"
            ) from error
        if prompt_mask.dim() != 2 or len(prompt_mask) == 0:
            raise ValueError(f"index is {shown(index)}; it must choose at least one row.")
        p, r = int(prompt_mask.sum(1).max()), max(1, int(response_mask.sum(1).max()))
        return Rollout(
            self.prompt_ids[index][:, -p:],
            prompt_mask[:, -p:],
            self.response_ids[index][:, :r],
            response_mask[:, :r],
            self.old_logprobs[index][:, :r],
            self.action_mask[index][:, :r],
            {
                name: column[index] if column.dim() == 1 else column[index][:, :r]
                for name, column in self.columns.items()
            },
        )

    @classmethod
    def concat(cls, rollouts: list["Rollout"]) -> "Rollout":
        """Several batches as one, padded with zeros to the widest.

        Raises:
            ValueError: no batch, or batches with different columns.
        """
        if not rollouts:
            raise ValueError("rollouts is empty; there must be at least one batch to join.")
        names = [sorted(rollout.columns) for rollout in rollouts]
        if any(other != names[0] for other in names):
            raise ValueError(f"Only batches with the same columns can be joined; got {names}.")
        prompt_width = max(r.prompt_ids.shape[1] for r in rollouts)
        response_width = max(r.response_ids.shape[1] for r in rollouts)

        def joined(name: str) -> Tensor:
            parts = [getattr(r, name) for r in rollouts]
            if name in ("prompt_ids", "prompt_mask"):
                return torch.cat([pad(x, (prompt_width - x.shape[1], 0)) for x in parts])
            if parts[0].dim() == 1:
                return torch.cat(parts)
            behind = [(0, 0) * (x.dim() - 2) + (0, response_width - x.shape[1]) for x in parts]
            return torch.cat([pad(x, width) for x, width in zip(parts, behind, strict=True)])

        tensors = {name: joined(name) for name in TENSORS}
        return cls(**tensors, columns={name: joined(name) for name in names[0]})


Score = Callable[[Rollout], Tensor]  # a batch -> the scores (B,) of its responses
TENSORS = tuple(f.name for f in fields(Rollout) if f.name != "columns")
