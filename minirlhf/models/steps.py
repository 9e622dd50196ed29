"""Where the steps of a written solution begin and end, in token ids."""

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from minirlhf.core.process_reward import by_step, step_ends
from minirlhf.core.rollout import Rollout
from minirlhf.models.fit import end_ids
from minirlhf.models.forward import token_scores
from minirlhf.models.heads import ScalarModel
from minirlhf.runtime import check


def step_end_ids(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, step_end: str
) -> tuple[int, ...]:
    """The ids that end a step: the model's end tokens, then tokens whose text ends in `step_end`.

    Raises:
        ValueError: no token ends in this text.
    """
    texts = tokenizer.batch_decode([[i] for i in range(len(tokenizer))])
    found = [i for i, text in enumerate(texts) if text.endswith(step_end)]
    check("step_end", step_end, len(found) > 0, "a text that a token of the tokenizer ends in")
    ends = end_ids(model, tokenizer)
    return (*ends, *(i for i in found if i not in ends))


def steps_of(batch: Rollout, ends: tuple[int, ...]) -> list[list[list[int]]]:
    """The ids of each step of each response, its end included; a cut step is left out.

    An EOS after the end of a step is a step of its own: there the policy decides to write no more.

    Args:
        ends: the ids that end a step, see `step_end_ids`.
    """
    finished = torch.isin(batch.response_ids, torch.tensor(ends, device=batch.device))
    rows = []
    for ids, last in zip(
        batch.response_ids.tolist(), (_places(batch, ends) & finished).tolist(), strict=True
    ):
        stops = [t + 1 for t, is_last in enumerate(last) if is_last]
        rows.append([ids[i:j] for i, j in zip([0, *stops], stops, strict=False)])
    return rows


def step_logits(
    model: ScalarModel, batch: Rollout, ends: tuple[int, ...]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The logit of each step, in one forward pass.

    The last token of a response ends a step even if it is cut off, so each response has a score.

    Args:
        ends: the ids that end a step, see `step_end_ids`.

    Returns:
        (logits, step_mask), both (B, S).
    """
    read = token_scores(model, batch)[:, batch.prompt_ids.shape[1] :]
    return by_step(read, _places(batch, ends))


def _places(batch: Rollout, ends: tuple[int, ...]) -> torch.Tensor:
    """True at the last token of each step, and at that of each response."""
    mask = batch.response_mask
    found = step_ends(batch.response_ids, mask, torch.tensor(ends, device=batch.device))
    return found | (mask & (mask.cumsum(1) == mask.sum(1, keepdim=True)))
