"""Bradley-Terry: from pairs, one preferred, to scores."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import logsigmoid

from minirlhf.core.masking import check_same_shape, zero_masked


def preference_probability(
    scores_a: Float[Tensor, "..."], scores_b: Float[Tensor, "..."]
) -> Float[Tensor, "..."]:
    """P(a > b) = sigmoid(r_a - r_b). A constant added to both changes nothing: scores have no zero.

    Source: Bradley and Terry 1952.
    """
    check_same_shape(scores_a=scores_a, scores_b=scores_b)
    return torch.sigmoid(scores_a - scores_b)


def last_token_scores(
    token_scores: Float[Tensor, "B T"], attention_mask: Bool[Tensor, "B T"]
) -> Float[Tensor, "B"]:
    """The score at the last real token of each row, EOS included, found by the mask.

    Raises:
        ValueError: a row without a real token.
    """
    check_same_shape(token_scores=token_scores, attention_mask=attention_mask)
    if not attention_mask.any(1).all():
        raise ValueError("A row has no real token to be scored.")
    positions = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    last = torch.where(attention_mask, positions, -1).argmax(1, keepdim=True)
    return token_scores.gather(1, last)[:, 0]


def reward_model_loss(
    chosen_scores: Float[Tensor, "B"],
    rejected_scores: Float[Tensor, "B"],
    *,
    margin: Float[Tensor, "B"] | None = None,
    centering_coef: float = 0.0,
) -> Float[Tensor, "B"]:
    """The loss of each pair, nats.

        -log sigmoid(r_c - r_r - margin) + centering_coef (r_c + r_r)^2

    logsigmoid, because log(sigmoid) is -inf at -200. The margin stands inside the sigmoid (Touvron et al. 2023, equation 2); centring
    fixes the free offset near 0 (Eisenstein et al. 2023).
    """
    if not centering_coef >= 0:
        raise ValueError(f"centering_coef is {centering_coef}; it must be 0 or more.")
    check_same_shape(chosen_scores=chosen_scores, rejected_scores=rejected_scores)
    difference = chosen_scores - rejected_scores
    if margin is not None:
        check_same_shape(margin=margin, chosen_scores=chosen_scores)
        difference = difference - margin
    return -logsigmoid(difference) + centering_coef * (chosen_scores + rejected_scores).square()


def per_token_reward_loss(
    chosen_scores: Float[Tensor, "B R"],
    rejected_scores: Float[Tensor, "B R"],
    chosen_mask: Bool[Tensor, "B R"],
    rejected_mask: Bool[Tensor, "B R"],
    chosen_ids: Int[Tensor, "B R"],
    rejected_ids: Int[Tensor, "B R"],
) -> Float[Tensor, "B"]:
    """DeepSpeed-Chat's variant: compare the two responses token by token, from the first token that differs to the end of the longer.

        loss = mean_{t >= first difference} -log sigmoid(r_c,t - r_r,t)

    Past its own end the shorter response keeps its last score (DeepSpeed-Chat reads the padding's). Before the difference the
    texts are the same.

    Raises:
        ValueError: a pair of identical responses.
    """
    check_same_shape(
        chosen_scores=chosen_scores,
        rejected_scores=rejected_scores,
        chosen_mask=chosen_mask,
        rejected_mask=rejected_mask,
        chosen_ids=chosen_ids,
        rejected_ids=rejected_ids,
    )
    either = chosen_mask | rejected_mask
    differs = ((chosen_ids != rejected_ids) | (chosen_mask != rejected_mask)) & either
    if not differs.any(1).all():
        raise ValueError("A pair has identical responses; nothing can be preferred.")
    counted = either & (differs.cumsum(1) > 0)
    chosen, rejected = (
        _hold_last(scores, mask)
        for scores, mask in ((chosen_scores, chosen_mask), (rejected_scores, rejected_mask))
    )
    losses = zero_masked(-logsigmoid(chosen - rejected), counted)
    return losses.sum(1) / counted.sum(1)


def _hold_last(scores: Tensor, mask: Tensor) -> Tensor:
    """Repeat the last real score over the padding behind it."""
    last = last_token_scores(scores, mask)
    return torch.where(mask, scores, last[:, None])
