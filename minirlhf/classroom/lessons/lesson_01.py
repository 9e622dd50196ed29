"""Lesson 01: which tokens are real, and which of them carries the score."""

import torch

from minirlhf.classroom.exercise import Exercise
from minirlhf.core.bradley_terry import last_token_scores


def _ids_case(g):
    eos_id = int(torch.randint(5, (), generator=g))
    ids = (eos_id + torch.randint(1, 5, (5, 6), generator=g)) % 5  # no EOS yet; row 4 stays so
    ids[0, 2:], ids[1, 5:], ids[2, 0:] = (
        eos_id,
        eos_id,
        eos_id,
    )  # ends early, late, at once; padding has EOS's id, as in GPT-2
    ids[3, 3] = eos_id  # a sampler that was not stopped went on writing
    return ids, eos_id


def _eos_mask(ids, eos_id):
    return (ids == eos_id).long().cumsum(1) - (ids == eos_id).long() == 0


eos_mask = Exercise(
    "eos_mask",
    ("ids", "eos_id"),
    _ids_case,
    _eos_mask,
    {
        "EOS itself is masked: padding has the same id, so `ids != eos_id` drops it, and stopping would never be trained.": lambda ids, e: (
            ids != e
        ),
        "EOS itself is left out; it is a choice of the policy like any other, and without it stopping would never be trained.": lambda ids, e: (
            (ids == e).cumsum(1) == 0
        ),
        "text after the first EOS is kept; the response ends there, whatever follows.": lambda ids, e: (
            (ids != e) | _eos_mask(ids, e)
        ),
        "padding is kept: only the first EOS counts, the others are filling.": lambda ids, e: (
            (ids == e) | _eos_mask(ids, e)
        ),
        "rows without EOS are all real; argmax gives 0 for them.": lambda ids, e: (
            torch.arange(ids.shape[1]) <= (ids == e).int().argmax(1, keepdim=True)
        ),
        "nothing is masked.": lambda ids, e: torch.ones_like(ids, dtype=torch.bool),
        "this keeps the padding and drops the text: the mask is inverted.": lambda ids, e: (
            ~_eos_mask(ids, e)
        ),
    },
)


def _prefix_case(g):
    rows = int(torch.randint(1, 4, (), generator=g))  # one text is a batch too
    mask = torch.arange(5) < torch.randint(1, 6, (rows, 1), generator=g)
    return torch.randn(rows, 5, generator=g), mask


score_of_text = Exercise(
    "score_of_text",
    ("token_scores", "mask"),
    _prefix_case,
    last_token_scores,
    {
        "this reads the last column, which is padding in shorter rows.": lambda s, m: s[:, -1],
        "one too far: the number of real tokens is the index after the last one.": lambda s, m: (
            s.gather(1, m.sum(1, keepdim=True).clamp(max=s.shape[1] - 1))[:, 0]
        ),
        "this is the mean over real tokens; the reward of a text is read at its last token.": lambda s, m: (
            (s * m).sum(1) / m.sum(1)
        ),
        "this is the sum over real tokens; the reward of a text is read at its last token.": lambda s, m: (
            (s * m).sum(1)
        ),
    },
)
