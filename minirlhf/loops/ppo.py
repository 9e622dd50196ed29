"""Proximal policy optimisation (PPO) on a reward model's score.

Four models take part:

    actor         pi       trained   the policy
    reference     pi_ref   frozen    a copy of the actor before training
    reward model  r        frozen    scores a finished response
    critic        V        trained   predicts the return of a prefix; starts as a copy of r

Each token gets a reward: a KL penalty, and at the last token the score.

    reward_t = -kl_coef (log pi_old - log pi_ref)_t + [t is the last token] r(x, y)

The advantages A follow from rewards and values by generalised advantage estimation (GAE). The loss
of a token is clipped:

    ratio = pi / pi_old      loss = -min(ratio A, clip(ratio, 1 - clip_eps, 1 + clip_eps) A)

ratio is the importance ratio of a token. Log-probabilities are in nats, the unit of natural
logarithms. Rewards and values are in reward units, the unit of the score. Shapes: B responses of at
most R tokens.

Source: Schulman et al. 2017; for language models Ziegler et al. 2019.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from minirlhf.core.kl import kl_shaped_rewards
from minirlhf.core.masking import aggregate, loss_denominator, masked_mean, masked_whiten
from minirlhf.core.policy_gradient import (
    explained_variance,
    is_clipped,
    mean_ratio,
    ppo_clip,
    value_loss,
    value_loss_clipped,
)
from minirlhf.core.returns import gae
from minirlhf.core.rollout import Rollout, Score
from minirlhf.loops.actor_critic import ActorCritic
from minirlhf.loops.checkpoint import Checkpoint
from minirlhf.loops.common import (
    MeanMetrics,
    checked_scores,
    micro_batches,
    sampling_metrics,
    shuffled_batches,
    with_rows,
)
from minirlhf.loops.config import Clip, KLConfig, OptimiserConfig, check_batch
from minirlhf.loops.rows import also_reading, check_tokens
from minirlhf.models.adapters import LanguageModel, SomePolicy, reference_of
from minirlhf.models.fit import end_ids
from minirlhf.models.forward import encode_prompts, policy_logprobs, response_values
from minirlhf.models.heads import ScalarModel
from minirlhf.models.sampling import SamplingConfig, sample
from minirlhf.runtime import History, OnStep, check, seed_all
from minirlhf.tasks.prompts import prompt_texts


@dataclass(frozen=True)
class PPOConfig:
    """Settings of PPO. Each step samples one batch and trains on it for `epochs` epochs.

    Args:
        steps: batches that are sampled.
        batch_size: responses sampled per step.
        samples_per_prompt: responses to each prompt; batch_size counts all of them.
        minibatch_size: responses per optimiser step; a divisor of batch_size.
        epochs: passes over a batch, 1 .. 4.
        clip_eps: clip of the importance ratio, 0.1 .. 0.3.
        clip_eps_high: its upper end; None: clip_eps. A larger one is DAPO's clip-higher.
        value_clip_eps: clip of the value loss, reward units; None: not clipped.
        value_coef: weight of the value loss, 0.1 .. 1; it matters for a shared trunk.
        gamma: discount, 0 to 1. 1: a reward counts the same wherever it arrives.
        lam: lambda of GAE, 0 to 1. 1: advantages do not rely on the critic; lower: less variance.
        whiten: scale the advantages of a batch to mean 0 and variance 1. A constant factor in your
            own advantages then changes nothing.
        missing_eos_penalty: reward units, 0 or more, taken off the score of a truncated response.
        critic_warmup: first steps in which only the critic is trained.
        sampling: how responses are drawn. kl: the KL penalty.
        actor, critic: their optimisers.
        seed: of everything random.

    Raises:
        ValueError: a value outside its range.
    """

    steps: int = 24
    batch_size: int = 64
    samples_per_prompt: int = 1
    minibatch_size: int = 32
    epochs: int = 2
    clip_eps: float = 0.2
    clip_eps_high: float | None = None
    value_clip_eps: float | None = 0.5
    value_coef: float = 1.0
    gamma: float = 1.0
    lam: float = 0.95
    whiten: bool = True
    missing_eos_penalty: float = 1.0
    critic_warmup: int = 0
    sampling: SamplingConfig = SamplingConfig()
    kl: KLConfig = KLConfig()
    actor: OptimiserConfig = OptimiserConfig(lr=1e-4)
    critic: OptimiserConfig = OptimiserConfig(lr=3e-4)
    seed: int = 0

    def __post_init__(self) -> None:
        check_batch("batch_size", self.batch_size)
        for field in ("steps", "minibatch_size", "epochs"):
            check(field, getattr(self, field), getattr(self, field) >= 1, "at least 1")
        whole = self.batch_size % self.minibatch_size == 0
        check("minibatch_size", self.minibatch_size, whole, "a divisor of batch_size")
        whole = self.samples_per_prompt >= 1 and self.batch_size % self.samples_per_prompt == 0
        check("samples_per_prompt", self.samples_per_prompt, whole, "a divisor of batch_size")
        check("clip_eps", self.clip_eps, 0 < self.clip_eps < 1, "between 0 and 1")
        high = self.clip_eps_high is None or self.clip_eps_high > 0
        check("clip_eps_high", self.clip_eps_high, high, "None or above 0")
        above = self.value_clip_eps is None or self.value_clip_eps > 0
        check("value_clip_eps", self.value_clip_eps, above, "above 0, or None for no clip")
        finite = 0 < self.value_coef < float("inf")
        check("value_coef", self.value_coef, finite, "above 0 and finite")
        none = self.critic.micro_batch == 0
        check("critic.micro_batch", self.critic.micro_batch, none, "0: actor.micro_batch sets both")
        check("gamma", self.gamma, 0 <= self.gamma <= 1, "between 0 and 1")
        check("lam", self.lam, 0 <= self.lam <= 1, "between 0 and 1")
        good = 0 <= self.missing_eos_penalty < float("inf")
        check("missing_eos_penalty", self.missing_eos_penalty, good, "0 or more, and finite")

    @classmethod
    def plain(cls, **given: Any) -> "PPOConfig":
        """PPO with every extra switched off, to be compared with a loop written by hand.

        No whitening, no clip of the value loss, no penalty for a missing EOS, a constant learning
        rate, no gradient clipping. The ratio's clip and the KL penalty belong to the algorithm and
        stay; kl=KLConfig(kl_coef=0) turns the penalty off. Other settings can be given as usual;
        for another learning rate give actor=OptimiserConfig.plain(lr=...), which stays plain.
        """
        off = {
            "whiten": False,
            "value_clip_eps": None,
            "missing_eos_penalty": 0.0,
            "actor": OptimiserConfig.plain(lr=cls.actor.lr),
            "critic": OptimiserConfig.plain(lr=cls.critic.lr),
        }
        return cls(**off | given)

    @property
    def clip(self) -> Clip:
        """The settings of the clip, as keyword arguments of `core.ppo_clip`."""
        return {"clip_eps": self.clip_eps, "clip_eps_high": self.clip_eps_high}


@dataclass(frozen=True)
class PPOFormulas:
    """The functions that PPO uses; replace one to try your own: PPOFormulas(gae=my_gae).

    A field has the name and the arguments of the package's function. The metrics ratio and
    clip_fraction always describe the package's clip.
    """

    sample: Callable = sample
    response_values: Callable = response_values
    kl_shaped_rewards: Callable = kl_shaped_rewards
    gae: Callable = gae
    masked_whiten: Callable = masked_whiten
    ppo_clip: Callable = ppo_clip
    value_loss: Callable = value_loss
    value_loss_clipped: Callable = value_loss_clipped


def train_ppo(
    actor: SomePolicy,
    critic: ScalarModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Iterable[Any],
    score: Score,
    config: PPOConfig = PPOConfig(),
    *,
    formulas: PPOFormulas = PPOFormulas(),
    reference: LanguageModel | None = None,
    monitors: dict[str, Score] | None = None,
    history: History | None = None,
    on_step: OnStep = lambda row: None,
    checkpoint: Checkpoint | None = None,
) -> tuple[SomePolicy, ScalarModel, History]:
    """Train `actor` and `critic` in place by PPO.

    Random numbers: the order of the prompts is that of `shuffled_batches(..., config.seed)`.
    Another generator, torch.Generator().manual_seed(config.seed), draws in each step first the
    responses (one uniform per response and token position, see `sample`), then one
    torch.randperm(batch_size) per epoch. Nothing else is random.

    Args:
        critic: a ScalarModel, usually a copy of the reward model, backbone and head. Or a
            SharedCritic of this actor: its trunk then learns from both losses, at the actor's
            learning rate and gradient clip; config.critic is the head's.
        prompts: texts or conversations, in any form that `tasks.prompt_texts` reads.
        score: batch -> (B,) reward units, to be maximised.
        formulas: the functions that the loop uses.
        reference: the frozen policy of the KL penalty; by default a copy of the actor.
        monitors: further scores by name, logged only.
        on_step: called with each row of the history.
        checkpoint: where the run is saved and resumed from.

    Returns:
        (actor, critic, history). Rows of the history:
        score: mean over the batch, reward units. score_range: highest less lowest score.
        kl: nats per response. kl_per_token, kl_coef.
        entropy: nats per token, estimated as -mean log pi of the sampled tokens.
        length: tokens. missing_eos: share of truncated responses (cut off before EOS).
        ratio, clip_fraction, policy_loss, value_loss, grad_norm (of the actor): means over the
        optimiser steps. explained_variance: of the critic, before the update.
    """
    history = History() if history is None else history
    texts = prompt_texts(prompts, tokenizer)
    generator = seed_all(config.seed)
    sampling, eos_id = config.sampling.for_training(), end_ids(actor, tokenizer)
    others = also_reading(score, reference=reference, critic=critic.backbone)
    check_tokens(texts, tokenizer, actor, max_new_tokens=sampling.max_new_tokens, others=others)
    reference = reference_of(actor) if reference is None else reference.eval()
    networks = ActorCritic(
        actor,
        critic,
        config.actor,
        config.critic,
        temperature=sampling.temperature,
        response_values=formulas.response_values,
    )
    state = {"kl_coef": config.kl.kl_coef}
    run = (checkpoint or Checkpoint()).attach(
        "ppo",
        config,
        texts,
        [actor, critic],
        [networks.actor_optimizer, networks.critic_optimizer],
        history,
        generators=[generator],
        state=state,
        formulas=formulas,
        score=score,
        reference=reference,
    )
    prompts_per_step = config.batch_size // config.samples_per_prompt
    batches = shuffled_batches(len(texts), prompts_per_step, config.steps, config.seed)
    for step, index in run.steps(batches):
        kl_coef = state["kl_coef"]
        # 1. Sample, and keep every token's log-probability under this policy.
        ids, prompt_mask = encode_prompts(tokenizer, [texts[i] for i in index])
        batch = formulas.sample(
            actor,
            ids,
            prompt_mask,
            eos_id=eos_id,
            config=sampling,
            samples_per_prompt=config.samples_per_prompt,
            generator=generator,
        )
        batch, mask = with_rows(batch, index, step, config.steps), batch.action_mask
        # 2. Ask the three other models: reward model, reference and critic.
        scores = checked_scores(score, batch)
        with torch.no_grad():
            ref_logprobs = policy_logprobs(reference, batch, temperature=sampling.temperature)
            values = formulas.response_values(critic, batch)
        # 3. Rewards: a KL penalty on every token, the score on the last one. Then advantages.
        penalised = scores - config.missing_eos_penalty * ~batch.finished(eos_id)
        rewards = formulas.kl_shaped_rewards(
            penalised, batch.old_logprobs, ref_logprobs, mask, kl_coef=kl_coef
        )
        advantages, returns = formulas.gae(
            rewards, values, mask, gamma=config.gamma, lam=config.lam
        )
        if config.whiten:
            advantages = formulas.masked_whiten(advantages, mask)
        batch = batch.with_columns(values=values, advantages=advantages, returns=returns)
        # 4. Update: some epochs in minibatches, each an optimiser step of both networks.
        networks.set_learning_rates(step, config.steps, train_actor=step >= config.critic_warmup)
        metrics = MeanMetrics(config.epochs * config.batch_size // config.minibatch_size)
        for _ in range(config.epochs):
            order = torch.randperm(len(mask), generator=generator, device="cpu")
            for rows in order.split(config.minibatch_size):
                minibatch = batch.select(rows)
                denominator = loss_denominator(minibatch.action_mask)  # the number of its tokens
                for part in micro_batches(minibatch, config.actor):
                    logprobs = networks.logprobs(part)
                    policy_losses = formulas.ppo_clip(
                        logprobs,
                        part.old_logprobs,
                        part.advantages,
                        part.action_mask,
                        **config.clip,
                    )
                    policy_loss = aggregate(
                        policy_losses, part.action_mask, denominator=denominator
                    )
                    networks.backward_policy(policy_loss)
                    value_losses = _value_losses(networks.values(part), part, config, formulas)
                    value_loss = aggregate(value_losses, part.action_mask, denominator=denominator)
                    networks.backward_value(config.value_coef * value_loss)
                    ratios = _ratio_metrics(logprobs, part, denominator, config)
                    metrics.add(policy_loss=policy_loss, value_loss=value_loss, **ratios)
                grad_norm = networks.step()
                metrics.add(grad_norm=grad_norm)
        # 5. Log what was sampled before this update, and how the update went.
        sampled = sampling_metrics(batch, ref_logprobs, eos_id)
        kl = sampled.pop("kl")
        row = history.log(
            "ppo",
            step,
            steps=config.steps,
            score=scores.mean(),
            score_range=scores.max() - scores.min(),
            kl=kl.mean(),
            kl_per_token=kl.sum() / mask.sum(),
            kl_coef=kl_coef,
            explained_variance=explained_variance(values, returns, mask),
            **sampled,
            **metrics,
            **{name: monitor(batch).mean() for name, monitor in (monitors or {}).items()},
        )
        on_step(row)
        state["kl_coef"] = config.kl.next_coef(kl_coef, kl)
    return actor, critic, history


def _value_losses(
    values: torch.Tensor, batch: Rollout, config: PPOConfig, formulas: PPOFormulas
) -> torch.Tensor:
    """(B, R) losses of the critic, by default clipped around its values at sampling time."""
    if config.value_clip_eps is None:
        return formulas.value_loss(values, batch.returns, batch.action_mask)
    return formulas.value_loss_clipped(
        values, batch.values, batch.returns, batch.action_mask, clip_eps=config.value_clip_eps
    )


@torch.no_grad()
def _ratio_metrics(
    logprobs: torch.Tensor, batch: Rollout, denominator: float, config: PPOConfig
) -> dict[str, torch.Tensor]:
    """Mean ratio and share of clipped tokens, weighted by this part's share of the minibatch."""
    share = batch.action_mask.sum() / denominator
    clipped = is_clipped(
        logprobs, batch.old_logprobs, batch.advantages, batch.action_mask, **config.clip
    )
    return {
        "ratio": share * mean_ratio(logprobs, batch.old_logprobs, batch.action_mask),
        "clip_fraction": share * masked_mean(clipped.float(), batch.action_mask),
    }
