"""Exercises of lesson 01: which tokens are real, and at which token the score is read."""

import torch

from minirlhf.classroom.exercise import Exercise
from minirlhf.core.bradley_terry import last_token_scores


def _ids_case(g):
    eos_id = int(torch.randint(5, (), generator=g))
    ids = (eos_id + torch.randint(1, 5, (5, 6), generator=g)) % 5  # no EOS yet; row 4 gets none
    # Rows 0 to 2 end early, late and at once. Padding has EOS's id, as in GPT-2.
    ids[0, 2:], ids[1, 5:], ids[2, 0:] = eos_id, eos_id, eos_id
    ids[3, 3] = eos_id  # the sampler did not stop at EOS: other tokens follow
    return ids, eos_id


def _eos_mask(ids, eos_id):
    return (ids == eos_id).long().cumsum(1) - (ids == eos_id).long() == 0


eos_mask = Exercise(
    "eos_mask",
    ("ids", "eos_id"),
    _ids_case,
    _eos_mask,
    {
        "the mask leaves out EOS. "
        "Padding has the same id, so `ids != eos_id` also drops the first EOS. "
        "Then stopping is never trained.": lambda ids, e: ids != e,
        "the mask leaves out the first EOS. EOS is a choice of the policy like any other token. "
        "Without it, stopping is never trained.": lambda ids, e: (ids == e).cumsum(1) == 0,
        "tokens after the first EOS are kept. The response ends at its "
        "first EOS, whatever follows.": lambda ids, e: (ids != e) | _eos_mask(ids, e),
        "padding is kept. Only the first EOS is real. Every later EOS is padding.": lambda ids, e: (
            (ids == e) | _eos_mask(ids, e)
        ),
        "in a row without EOS all tokens are real. `argmax` returns 0 for such a row, so "
        "your mask keeps only its first token.": lambda ids, e: (
            torch.arange(ids.shape[1]) <= (ids == e).int().argmax(1, keepdim=True)
        ),
        "nothing is masked. Everything after the first EOS must be False.": lambda ids, e: (
            torch.ones_like(ids, dtype=torch.bool)
        ),
        "the mask is inverted: it keeps the padding and drops the response.": lambda ids, e: (
            ~_eos_mask(ids, e)
        ),
    },
)


def _prefix_case(g):
    rows = int(torch.randint(1, 4, (), generator=g))  # a batch may have one row
    mask = torch.arange(5) < torch.randint(1, 6, (rows, 1), generator=g)
    return torch.randn(rows, 5, generator=g), mask


score_of_text = Exercise(
    "score_of_text",
    ("token_scores", "mask"),
    _prefix_case,
    last_token_scores,
    {
        "this reads the last column. In shorter rows that column is padding.": lambda s, m: s[
            :, -1
        ],
        "this reads one position too far. "
        "The number of real tokens is the index *after* the last one.": lambda s, m: s.gather(
            1, m.sum(1, keepdim=True).clamp(max=s.shape[1] - 1)
        )[:, 0],
        "this is the mean over the real tokens. The reward of a sequence is "
        "read at its last real token.": lambda s, m: (s * m).sum(1) / m.sum(1),
        "this is the sum over the real tokens. "
        "The reward of a sequence is read at its last real token.": lambda s, m: (s * m).sum(1),
    },
)
