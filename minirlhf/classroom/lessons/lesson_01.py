"""Exercises of lesson 01: which tokens are real, where the score is read, and the loss of SFT."""

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


def _padded_case(g):
    rows = int(torch.randint(1, 4, (), generator=g))  # a batch may have one row
    start = torch.randint(0, 3, (rows, 1), generator=g)
    end = start + torch.randint(1, 4, (rows, 1), generator=g)
    positions = torch.arange(6)
    return torch.randn(rows, 6, generator=g), (positions >= start) & (positions < end)


def _last_position(mask):
    return torch.where(mask, torch.arange(mask.shape[1]), -1).max(1, keepdim=True).values


def _real(scores, mask):
    return torch.where(mask, scores, 0.0)


score_of_text = Exercise(
    "score_of_text",
    ("token_scores", "mask"),
    _padded_case,
    last_token_scores,
    {
        "this reads the last column. In shorter rows that column is padding.": lambda s, m: s[
            :, -1
        ],
        "the number of real tokens minus one is the index of the last one only if "
        "no padding stands before it. Prompts are padded on the left.": lambda s, m: s.gather(
            1, m.sum(1, keepdim=True) - 1
        )[:, 0],
        "this reads one position too far, or you count from 1: "
        "it is the position *after* the last real token.": lambda s, m: s.gather(
            1, (_last_position(m) + 1).clamp(max=s.shape[1] - 1)
        )[:, 0],
        "this reads the first real token. `argmax` of a mask finds its first True, not its "
        "last.": lambda s, m: s.gather(1, m.int().argmax(1, keepdim=True))[:, 0],
        "this is the mean over the real tokens. The reward of a sequence is "
        "read at its last real token.": lambda s, m: _real(s, m).sum(1) / m.sum(1),
        "this is the sum over the real tokens. "
        "The reward of a sequence is read at its last real token.": lambda s, m: _real(s, m).sum(1),
    },
)


def _loss_case(g):
    ids, eos_id = _ids_case(g)
    return -torch.rand(ids.shape, generator=g) - 0.1, ids, eos_id


def _mean_loss(logprobs, mask):
    return -torch.where(mask, logprobs, 0.0).sum() / mask.sum()


imitation_loss = Exercise(
    "imitation_loss",
    ("logprobs", "ids", "eos_id"),
    _loss_case,
    lambda x, ids, e: _mean_loss(x, _eos_mask(ids, e)),
    {
        "this is still the given loss. Take one response with the ids 7, 2, 0, 0, 0 and eos_id 0. "
        "On paper: which of its tokens are real, and which "
        "does your mean count?": lambda x, ids, e: _mean_loss(x, ids != e),
        "the first EOS is left out, and so is all that follows. The mask must "
        "include the first EOS.": lambda x, ids, e: _mean_loss(x, (ids == e).cumsum(1) == 0),
        "padding is kept. Only the first EOS of a response is real.": lambda x, ids, e: -x.mean(),
        "the sign is wrong. A loss falls when the log-probability rises.": lambda x, ids, e: (
            -_mean_loss(x, _eos_mask(ids, e))
        ),
        "this is the sum over the real tokens. Divide by their number.": lambda x, ids, e: (
            _mean_loss(x, _eos_mask(ids, e)) * _eos_mask(ids, e).sum()
        ),
        "this divides by the number of all positions. Divide by the number of real "
        "tokens.": lambda x, ids, e: (
            _mean_loss(x, _eos_mask(ids, e)) * _eos_mask(ids, e).float().mean()
        ),
        "this is the mean of the responses' means. "
        "Every real token of the batch must count the same.": lambda x, ids, e: (
            -torch.where(_eos_mask(ids, e), x, 0.0).sum(1) / _eos_mask(ids, e).sum(1)
        ).mean(),
    },
    differentiate=("logprobs",),
)
