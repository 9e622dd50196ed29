"""Exercises of lesson 01: two measures, the push of a reward, real tokens, the loss of SFT."""

import torch

from minirlhf.classroom.exercise import Exercise
from minirlhf.core.bradley_terry import last_token_scores


def _responses_case(g):
    """N responses. The last one is never written, and in half of the cases never sampled either."""
    n = int(torch.randint(3, 6, (), generator=g))
    probs, people = torch.rand(2, n, generator=g) + 0.1
    people[-1] = 0.0
    if torch.rand((), generator=g) < 0.5:
        probs[-1] = 0.0
    return probs / probs.sum(), people / people.sum(), torch.randn(n, generator=g)


def _loss_under(weights, probs):
    """Minus the mean of log pi over responses with these weights; weight 0 does not count."""
    return -torch.where(weights > 0, weights * probs.log(), 0.0).sum()


def _two_measures(probs, people, rewards):
    return torch.stack([_loss_under(people, probs), probs @ rewards])


two_measures = Exercise(
    "two_measures",
    ("probs", "people", "rewards"),
    _responses_case,
    _two_measures,
    {
        "the expected reward is a mean over what people write. "
        "In RLHF the model writes the responses: weigh each reward with `probs`.": lambda p, w, r: (
            torch.stack([_loss_under(w, p), w @ r])
        ),
        "the SFT loss is a mean over what the model writes. "
        "In SFT people write the responses: weigh each -log pi with `people`.": lambda p, w, r: (
            torch.stack([_loss_under(p, p), p @ r])
        ),
        "both measures have the other's weights. People write the responses of SFT, and the model "
        "those of RLHF.": lambda p, w, r: torch.stack([_loss_under(p, p), w @ r]),
        "the roles in the SFT loss are exchanged. It is the log-probability under the *model* of "
        "what *people* write.": lambda p, w, r: torch.stack([_loss_under(p, w), p @ r]),
        "the sign of the SFT loss is wrong. A loss falls when people's responses become more "
        "likely.": lambda p, w, r: torch.stack([-_loss_under(w, p), p @ r]),
        "the two numbers stand in the wrong order. The SFT loss comes first.": lambda p, w, r: (
            _two_measures(p, w, r).flip(0)
        ),
        "the expected reward is a plain mean. A response counts as often as the model writes "
        "it.": lambda p, w, r: torch.stack([_loss_under(w, p), r.mean()]),
        "the SFT loss is a plain mean over the responses that people write. A response counts as "
        "often as they write it.": lambda p, w, r: torch.stack([-p[w > 0].log().mean(), p @ r]),
        "the logarithm comes too late. Take the logarithm of each probability first, and then the "
        "mean.": lambda p, w, r: torch.stack([-(w @ p).log(), p @ r]),
        "the log-probabilities of people's responses have the weights `probs`. A response counts "
        "as often as people write it: weigh it with `people`.": lambda p, w, r: torch.stack(
            [-(p * p.log())[w > 0].sum(), p @ r]
        ),
        "the expected reward is divided by the number of responses. The probabilities sum to 1, "
        "so the weighted mean is the plain sum.": lambda p, w, r: torch.stack(
            [_loss_under(w, p), (p * r).mean()]
        ),
        "the SFT loss is divided by the number of responses. The weights in `people` sum to 1, so "
        "the weighted mean is the plain sum.": lambda p, w, r: torch.stack(
            [-(w * p.log())[w > 0].mean(), p @ r]
        ),
    },
)


def _tree_case(g):
    return torch.randn(3, 3, generator=g).softmax(1), 2 * torch.randn(7, generator=g)


def _reach_q_v(probs, rewards, weights=None):
    """P(reach s), Q(s, a) and V(s), the first and the last as columns.

    Args:
        weights: (3, 3), of the words in V; `probs` if None.
    """
    weights = probs if weights is None else weights
    later = rewards[:6].view(2, 3)
    q = torch.cat([torch.cat([(weights[1:] * later).sum(1), rewards[6:]])[None], later])
    reach = torch.cat([torch.ones(1), probs[0, :2]])
    return reach[:, None], q, (weights * q).sum(1, keepdim=True)


def _reward_pushes(probs, rewards, weights=None):
    reach, q, v = _reach_q_v(probs, rewards, weights)
    return reach * probs * (q - v)


def _with_first_q(first_q):
    """A mistake: Q of *good* and *bad* at the start is `first_q` of (probs, rewards) after them."""

    def pushes(probs, rewards):
        reach, q, _ = _reach_q_v(probs, rewards)
        q = torch.cat([torch.cat([first_q(probs[1:], q[1:]), rewards[6:]])[None], q[1:]])
        return reach * probs * (q - (probs * q).sum(1, keepdim=True))

    return pushes


