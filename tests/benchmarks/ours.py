"""minirlhf on the work of workload.py: `python ours.py TASK name=value ...` prints a JSON line."""

import sys

import torch
from datasets import Dataset
from workload import (
    REVIEWS,
    TEMPERATURE,
    WARMUP,
    Clock,
    review_sizes,
    review_writer,
    rows,
    sizes,
    tokenizer,
)
from workload import policy as random_policy

from minirlhf.core.bradley_terry import last_token_scores
from minirlhf.loops.family import Algorithm, GroupFormulas
from minirlhf.loops.group import GroupConfig, train_group
from minirlhf.loops.ppo import PPOConfig, train_ppo
from minirlhf.loops.preference import DPOConfig, train_dpo
from minirlhf.loops.reward import RewardConfig, train_reward_model
from minirlhf.loops.sft import SFTConfig, train_sft
from minirlhf.models.adapters import fused_gelu
from minirlhf.models.forward import encode_prompts, token_scores
from minirlhf.models.heads import ScalarModel
from minirlhf.models.sampling import SamplingConfig, sample


def policy(size):
    """As `load_policy` gives it."""
    return fused_gelu(random_policy(size))


def pairs(n, size):
    return Dataset.from_list(
        [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in rows(n, size)]
    )


def generate(size, clock):
    words, model = tokenizer(size), policy(size).eval()
    ids, mask = encode_prompts(words, [p for p, _, _ in rows(size["batch"], size)])
    clock()
    for _ in range(size["steps"] + WARMUP):
        sample(
            model,
            ids,
            mask,
            eos_id=-1,
            config=SamplingConfig(max_new_tokens=size["completion"], temperature=1.0),
        )
        clock()


def reviews(size, clock):
    model, words, prompts = review_writer()
    model, (ids, mask), masks = fused_gelu(model), encode_prompts(words, prompts), []
    config = SamplingConfig(max_new_tokens=REVIEWS["new"], temperature=TEMPERATURE)
    clock()
    for _ in range(size["steps"] + WARMUP):
        rollout = sample(model, ids, mask, eos_id=words.eos_token_id, config=config)
        clock()
        masks.append(rollout.response_mask)
    return review_sizes(mask, masks)


def sft(size, clock):
    n, every = size["batch"] // 2, size["steps"] + WARMUP
    data = Dataset.from_list([{"prompt": p, "completion": c} for p, c, _ in rows(n * every, size)])
    train_sft(
        policy(size),
        tokenizer(size),
        data,
        SFTConfig(epochs=1, batch_size=n, max_response=size["completion"]),
        on_step=clock,
    )


def reward(size, clock):
    n, every = size["batch"] // 2, size["steps"] + WARMUP
    config = RewardConfig(
        steps=every,
        batch_size=2 * n,
        texts_per_prompt=2,
        dropout=0.0,
        max_response=size["completion"],
    )
    train_reward_model(
        policy(size).base_model, tokenizer(size), pairs(n * every, size), config, on_step=clock
    )


def dpo(size, clock):
    n, every = size["batch"] // 2, size["steps"] + WARMUP
    config = DPOConfig(steps=every, batch_size=n, max_response=size["completion"])
    train_dpo(policy(size), tokenizer(size), pairs(n * every, size), config, on_step=clock)


def even_ids(rollout):
    """The reward of both sides: the share of even ids in a response."""
    return torch.tensor(
        [sum(i % 2 == 0 for i in row) / len(row) for row in rollout.response_ids.tolist()]
    )


def grpo(size, clock, **choices):
    config = GroupConfig(
        Algorithm(aggregation="token_mean", **choices),
        steps=size["steps"] + WARMUP,
        group_size=size["group"],
        prompts_per_step=size["batch"] // size["group"],
        minibatch_size=size["batch"],
        epochs=1,
        sampling=SamplingConfig(max_new_tokens=size["new"], temperature=1.0),
    )
    words, prompts = tokenizer(size), [p for p, _, _ in rows(size["batch"] * 4, size)]
    formulas = GroupFormulas(sample=clock.sampling(sample))
    train_group(policy(size), words, prompts, even_ids, config, formulas=formulas, on_step=clock)


def rloo(size, clock):
    grpo(size, clock, scale="none")


def ppo(size, clock):
    config = PPOConfig(
        steps=size["steps"] + WARMUP,
        batch_size=size["batch"],
        minibatch_size=size["batch"],
        epochs=4,
        sampling=SamplingConfig(max_new_tokens=size["new"], temperature=1.0),
    )
    words, prompts = tokenizer(size), [p for p, _, _ in rows(size["batch"] * 4, size)]
    scorer, critic = (
        ScalarModel(policy(size).base_model).eval(),
        ScalarModel(policy(size).base_model),
    )

    @torch.no_grad()
    def score(rollout):
        return last_token_scores(token_scores(scorer, rollout), rollout.attention_mask)

    train_ppo(policy(size), critic, words, prompts, score, config, on_step=clock)


if __name__ == "__main__":
    task, size = sizes(sys.argv[1:])
    torch.manual_seed(0)
    clock = Clock()
    # No cache of cast weights: autocast would keep those of the first step for the whole run.
    with torch.autocast("cpu", torch.bfloat16, enabled=bool(size["bf16"]), cache_enabled=False):
        size |= globals()[task](size, clock) or {}
    clock.report(task, "minirlhf", size, torch=torch.__version__)
