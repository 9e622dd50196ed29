"""The two networks that PPO trains, with or without a shared trunk."""

from collections.abc import Callable
from typing import Any

import torch

from minirlhf.core.rollout import Rollout
from minirlhf.loops.common import clipped_step, make_optimizer, set_learning_rate
from minirlhf.loops.config import OptimiserConfig
from minirlhf.models import forward
from minirlhf.models.adapters import Policy
from minirlhf.models.forward import policy_logprobs
from minirlhf.models.heads import ScalarModel, SharedCritic
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
        response_values: (critic, batch) -> (B, R) values. It cannot be replaced with a
            SharedCritic, whose values come from the actor's own pass.

    Raises:
        ValueError: a critic that shares weights in another way, or a replaced response_values with
            a SharedCritic.
    """

    def __init__(
        self,
        actor: Policy,
        critic: ScalarModel,
        actor_config: OptimiserConfig,
        critic_config: OptimiserConfig,
        *,
        temperature: float,
        response_values: Callable = forward.response_values,
    ) -> None:
        self.shared = isinstance(critic, SharedCritic)
        apart = {*map(id, actor.parameters())}.isdisjoint(map(id, critic.parameters()))
        check(
            "critic",
            type(critic).__name__,
            critic.actor is actor if isinstance(critic, SharedCritic) else apart,
            "a SharedCritic of this actor, or a model that shares no weight with it",
        )
        check(
            "response_values",
            getattr(response_values, "__name__", response_values),
            not self.shared or response_values is forward.response_values,
            "the package's own with a SharedCritic",
        )
        self.actor, self.critic = actor, critic
        self._held: dict[str, Any] = {}  # of the last pass of a shared trunk
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
        """(B, R) nats, of the sampled tokens under the actor as it is now."""
        if not isinstance(self.critic, SharedCritic):
            return policy_logprobs(self.actor, batch, temperature=self.temperature)
        logprobs, values = self.critic.logprobs_and_values(batch, temperature=self.temperature)
        self._held = {"batch": batch, "values": values}  # one pass gave both
        return logprobs

    def values(self, batch: Rollout) -> torch.Tensor:
        """(B, R) reward units, of the critic as it is now.

        With a shared trunk they were computed by `logprobs`, so call that with this batch first.
        """
        if not self.shared:
            return self.response_values(self.critic, batch)
        if self._held.get("batch") is not batch:
            raise ValueError("With a shared trunk, call logprobs(batch) before values(batch).")
        return self._held["values"]

    def backward_policy(self, loss: torch.Tensor) -> None:
        """Add the gradient of the policy loss. A shared trunk keeps it for `backward_value`."""
        if self.shared:
            self._held["policy_loss"] = loss
        else:
            loss.backward()

    def backward_value(self, loss: torch.Tensor) -> None:
        """Add the gradient of the value loss, with a shared trunk that of both losses."""
        if self.shared:
            if "policy_loss" not in self._held:
                raise ValueError("With a shared trunk, call backward_policy before backward_value.")
            loss = self._held["policy_loss"] + loss
            self._held = {}
        loss.backward()

    def step(self) -> torch.Tensor:
        """One optimiser step of both networks. Returns the norm of the actor's gradient."""
        norm = clipped_step(self.actor, self.actor_optimizer, self.actor_config.max_grad_norm)
        clipped_step(self.critic, self.critic_optimizer, self.critic_config.max_grad_norm)
        return norm
