"""GRPO: no critic. A prompt's own group of samples says what was to be expected.

    A_i = (r_i - mean r) / (std r + eps)   for the G responses of one prompt, the same at each of its tokens
    (Shao et al. 2024)
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from einops import rearrange, repeat

from minirlhf.core.baselines import group_relative
from minirlhf.core.kl import adapt_kl_coef, kl_shaped_rewards
from minirlhf.core.masking import aggregate, loss_denominator, masked_mean
from minirlhf.core.policy_gradient import is_clipped, mean_ratio, ppo_clip
from minirlhf.core.rollout import Rollout
from minirlhf.loops.checkpoint import Checkpoint
from minirlhf.loops.common import clipped_step, linear_decay, make_optimizer, shuffled_batches
from minirlhf.loops.config import KLConfig, OptimiserConfig
from minirlhf.models.adapters import reference_of
from minirlhf.models.forward import encode_prompts, policy_logprobs
from minirlhf.models.sampling import SamplingConfig, sample
from minirlhf.runtime import History, check, seed_all


@dataclass(frozen=True)
class GRPOConfig:
    """Settings of GRPO. A step is one rollout of `prompts_per_step` groups."""

    steps: int = 24
    prompts_per_step: int = 16
    group_size: int = 4  # G, 4 .. 16
    minibatch_size: int = 32  # sequences an optimiser step
    epochs: int = 2
    clip_eps: float = 0.2
    clip_eps_high: float | None = None  # DAPO's clip-higher when larger than clip_eps
    scale_by_std: bool = True  # False removes the difficulty bias (Dr. GRPO's first half)
    aggregation: str = "sequence_mean"  # GRPO's; token_mean is DAPO's
    missing_eos_penalty: float = 1.0  # reward units
    sampling: SamplingConfig = SamplingConfig()
    kl: KLConfig = KLConfig()  # in the reward, as in PPO, so that both share one optimum
    optimiser: OptimiserConfig = OptimiserConfig(lr=1e-4)
    seed: int = 0

    def __post_init__(self):
        for field in ("steps", "prompts_per_step", "minibatch_size", "epochs"):
            check(field, getattr(self, field), getattr(self, field) >= 1, "at least 1")
        check("group_size", self.group_size, self.group_size >= 2, "at least 2: a group of one has no baseline")
        batch = self.prompts_per_step * self.group_size
        check("minibatch_size", self.minibatch_size, batch % self.minibatch_size == 0, f"a divisor of the {batch} samples a step")
        check("clip_eps", self.clip_eps, 0 < self.clip_eps < 1, "between 0 and 1")


def train_group(model, tokenizer, prompts: list[str], score: Callable[[Rollout], torch.Tensor],
                config: GRPOConfig = GRPOConfig(), *, reference=None, monitors: dict[str, Callable] | None = None,
                history: History | None = None, on_step=lambda row: None, checkpoint: Checkpoint | None = None):
    """Train `model` in place.

    Args:
        score: Rollout -> (B,) reward units. monitors: the same, only logged.

    Returns:
        (model, history). Rows: score, reward_std (within groups), frac_reward_zero_std, kl (nats a sequence), entropy
        (nats a token, estimated: -mean log pi of what was sampled), length, missing_eos, ratio, clip_fraction,
        policy_loss, grad_norm, kl_coef.
    """
    history = History() if history is None else history
    generator = seed_all(config.seed)
    sampling, G = config.sampling.for_training(), config.group_size
    reference = reference_of(model) if reference is None else reference.eval()  # under no_grad, never trained
    optimizer = make_optimizer(model, config.optimiser)
    state = {"kl_coef": config.kl.kl_coef}
    model.eval()
    run = (checkpoint or Checkpoint()).attach("grpo", config, prompts, [model], [optimizer], history, generators=[generator],
                                              state=state)
    for step, index in run.steps(shuffled_batches(len(prompts), config.prompts_per_step, config.steps, config.seed)):
        kl_coef = state["kl_coef"]
        # 1. rollout: each prompt G times, groups side by side
        ids, mask = encode_prompts(tokenizer, [prompts[i] for i in index])
        rollout = sample(model, ids, mask, eos_id=tokenizer.eos_token_id, config=sampling, samples_per_prompt=G, generator=generator)
        mask = rollout.response_mask
        # 2. score; the KL penalty of a whole response joins its score before the group is compared
        with torch.no_grad():
            scores, finished = score(rollout), rollout.finished(tokenizer.eos_token_id)
            ref_logprobs = policy_logprobs(reference, rollout, temperature=sampling.temperature)
            penalised = scores - config.missing_eos_penalty * ~finished
            rewards = kl_shaped_rewards(penalised, rollout.old_logprobs, ref_logprobs, mask, kl_coef=kl_coef)
            group_scores = rearrange(rewards.sum(1), "(n g) -> n g", g=G)
        # 3. advantages: one number a response
        grouped = group_relative(group_scores, scale_by_std=config.scale_by_std)
        advantages = repeat(rearrange(grouped, "n g -> (n g)"), "b -> b r", r=mask.shape[1])
        # 4. update
        linear_decay(optimizer, config.optimiser.lr, step, config.steps)
        log, updates = defaultdict(float), config.epochs * len(mask) // config.minibatch_size
        clip = {"clip_eps": config.clip_eps, "clip_eps_high": config.clip_eps_high}
        for _ in range(config.epochs):
            for rows in torch.randperm(len(mask), generator=generator).split(config.minibatch_size):
                total = loss_denominator(mask[rows], how=config.aggregation)
                for micro in config.optimiser.split(rows):
                    part = rollout.select(micro)
                    width, part_mask = part.response_ids.shape[1], part.response_mask
                    advantage, share = advantages[micro, :width], part_mask.sum() / mask[rows].sum()
                    logprobs = policy_logprobs(model, part, temperature=sampling.temperature)
                    losses = ppo_clip(logprobs, part.old_logprobs, advantage, part_mask, **clip)
                    loss = aggregate(losses, part_mask, how=config.aggregation, denominator=total)
                    loss.backward()
                    with torch.no_grad():
                        clipped = is_clipped(logprobs, part.old_logprobs, advantage, part_mask, **clip)
                        for name, value in {
                            "policy_loss": loss, "ratio": share * mean_ratio(logprobs, part.old_logprobs, part_mask),
                            "clip_fraction": share * masked_mean(clipped.float(), part_mask),
                        }.items():
                            log[name] += value.item() / updates
                log["grad_norm"] += clipped_step(model, optimizer, config.optimiser.max_grad_norm).item() / updates
        # 5. log
        kl = ((rollout.old_logprobs - ref_logprobs) * mask).sum(1)
        spread = rearrange(scores, "(n g) -> n g", g=G).std(1)
        row = log | {name: monitor(rollout).mean() for name, monitor in (monitors or {}).items()}
        on_step(history.log("grpo", step, steps=config.steps, score=scores.mean(), reward_std=spread.mean(),
                            frac_reward_zero_std=(spread == 0).float().mean(), kl=kl.mean(), kl_coef=kl_coef,
                            entropy=-masked_mean(rollout.old_logprobs, mask),
                            length=mask.sum(1).float().mean(), missing_eos=1 - finished.float().mean(), **row))
        if config.kl.target is not None:
            state["kl_coef"] = adapt_kl_coef(kl_coef, kl.mean().item(), target=config.kl.target, horizon=config.kl.horizon,
                                             batch_size=len(mask))
    return model, history
