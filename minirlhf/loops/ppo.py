"""PPO from a reward model: four models, one rollout, a few epochs of clipped steps.

actor      pi      trained        what we want          reference  pi_ref  frozen   a copy of the start
reward     r       frozen         scores a response     critic     V       trained  starts as a copy of the reward model

reward_t = -kl_coef (log pi_old - log pi_ref)_t + [t is the last token] r(x, y)
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import torch

from minirlhf.core.kl import adapt_kl_coef, kl_shaped_rewards
from minirlhf.core.masking import aggregate, loss_denominator, masked_mean, masked_whiten
from minirlhf.core.policy_gradient import (
    explained_variance,
    is_clipped,
    mean_ratio,
    ppo_clip,
    value_loss_clipped,
)
from minirlhf.core.returns import gae
from minirlhf.core.rollout import Rollout
from minirlhf.loops.checkpoint import Checkpoint
from minirlhf.loops.common import clipped_step, linear_decay, make_optimizer, shuffled_batches
from minirlhf.loops.config import KLConfig, OptimiserConfig
from minirlhf.models.adapters import reference_of
from minirlhf.models.forward import encode_prompts, policy_logprobs, response_values
from minirlhf.models.heads import SharedCritic
from minirlhf.models.sampling import SamplingConfig, sample
from minirlhf.runtime import History, check, seed_all


@dataclass(frozen=True)
class PPOConfig:
    """Settings of PPO. A step is one rollout and `epochs` passes over it."""

    steps: int = 24
    batch_size: int = 64  # responses a rollout
    samples_per_prompt: int = (
        1  # several tell the critic more about one prompt, as GRPO's groups tell its mean
    )
    minibatch_size: int = 32  # sequences an optimiser step
    epochs: int = 2  # passes over a rollout, 1 .. 4
    clip_eps: float = 0.2  # ratio clip, 0.1 .. 0.3
    clip_eps_high: float | None = (
        None  # above 1 + clip_eps_high, if another; larger is DAPO's clip-higher
    )
    value_clip_eps: float = 0.5  # reward units
    value_coef: float = 1.0  # weight of the value loss beside the policy's, 0.1 .. 1: of consequence where they share a trunk
    gamma: float = 1.0
    lam: float = 0.95
    whiten: bool = True  # advantages to mean 0 and variance 1 over the real tokens of the rollout
    missing_eos_penalty: float = 1.0  # reward units, taken off a truncated response
    critic_warmup: int = 0  # steps with the actor frozen
    sampling: SamplingConfig = SamplingConfig()
    kl: KLConfig = KLConfig()
    actor: OptimiserConfig = OptimiserConfig(lr=1e-4)
    critic: OptimiserConfig = OptimiserConfig(lr=3e-4)
    seed: int = 0

    def __post_init__(self):
        for field in ("steps", "batch_size", "minibatch_size", "epochs"):
            check(field, getattr(self, field), getattr(self, field) >= 1, "at least 1")
        check(
            "minibatch_size",
            self.minibatch_size,
            self.batch_size % self.minibatch_size == 0,
            "a divisor of batch_size",
        )
        groups = self.samples_per_prompt >= 1 and self.batch_size % self.samples_per_prompt == 0
        check("samples_per_prompt", self.samples_per_prompt, groups, "a divisor of batch_size")
        check("clip_eps", self.clip_eps, 0 < self.clip_eps < 1, "between 0 and 1")
        check(
            "clip_eps_high",
            self.clip_eps_high,
            self.clip_eps_high is None or self.clip_eps_high > 0,
            "None or above 0",
        )
        check(
            "value_coef", self.value_coef, 0 < self.value_coef < float("inf"), "above 0 and finite"
        )
        check(
            "critic.micro_batch",
            self.critic.micro_batch,
            self.critic.micro_batch == 0,
            "0: the actor's holds for both",
        )
        check("gamma", self.gamma, 0 <= self.gamma <= 1, "between 0 and 1")
        check("lam", self.lam, 0 <= self.lam <= 1, "between 0 and 1")


def train_ppo(
    actor,
    critic,
    tokenizer,
    prompts: list[str],
    score: Callable[[Rollout], torch.Tensor],
    config: PPOConfig = PPOConfig(),
    *,
    reference=None,
    monitors: dict[str, Callable] | None = None,
    history: History | None = None,
    on_step=lambda row: None,
    checkpoint: Checkpoint | None = None,
):
    """Train `actor` and `critic` in place.

    Args:
        critic: a ScalarModel, usually a copy of the reward model, backbone and head; or a SharedCritic of this actor, whose trunk
            then learns from both losses at the actor's learning rate, clipped together (config.critic: the head's).
        score: Rollout -> (B,) reward units; what is to be maximised. monitors: the same, only logged.
        reference: frozen policy; a copy of the actor by default.

    Returns:
        (actor, critic, history). Rows: score, kl (nats a sequence), kl_per_token, entropy
        (nats a token, estimated: -mean log pi of what was sampled), length, missing_eos, ratio,
        clip_fraction, policy_loss, value_loss, explained_variance, grad_norm, kl_coef.
    """
    history = History() if history is None else history
    generator = seed_all(config.seed)
    sampling, shared = config.sampling.for_training(), isinstance(critic, SharedCritic)
    apart = {*map(id, actor.parameters())}.isdisjoint(
        map(id, critic.parameters())
    )  # no weight is stepped by two optimisers
    check(
        "critic",
        type(critic).__name__,
        critic.actor is actor if shared else apart,
        "a SharedCritic of this actor to share its weights",
    )
    reference = (
        reference_of(actor) if reference is None else reference.eval()
    )  # under no_grad, never trained
    actor_optimizer, critic_optimizer = (
        make_optimizer(actor, config.actor),
        make_optimizer(critic, config.critic),
    )
    state, clip = (
        {"kl_coef": config.kl.kl_coef},
        {"clip_eps": config.clip_eps, "clip_eps_high": config.clip_eps_high},
    )
    actor.eval(), critic.eval()  # dropout off: the ratio must be 1 at the first minibatch
    run = (checkpoint or Checkpoint()).attach(
        "ppo",
        config,
        prompts,
        [actor, critic],
        [actor_optimizer, critic_optimizer],
        history,
        generators=[generator],
        state=state,
    )
    several = config.samples_per_prompt
    for step, index in run.steps(
        shuffled_batches(len(prompts), config.batch_size // several, config.steps, config.seed)
    ):
        kl_coef = state["kl_coef"]
        # 1. rollout: the log-probabilities are recorded while sampling
        ids, mask = encode_prompts(tokenizer, [prompts[i] for i in index])
        rollout = sample(
            actor,
            ids,
            mask,
            eos_id=tokenizer.eos_token_id,
            config=sampling,
            samples_per_prompt=several,
            generator=generator,
        )
        mask, lengths = rollout.response_mask, rollout.response_mask.sum(1)
        # 2. score, reference, values: three forward passes without gradient
        with torch.no_grad():
            scores = score(rollout)
            finished = rollout.finished(tokenizer.eos_token_id)
            penalised = scores - config.missing_eos_penalty * ~finished
            ref_logprobs = policy_logprobs(reference, rollout, temperature=sampling.temperature)
            values = response_values(critic, rollout)
        # 3. rewards and advantages, fixed over the epochs; returns are made before whitening
        rewards = kl_shaped_rewards(
            penalised, rollout.old_logprobs, ref_logprobs, mask, kl_coef=kl_coef
        )
        advantages, returns = gae(rewards, values, mask, gamma=config.gamma, lam=config.lam)
        if config.whiten:
            advantages = masked_whiten(advantages, mask)
        # 4. update: every minibatch is one optimiser step for the actor and one for the critic
        linear_decay(
            actor_optimizer, config.actor.lr * (step >= config.critic_warmup), step, config.steps
        )
        linear_decay(critic_optimizer, config.critic.lr, step, config.steps)
        log, updates = (
            defaultdict(float),
            config.epochs * config.batch_size // config.minibatch_size,
        )
        for _ in range(config.epochs):
            for rows in torch.randperm(config.batch_size, generator=generator).split(
                config.minibatch_size
            ):
                tokens = loss_denominator(mask[rows], how="token_mean")
                for micro in config.actor.split(rows):
                    part = rollout.select(micro)
                    width, part_mask = part.response_ids.shape[1], part.response_mask
                    advantage, share = advantages[micro, :width], part_mask.sum() / tokens
                    if shared:  # one pass for both heads
                        logprobs, new_values = critic.logprobs_and_values(
                            part, temperature=sampling.temperature
                        )
                    else:
                        logprobs = policy_logprobs(actor, part, temperature=sampling.temperature)
                    policy_losses = ppo_clip(
                        logprobs, part.old_logprobs, advantage, part_mask, **clip
                    )
                    policy_loss = aggregate(
                        policy_losses, part_mask, how="token_mean", denominator=tokens
                    )
                    if (
                        not shared
                    ):  # the actor's activations are let go before the critic's are made
                        policy_loss.backward()
                        new_values = response_values(critic, part)
                    value_losses = value_loss_clipped(
                        new_values,
                        values[micro, :width],
                        returns[micro, :width],
                        part_mask,
                        clip_eps=config.value_clip_eps,
                    )
                    value_loss = aggregate(
                        value_losses, part_mask, how="token_mean", denominator=tokens
                    )
                    ((policy_loss if shared else 0.0) + config.value_coef * value_loss).backward()
                    with torch.no_grad():
                        clipped = is_clipped(
                            logprobs, part.old_logprobs, advantage, part_mask, **clip
                        )
                        for name, value in {
                            "policy_loss": policy_loss,
                            "value_loss": value_loss,
                            "ratio": share * mean_ratio(logprobs, part.old_logprobs, part_mask),
                            "clip_fraction": share * masked_mean(clipped.float(), part_mask),
                        }.items():
                            log[name] += value.item() / updates
                log["grad_norm"] += (
                    clipped_step(actor, actor_optimizer, config.actor.max_grad_norm).item()
                    / updates
                )
                clipped_step(critic, critic_optimizer, config.critic.max_grad_norm)
        # 5. log: what was sampled before this update, and how the update went
        kl = ((rollout.old_logprobs - ref_logprobs) * mask).sum(1)
        row = log | {name: monitor(rollout).mean() for name, monitor in (monitors or {}).items()}
        on_step(
            history.log(
                "ppo",
                step,
                steps=config.steps,
                score=scores.mean(),
                kl=kl.mean(),
                kl_per_token=kl.sum() / lengths.sum(),
                kl_coef=kl_coef,
                entropy=-masked_mean(rollout.old_logprobs, mask),
                length=lengths.float().mean(),
                missing_eos=1 - finished.float().mean(),
                explained_variance=explained_variance(values, returns, mask),
                **row,
            )
        )
        if config.kl.target is not None:
            state["kl_coef"] = adapt_kl_coef(
                kl_coef,
                kl.mean().item(),
                target=config.kl.target,
                horizon=config.kl.horizon,
                batch_size=config.batch_size,
            )
    return actor, critic, history
