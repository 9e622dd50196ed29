"""Direct preference optimisation: the policy is its own reward model."""

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from minirlhf.core.masking import check_same_shape


def dpo(chosen_logprobs: Float[Tensor, "B"], rejected_logprobs: Float[Tensor, "B"], ref_chosen_logprobs: Float[Tensor, "B"],
        ref_rejected_logprobs: Float[Tensor, "B"], *, beta: float) -> Float[Tensor, "B"]:
    """The loss of each pair, nats; ln 2 where policy and reference are the same.

        -log sigmoid(beta [log pi/pi_ref (chosen) - log pi/pi_ref (rejected)])

    Args:
        *_logprobs: sums over the response's tokens, nats (means would be another loss). beta: reward units per nat.

    Source: Rafailov et al. 2023, equation 7.
    """
    _check_beta(beta)
    check_same_shape(chosen_logprobs=chosen_logprobs, rejected_logprobs=rejected_logprobs,
                     ref_chosen_logprobs=ref_chosen_logprobs, ref_rejected_logprobs=ref_rejected_logprobs)
    chosen = chosen_logprobs - ref_chosen_logprobs.detach()
    rejected = rejected_logprobs - ref_rejected_logprobs.detach()
    return -logsigmoid(beta * (chosen - rejected))


def implicit_rewards(logprobs: Float[Tensor, "..."], ref_logprobs: Float[Tensor, "..."], *, beta: float) -> Float[Tensor, "..."]:
    """beta (log pi - log pi_ref), reward units, detached: what DPO's policy thinks of a response (or of each token)."""
    _check_beta(beta)
    check_same_shape(logprobs=logprobs, ref_logprobs=ref_logprobs)
    return beta * (logprobs - ref_logprobs).detach()


def _check_beta(beta: float) -> None:
    if not beta > 0:
        raise ValueError(f"beta is {beta}; it must be above 0.")
