"""Process reward models (PRM): one number for every step of a response.

A reward model scores a finished response. A process reward model scores each of its steps, such as
the lines of a calculation. It is a classifier: sigmoid(z) is its probability that a step is good,
and z is the *logit* of the step. In training z is fitted to a *label* from 0 to 1.

    ends = core.step_ends(response_ids, response_mask, end_ids)    # where the steps end
    logits, step_mask = core.by_step(token_logits, ends)           # one forward pass, all steps
    labels = core.step_labels(right, step_mask, hard=False)        # from sampled continuations
    losses = core.process_reward_loss(logits, labels, step_mask)
    scores = core.process_reward_score(logits, step_mask, how="min")

Shapes: B responses of at most R tokens and S steps; N continuations of each step. `step_mask` is
True at the steps that exist. Steps that do not exist are padding, and may hold NaN.
Log-probabilities and losses are in nats, the unit of natural logarithms.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import logsigmoid

from minirlhf.core.bradley_terry import last_token_scores
from minirlhf.core.checks import checked
from minirlhf.core.masking import zero_masked

STEP_AGGREGATIONS = ("last", "min", "product")


@checked
def step_ends(
    response_ids: Int[Tensor, "B R"], response_mask: Bool[Tensor, "B R"], end_ids: Int[Tensor, "K"]
) -> Bool[Tensor, "B R"]:
    """Where the steps of each response end.

    A step ends at every token whose id is in `end_ids`. Of several such tokens in a row only the
    first counts, so an empty line or an end of sequence (EOS) after a line break is no further
    step. A last step without an end, because the response was cut off, does not count. If EOS ends
    a step, put it into `end_ids` too.

    Args:
        response_ids: token ids.
        response_mask: True at the tokens that count. Ends in a hole, such as the output of a tool,
            do not count.
        end_ids: the K ids that end a step. There may be several, because a tokenizer may have one
            id for a line break and another for a full stop with a line break.

    Returns:
        True at the last token of each step.

    Raises:
        ValueError: shapes differ.
    """
    is_end = torch.isin(response_ids, end_ids) & response_mask
    follows_an_end = torch.cat([torch.zeros_like(is_end[:, :1]), is_end[:, :-1]], 1)
    return is_end & ~follows_an_end


@checked
def by_step(
    values: Float[Tensor, "B R"], step_ends: Bool[Tensor, "B R"]
) -> tuple[Float[Tensor, "B S"], Bool[Tensor, "B S"]]:
    """One value for each step: that of the token with which the step ends.

    Column s of the result is step s. S is the largest number of steps of a response in this batch.
    A causal model has read the whole step at its last token, and nothing after it. So one forward
    pass gives the values of all steps.

    Args:
        values: one per response token, for example the logits of a process reward model. Column t
            has read response token t. (`response_slice` gives another column: what was read before
            token t.)
        step_ends: True at the last token of each step; see `step_ends`.

    Returns:
        (values, step_mask) of shape (B, S). Values are 0 where step_mask is False.

    Raises:
        ValueError: no response has a step, or shapes differ.
    """
    count = int(step_ends.sum(1).max())
    if count == 0:
        raise ValueError("step_ends is False everywhere; at least one response must have a step.")
    order = (~step_ends).byte().argsort(dim=1, stable=True)[:, :count]  # the ends first, in order
    step_mask = step_ends.gather(1, order)
    return zero_masked(values.gather(1, order), step_mask), step_mask


@checked
def step_labels(
    right: Bool[Tensor, "B S N"], step_mask: Bool[Tensor, "B S"], *, hard: bool
) -> Float[Tensor, "B S"]:
    """Labels of steps without human raters (Math-Shepherd).

        hard    1 if any of the N continuations of the step is right, else 0
        soft    the share of the N continuations that are right

    A policy continues each response N times from the end of step s, and a rule checks the final
    answers. So a label says whether the right answer can still be reached, and not whether the step
    itself is right.

    Let p be the probability that one continuation is right. The expected value of the soft label is
    p. That of the hard label is 1 - (1 - p)^N: it grows with N, and for large N a step that rarely
    succeeds has the label 1.

    A step that does not exist has no label. `step_mask` says so, and not a sentinel such as -100:
    the first PRM trainer of TRL cast its labels to bool, and -100 became True.

    Args:
        right: whether continuation n of step s reaches the right answer.
        step_mask: True at the steps that exist.
        hard: hard or soft labels.

    Returns:
        Labels from 0 to 1; 0 where masked.

    Raises:
        ValueError: shapes differ.

    Source: Wang et al. 2024 (Math-Shepherd), equations 3 (hard) and 4 (soft).
    """
    labels = right.any(-1).float() if hard else right.float().mean(-1)
    return zero_masked(labels, step_mask)


@checked
def process_reward_loss(
    logits: Float[Tensor, "B S"], labels: Float[Tensor, "B S"], step_mask: Bool[Tensor, "B S"]
) -> Float[Tensor, "B S"]:
    """Loss of each step of a process reward model: binary cross-entropy.

        loss = -y log sigmoid(z) - (1 - y) log sigmoid(-z)

    z is the logit of the step and y is its label. The mean loss is smallest where sigmoid(z) is the
    mean label. So a model of soft labels learns the probability that a continuation is right.
    1 - sigmoid(z) = sigmoid(-z) is used, with logsigmoid, because log(1 - sigmoid(z)) is -inf for
    large z.

    `aggregate(losses, step_mask)` reduces the losses. Its default is the mean over steps, so a
    response with many steps weighs more.

    Args:
        logits: z of each step.
        labels: y, from 0 to 1, hard or soft; they carry no gradient.
        step_mask: True at the steps that exist.

    Returns:
        One loss per step, nats; 0 where masked.

    Raises:
        ValueError: a label of a step that exists is not from 0 to 1, or shapes differ.
    """
    wrong = step_mask & ~((labels >= 0) & (labels <= 1))  # refuses NaN as well
    if wrong.any():
        row, column = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"labels[{row}, {column}] is {labels[row, column].item():g}; a label must be from 0 to "
            "1. Where a step has no label, set step_mask to False."
        )
    logits, labels = zero_masked(logits, step_mask), zero_masked(labels, step_mask).detach()
    losses = -labels * logsigmoid(logits) - (1 - labels) * logsigmoid(-logits)
    return zero_masked(losses, step_mask)


@checked
def process_reward_score(
    logits: Float[Tensor, "B S"], step_mask: Bool[Tensor, "B S"], *, how: str
) -> Float[Tensor, "B"]:
    """Score of each response: its steps reduced to one log-probability.

        last       log p of the last step
        min        smallest log p of a step
        product    sum over steps of log p

        log p = log sigmoid(z)

    The score is a log-probability, not a probability, because the product of many probabilities
    would be rounded to 0. `scores.exp()` gives probabilities. The order of responses is the same.

    With "product" every step lowers the score, so short responses have an advantage. With "last"
    earlier steps matter only as far as the model has read them.

    Args:
        logits: z of each step.
        step_mask: True at the steps that exist; at least one per response.
        how: one of STEP_AGGREGATIONS.

    Returns:
        One score per response, nats, at most 0.

    Raises:
        ValueError: an unknown `how`, a response without a step, or shapes that differ.

    Source: product: Lightman et al. 2023; min: Wang et al. 2024; last: Snell et al. 2024.
    """
    if how not in STEP_AGGREGATIONS:
        raise ValueError(f"how is {how!r}; it must be one of {STEP_AGGREGATIONS}.")
    if not step_mask.any(1).all():
        row = (~step_mask.any(1)).nonzero()[0].item()
        raise ValueError(
            f"step_mask is False throughout row {row}; a response without a step has no score."
        )
    log_p = logsigmoid(zero_masked(logits, step_mask))
    if how == "last":
        return last_token_scores(log_p, step_mask)
    if how == "min":
        return torch.where(step_mask, log_p, torch.inf).amin(1)
    return zero_masked(log_p, step_mask).sum(1)