def _pushes_of(change):
    """A mistake: the pushes as `change` computes them from probs, reach, Q and V."""
    return lambda probs, rewards: change(probs, *_reach_q_v(probs, rewards))


reward_pushes = Exercise(
    "reward_pushes",
    ("probs", "rewards"),
    _tree_case,
    _reward_pushes,
    {
        "every row is compared with the mean reward of all responses. After *bad*, compare with "
        "the responses that begin with *bad*: V of this prefix.": _pushes_of(
            lambda p, reach, q, v: reach * p * (q - v[:1])
        ),
        "the chance to reach the prefix is missing. The model comes to *bad* only as often as it "
        "writes *bad* at the start.": _pushes_of(lambda p, reach, q, v: p * (q - v)),
        "the probability of the word is missing. The push on a logit has the factor "
        "pi(a | s).": _pushes_of(lambda p, reach, q, v: reach * (q - v)),
        "V is not subtracted. The probabilities of a row sum to 1, so what one word gains the "
        "others lose.": _pushes_of(lambda p, reach, q, v: reach * p * q),
        "this is the derivative with respect to the probabilities. The push is the derivative with "
        "respect to the logits: P(reach s) pi(a | s) (Q - V).": _pushes_of(
            lambda p, reach, q, v: reach * q
        ),
        "these are Q - V. Multiply by how often the model comes to the prefix and by how often it "
        "writes the word there.": _pushes_of(lambda p, reach, q, v: q - v),
        "V is a plain mean over the words. It is a mean over the model's responses: weigh the Q "
        "of each word with its probability.": lambda p, r: _reward_pushes(
            p, r, torch.full((3, 3), 1 / 3)
        ),
        "V is the plain mean of a row of Q. Weigh the Q of each word with the probability of the "
        "word.": _pushes_of(lambda p, reach, q, v: reach * p * (q - q.mean(1, keepdim=True))),
        "after *good* and *bad*, V is a plain mean of three rewards. Weigh each reward with the "
        "probability of its word.": lambda p, r: _reward_pushes(
            p, r, torch.cat([p[:1], torch.full((2, 3), 1 / 3)])
        ),
        "at the start, the Q of *good* is a plain mean of three rewards. It is the V of the prefix "
        "*good*: weigh each reward with the probability of its word.": _with_first_q(
            lambda p, later: later.mean(1)
        ),
        "at the start, the Q of *good* is a sum of three rewards. It is the V of the prefix "
        "*good*: weigh each reward with the probability of its word.": _with_first_q(
            lambda p, later: later.sum(1)
        ),
        "V belongs to a prefix, so to a row. Yours has the shape (3,), and PyTorch subtracts its "
        "numbers from the columns. Keep it a column: `sum(1, keepdim=True)`.": _pushes_of(
            lambda p, reach, q, v: reach * p * (q - v[:, 0])
        ),
        "P(reach s) belongs to a prefix, so to a row. Yours has the shape (3,), and PyTorch "
        "multiplies the columns by its numbers. Make it a column: `[:, None]`.": _pushes_of(
            lambda p, reach, q, v: reach[:, 0] * p * (q - v)
        ),
        "V and P(reach s) belong to a prefix, so to a row. Yours have the shape (3,), so PyTorch "
        "uses one number per column. Make each a column: `[:, None]`.": _pushes_of(
            lambda p, reach, q, v: reach[:, 0] * p * (q - v[:, 0])
        ),
        "the sign is wrong. A word is pushed up if its Q is above V.": lambda p, r: (
            -_reward_pushes(p, r)
        ),
        "the rows of *good* and *bad* have each other's chance to be reached.": _pushes_of(
            lambda p, reach, q, v: reach[[0, 2, 1]] * p * (q - v)
        ),
    },
)


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
        "nothing is masked. Only the first EOS of a response is real, and nothing behind it "
        "is.": lambda x, ids, e: -x.mean(),
        "tokens behind the first EOS are kept when other words follow. A response ends at its "
        "first EOS, whatever follows.": lambda x, ids, e: _mean_loss(
            x, (ids != e) | _eos_mask(ids, e)
        ),
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
        "this sums each response, and takes the mean over the responses. "
        "Divide by the number of real tokens in the batch.": lambda x, ids, e: (
            -torch.where(_eos_mask(ids, e), x, 0.0).sum(1).mean()
        ),
    },
    differentiate=("logprobs",),
)
