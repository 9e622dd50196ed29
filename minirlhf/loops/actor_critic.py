"""The two networks that PPO trains, with or without a shared trunk."""

from collections.abc import Callable

import torch

from minirlhf.core.rollout import Rollout
from minirlhf.loops.common import clipped_step, make_optimizer, set_learning_rate
from minirlhf.loops.config import OptimiserConfig
from minirlhf.models.forward import policy_logprobs, response_values
from minirlhf.models.heads import SharedCritic
from minirlhf.runtime import check


class ActorCritic:
    """Actor and critic with their optimisers.

    Two separate networks have a forward and a backward pass each, one after the other: the actor's
    activations are freed before the critic's are made. With a `SharedCritic` one forward pass gives
    log-probabilities and values, and one backward pass follows from the sum of both losses.

    Args:
        actor: the policy.
        critic: the network that predicts returns: a ScalarModel that shares no weight with the
            actor, or a SharedCritic of this actor.
        temperature: that of the rollout.
        response_values: (critic, batch) -> (B, R) values; PPO's default or its replacement. It is
            not called for a SharedCritic.
    """

    def __init__(
        self,
        actor,
        critic,
        actor_config: OptimiserConfig,
        critic_config: OptimiserConfig,
        *,
        temperature: float,
        response_values: Callable = response_values,
    ):
        self.shared = isinstance(critic, SharedCritic)
        apart = {*map(id, actor.parameters())}.isdisjoint(map(id, critic.parameters()))
        check(
            "critic",
            type(critic).__name__,
            critic.actor is actor if self.shared else apart,
            "a SharedCritic of this actor, or a model that shares no weight with it",
        )
        self.actor, self.critic = actor, critic
        self.actor_config, self.critic_config = actor_config, critic_config
        self.temperature, self.response_values = temperature, response_values
        self.actor_optimizer = make_optimizer(actor, actor_config)
        self.critic_optimizer = make_optimizer(critic, critic_config)
        actor.eval()  # dropout off: the importance ratio must be 1 at the first minibatch
        critic.eval()

    def set_learning_rates(self, step: int, steps: int, *, train_actor: bool = True) -> None:
        """Set both learning rates of a step. Without `train_actor` the actor's weights stay."""
        set_learning_rate(self.critic_optimizer, self.critic_config, step, steps)
        set_learning_rate(self.actor_optimizer, self.actor_config, step, steps)
        if not train_actor:
            for group in self.actor_optimizer.param_groups:
                group["lr"] = 0.0

    def logprobs(self, batch: Rollout) -> torch.Tensor:
        """(B, R) log-probabilities of the sampled tokens under the current actor, in nats."""
        if self.shared:  # one pass gives both; `values` returns the values
            logprobs, self._values = self.critic.logprobs_and_values(
                batch, temperature=self.temperature
            )
            return logprobs
        return policy_logprobs(self.actor, batch, temperature=self.temperature)

    def values(self, batch: Rollout) -> torch.Tensor:
        """(B, R) values of the current critic, in reward units (the unit of the score).

        Call it after `logprobs`. With a SharedCritic it returns what that call computed.
        """
        return self._values if self.shared else self.response_values(self.critic, batch)

    def backward(
        self, *, policy_loss: torch.Tensor | None = None, value_loss: torch.Tensor | None = None
    ) -> None:
        """Add the gradient of a loss. Call it with the policy loss first, then the value loss.

        With a SharedCritic the first call only keeps the policy loss. The second call adds the
        gradient of the sum of both.
        """
        if policy_loss is not None and self.shared:
            self._policy_loss = policy_loss  # kept for the one backward pass of both losses
        elif policy_loss is not None:
            policy_loss.backward()
        else:
            (self._policy_loss + value_loss if self.shared else value_loss).backward()

    def step(self) -> torch.Tensor:
        """One optimiser step of both networks. Returns the norm of the actor's gradient."""
        norm = clipped_step(self.actor, self.actor_optimizer, self.actor_config.max_grad_norm)
        clipped_step(self.critic, self.critic_optimizer, self.critic_config.max_grad_norm)
        return norm
