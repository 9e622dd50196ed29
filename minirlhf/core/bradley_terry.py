"""The Bradley-Terry model of preferences, and the losses that train a reward model with it.

r_a and r_b are the scores of two responses, in reward units. A difference of scores is the log-odds
(the logit) of the preference. Scores have no natural zero. Losses are in nats, the unit of natural
logarithms. Shapes: B pairs, T positions of a sequence, R response tokens.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import logsigmoid

from minirlhf.core.checks import check_not_negative, checked
from minirlhf.core.masking import check_same_shape, zero_masked


@checked
def preference_probability(
    scores_a: Float[Tensor, "..."], scores_b: Float[Tensor, "..."]
) -> Float[Tensor, "..."]:
    """Bradley-Terry probability that response a is preferred to response b.

        P(a preferred to b) = sigmoid(r_a - r_b)

    Adding a constant to both scores changes nothing, so scores have no natural zero.

    Args:
        scores_a, scores_b: r_a and r_b, reward units.

    Returns:
        Probabilities, in the shape of the arguments.

    Raises:
        ValueError: shapes differ.

    Source: Bradley and Terry 1952.
    """
    check_same_shape(scores_a=scores_a, scores_b=scores_b)
    return torch.sigmoid(scores_a - scores_b)


@checked
def last_token_scores(
    token_scores: Float[Tensor, "B T"], attention_mask: Bool[Tensor, "B T"]
) -> Float[Tensor, "B"]:
    """Score at the last real token of each sequence, end of sequence (EOS) included.

    The mask finds the last token, so the side of the padding does not matter.

    Args:
        token_scores: a score at every position, reward units.
        attention_mask: True at real tokens.

    Returns:
        One score per sequence, reward units.

    Raises:
        ValueError: a row without a real token, or shapes that differ.
    """
    if not attention_mask.any(1).all():
        raise ValueError("A row of attention_mask has no real token; every row must have one.")
    positions = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    last = torch.where(attention_mask, positions, -1).argmax(1, keepdim=True)
    return token_scores.gather(1, last)[:, 0]


@checked
def reward_model_loss(
    chosen_scores: Float[Tensor, "B"],
    rejected_scores: Float[Tensor, "B"],
    *,
    margin: Float[Tensor, "B"] | None = None,
    centering_coef: float = 0.0,
) -> Float[Tensor, "B"]:
    """Reward-model loss of each pair.

        loss = -log sigmoid(r_c - r_r - margin) + centering_coef (r_c + r_r)^2

    r_c and r_r are the scores of the chosen and the rejected response. The first term is minus the
    log-probability of the label under the Bradley-Terry model. The margin stands inside the
    sigmoid. The first term does not change if a constant is added to all scores. The second term
    pulls r_c + r_r towards 0, and so determines this constant.

    logsigmoid is used because log(sigmoid(x)) is -inf at x = -200.

    Args:
        chosen_scores, rejected_scores: r_c and r_r, reward units.
        margin: a required difference of scores for each pair, reward units; None is 0.
        centering_coef: weight of the second term, 0 or more.

    Returns:
        One loss per pair, nats.

    Raises:
        ValueError: centering_coef is negative, or shapes differ.

    Source: margin: Touvron et al. 2023, equation 2; centring: Eisenstein et al. 2023.
    """
    check_not_negative(centering_coef=centering_coef)
    difference = chosen_scores - rejected_scores
    if margin is not None:
        difference = difference - margin
    losses = -logsigmoid(difference)
    if centering_coef == 0:  # 0 times a square that overflows would be NaN
        return losses
    return losses + centering_coef * (chosen_scores + rejected_scores).square()


@checked
def per_token_reward_loss(
    chosen_scores: Float[Tensor, "B R"],
    rejected_scores: Float[Tensor, "B R"],
    chosen_mask: Bool[Tensor, "B R"],
    rejected_mask: Bool[Tensor, "B R"],
    chosen_ids: Int[Tensor, "B R"],
    rejected_ids: Int[Tensor, "B R"],
) -> Float[Tensor, "B"]:
    """Reward-model loss of each pair, averaged over tokens (DeepSpeed-Chat).

        loss = mean over t of -log sigmoid(r_c,t - r_r,t)

    r_c,t and r_r,t are the scores of the chosen and the rejected response at token t. The mean runs
    from the first token that differs to the end of the longer response. Before that token both
    responses are the same.

    After its end the shorter response keeps its last score. DeepSpeed-Chat uses the score at the
    padding instead.

    Args:
        chosen_scores, rejected_scores: a score at every response token, reward units.
        chosen_mask, rejected_mask: True at real response tokens.
        chosen_ids, rejected_ids: token ids.

    Returns:
        One loss per pair, nats.

    Raises:
        ValueError: a pair of identical responses, a row without a real token, or shapes that
            differ.
    """
    either = chosen_mask | rejected_mask
    differs = ((chosen_ids != rejected_ids) | (chosen_mask != rejected_mask)) & either
    if not differs.any(1).all():
        row = (~differs.any(1)).nonzero()[0].item()
        raise ValueError(
            f"Pair {row} has two identical responses: chosen_ids and rejected_ids are equal. Leave "
            "such pairs out: neither response is better."
        )
    counted = either & (differs.cumsum(1) > 0)
    chosen, rejected = (
        _hold_last(scores, mask)
        for scores, mask in ((chosen_scores, chosen_mask), (rejected_scores, rejected_mask))
    )
    losses = zero_masked(-logsigmoid(chosen - rejected), counted)
    return losses.sum(1) / counted.sum(1)


def _hold_last(scores: Tensor, mask: Tensor) -> Tensor:
    """Scores with the last real score repeated where masked."""
    last = last_token_scores(scores, mask)
    return torch.where(mask, scores, last[:, None])
