"""What the tests of lessons 06 and 06b share: numbers of recorded runs, and one step by hand."""

import copy
from functools import cache

import torch

from minirlhf import core, loops, models, rewards, tasks

COMPLETE = ["as it is", "kl_coef 0.5"]  # the same settings, three runs each
SEEDS = range(3)


def column(runs, variant, name):
    """The values of the three seeds."""
    return runs[runs.variant == variant].sort_values("seed")[name]


def mean(runs, variant, name):
    return column(runs, variant, name).mean()


def by_film(runs, variant, seed):
    rows = runs[(runs.variant == variant) & (runs.seed == seed)]
    return torch.tensor(rows["gold_by_prompt"].iloc[0])


@cache
def first_step_of_the_loop():
    """The clip fraction of the plain loop's first step, and with a fifth of its learning rate.

    And the standard deviation of the scores of this batch.

    The critic's updates are left out: they do not change the actor within a step.
    """
    sft, tokenizer = models.load_policy("tiny-reviews-sft")
    reward_model, _ = models.load_scalar("tiny-reviews-reward")
    config, prompts = loops.PPOConfig(), tasks.reviews.rl_prompts()
    generator = torch.Generator().manual_seed(0)
    (index,) = loops.shuffled_batches(len(prompts), config.batch_size, 1, seed=0)
    ids, prompt_mask = models.encode_prompts(tokenizer, [prompts[i] for i in index])
    given = {"eos_id": tokenizer.eos_token_id, "config": config.sampling, "generator": generator}
    batch = models.sample(sft, ids, prompt_mask, **given)
    with torch.no_grad():  # the reference is the policy itself, so there is no KL penalty yet
        score = rewards.rollout_score(reward_model, tokenizer.eos_token_id)(batch)
        values = models.response_values(reward_model, batch)
    mask = batch.response_mask
    paid = torch.nn.functional.one_hot(mask.sum(1) - 1, mask.shape[1]) * score[:, None]
    advantages = core.gae(paid, values, mask, gamma=config.gamma, lam=config.lam)[0]
    batch, state = batch.with_columns(advantages=advantages), generator.get_state()
    shares = []
    for rate in (config.actor.lr, config.actor.lr / 5):
        actor, clipped = copy.deepcopy(sft), []
        optimizer = loops.make_optimizer(actor, loops.OptimiserConfig.plain(lr=rate))
        generator.set_state(state)
        for _ in range(config.epochs):
            order = torch.randperm(len(mask), generator=generator)
            for rows in order.split(config.minibatch_size):
                part = batch.select(rows)
                new = models.policy_logprobs(actor, part, temperature=config.sampling.temperature)
                pair, real = (new, part.old_logprobs), part.response_mask
                flags = core.is_clipped(*pair, part.advantages, real, clip_eps=config.clip_eps)
                clipped.append(flags[real].double().mean().item())
                core.aggregate(core.ppo_clip(*pair, part.advantages, real), real).backward()
                optimizer.step()
                optimizer.zero_grad()
        shares.append(sum(clipped) / len(clipped))
    return *shares, score.std().item()


def rates():
    """The learning rates of the steps of `train_ppo`, with its default settings."""
    config, found = loops.PPOConfig(), []
    optimizer = loops.make_optimizer(torch.nn.Linear(1, 1), config.actor)
    for step in range(config.steps):
        loops.set_learning_rate(optimizer, config.actor, step, config.steps)
        found.append(optimizer.param_groups[0]["lr"])
    return torch.tensor(found)
