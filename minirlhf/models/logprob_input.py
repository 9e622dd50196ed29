"""A backbone that also says how likely the policy finds each step."""

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput

from minirlhf.models.adapters import Policy
from minirlhf.models.forward import device_of


class WithLogprobs(nn.Module):
    """A policy's hidden states and log-probabilities, as the backbone of a `ScalarModel`.

        h'_t = h_t + l_t v        l_t = min of log pi(token) over the step, up to token t

    h_t is the policy's last hidden state, and v a learned vector that starts at 0. A linear head on
    h' gives w . h + (w . v) l + b: the head of `ScalarModel` with l as a further input. Only w, v
    and b are trained, and the policy stays as it is.

    To find a mistake in 26-9=17 a model must calculate, and compare with the token that follows.
    The policy has made this comparison already: a token that it finds unlikely is often wrong.

    A prompt must end in one of `ends`, as 12+10-1+7= does. Otherwise its last tokens count for the
    first step. `ScalarModel.save` does not save such a model.

    Args:
        policy: gives the hidden states and the log-probabilities.
        ends: the ids that end a step, see `step_end_ids`.
    """

    ends: torch.Tensor

    def __init__(self, policy: Policy, ends: tuple[int, ...]) -> None:
        super().__init__()
        # torch does not look into tuples: the policy's weights are not parameters of this module
        self._policy, self.config = (policy,), policy.config
        self.register_buffer("ends", torch.tensor(ends, device=device_of(policy)))
        self.direction = nn.Parameter(
            torch.zeros(policy.config.hidden_size, device=device_of(policy))
        )

    def get_input_embeddings(self) -> nn.Module:
        """The policy's embedding."""
        return self._policy[0].get_input_embeddings()

    def forward(self, input_ids: torch.Tensor, **read: torch.Tensor) -> BaseModelOutput:
        """Token ids (B, T) -> hidden states h' (B, T, hidden), as `last_hidden_state`."""
        with torch.no_grad():
            found = self._policy[0](input_ids=input_ids, output_hidden_states=True, **read)
            lowest = self._lowest(input_ids, found.logits)
        hidden = found.hidden_states[-1] + lowest[..., None] * self.direction
        return BaseModelOutput(last_hidden_state=hidden)

    def _lowest(self, input_ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """l (B, T), in nats. The first token has no log-probability; 0 stands in its place."""
        logprobs = logits[:, :-1].log_softmax(-1).gather(2, input_ids[:, 1:, None])[..., 0]
        logprobs = torch.cat([torch.zeros_like(logprobs[:, :1]), logprobs], 1)
        is_end = torch.isin(input_ids, self.ends)
        number = is_end.cumsum(1) - is_end.long()  # steps that ended before this token
        same = (number[:, :, None] == number[:, None, :]).tril()  # [b, t, s]: s is read at t
        return logprobs[:, None, :].where(same, 0).amin(2)
