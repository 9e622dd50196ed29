"""Each loop, written by hand in a few lines, gives the package's weights, equal bit for bit.

The package's side uses the config's `plain()`. Both sides run on one thread, so that sums are taken in
one order.
"""

import copy
import re
from dataclasses import replace
from itertools import islice
from pathlib import Path

import jupytext
import pytest
import torch
from datasets import Dataset

from minirlhf import core, loops, models
from minirlhf.classroom.course import NOTEBOOKS
from minirlhf.loops.config import KLConfig, OptimiserConfig
from minirlhf.models.forward import (
    encode,
    encode_prompts,
    policy_logprobs,
    response_values,
    token_scores,
)
from minirlhf.models.heads import ScalarModel
from minirlhf.models.load import same_weights
from minirlhf.models.sampling import SamplingConfig, sample
from tests.tiny import ending_policy, tiny_policy, tiny_tokenizer

PROMPTS = ["one", "a second", "3", "the fourth one"]
SAMPLING = SamplingConfig(max_new_tokens=10, temperature=0.7)
STEPS = 3
TOKENIZER = tiny_tokenizer()
EOS = TOKENIZER.eos_token_id
PAIRS = Dataset.from_list(
    [
        {"prompt": p, "chosen": c * n, "rejected": r * 3}
        for p in PROMPTS
        for n, (c, r) in enumerate(("ax", "ey", "iz"), 2)
    ]
)
WRITTEN = Dataset.from_list(
    [{"prompt": p, "completion": c * n} for p in PROMPTS for n, c in enumerate("aei", 1)]
)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def moved(model, start) -> bool:
    return not same_weights(model, start)


def score(batch):
    """The share of response tokens from the first half of the vocabulary."""
    hits = (batch.response_ids < 129) & batch.response_mask
    return hits.sum(1) / batch.response_mask.sum(1)


def with_tool(*args, **given):
    """Sampling in which a tool wrote the first, the second or the last token of some responses.

    What stands at its tokens is NaN: the policy has no log-probability of them.
    """
    batch = sample(*args, **given)
    lengths, column = batch.response_mask.sum(1), torch.arange(batch.response_mask.shape[1])
    tool = torch.zeros_like(batch.response_mask)
    tool[0::4, 0] = True
    tool[1::4, 1] = True
    tool |= (torch.arange(len(lengths)) % 4 == 2)[:, None] & (column == lengths[:, None] - 1)
    tool &= batch.response_mask & (lengths > 2)[:, None]  # something is left for the policy
    assert tool.any() and len(set(lengths.tolist())) > 1  # responses of different lengths
    return replace(
        batch,
        action_mask=batch.response_mask & ~tool,
        old_logprobs=torch.where(tool, torch.nan, batch.old_logprobs),
    )


SAMPLERS = [sample, with_tool]


def test_sft():
    config = loops.SFTConfig.plain(batch_size=5, epochs=STEPS * 5 / len(WRITTEN))
    model, start = tiny_policy(), tiny_policy()
    optimizer = loops.make_optimizer(model, config.optimiser)
    for index in loops.shuffled_batches(len(WRITTEN), 5, STEPS, config.seed):
        rows = WRITTEN[index.tolist()]
        batch = encode(TOKENIZER, rows["prompt"], rows["completion"], max_response=32)
        logprobs = policy_logprobs(model, batch)
        core.aggregate(-logprobs, batch.response_mask, how="token_mean").backward()
        optimizer.step()
        optimizer.zero_grad()
    other, history = loops.train_sft(tiny_policy(), TOKENIZER, WRITTEN, config)
    assert len(history) == STEPS
    assert same_weights(model, other) and moved(model, start)


def test_reward_model():
    config = loops.RewardConfig.plain(steps=STEPS, batch_size=6)
    backbone = tiny_policy().base_model
    torch.manual_seed(config.seed)  # the head's first weights
    model = ScalarModel(backbone)
    start = copy.deepcopy(model)
    optimizer = loops.make_optimizer(model, config.optimiser)
    for pairs in islice(loops.comparison_batches(PAIRS, config), STEPS):
        texts = list(dict.fromkeys((p, t) for p, *both in pairs for t in both))
        prompts, responses = zip(*texts, strict=True)
        batch = encode(TOKENIZER, prompts, responses, max_response=config.max_response)
        scores = core.last_token_scores(token_scores(model, batch), batch.attention_mask)
        chosen = torch.stack([scores[texts.index((p, c))] for p, c, _ in pairs])
        rejected = torch.stack([scores[texts.index((p, r))] for p, _, r in pairs])
        core.reward_model_loss(chosen, rejected).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    other, _ = loops.train_reward_model(tiny_policy().base_model, TOKENIZER, PAIRS, config)
    assert same_weights(model, other) and moved(model, start)


def test_reinforce():
    config = loops.GroupConfig.plain(
        "reinforce", steps=STEPS, prompts_per_step=6, kl=KLConfig(kl_coef=0), sampling=SAMPLING
    )
    policy, start = ending_policy(), ending_policy()
    optimizer = loops.make_optimizer(policy, config.optimiser)
    generator, baseline = torch.Generator().manual_seed(config.seed), None
    for index in loops.shuffled_batches(len(PROMPTS), 6, STEPS, config.seed):
        ids, mask = encode_prompts(TOKENIZER, [PROMPTS[i] for i in index])
        batch = sample(policy, ids, mask, eos_id=EOS, config=SAMPLING, generator=generator)
        scores = score(batch)
        baseline = scores.mean().item() if baseline is None else baseline
        advantages = core.over_tokens((scores - baseline)[None], batch.response_mask)
        baseline = core.running_mean(baseline, scores)
        batch = batch.with_columns(advantages=advantages)
        batch = batch.select(torch.randperm(6, generator=generator))
        logprobs = policy_logprobs(policy, batch, temperature=0.7)
        losses = core.reinforce(logprobs, batch.advantages, batch.response_mask)
        core.aggregate(losses, batch.response_mask, how="sequence_sum").backward()
        optimizer.step()
        optimizer.zero_grad()
    other, _ = loops.train_group(ending_policy(), TOKENIZER, PROMPTS, score, config)
    assert same_weights(policy, other) and moved(policy, start)


@pytest.mark.parametrize("draw", SAMPLERS, ids=["whole responses", "a tool's tokens"])
@pytest.mark.parametrize("extra", [{}, {"whiten": True, "value_clip_eps": 0.05}], ids=str)
def test_ppo(draw, extra):
    config = loops.PPOConfig.plain(
        steps=STEPS,
        batch_size=8,
        minibatch_size=4,
        kl=KLConfig(kl_coef=0.5),
        sampling=SAMPLING,
        **extra,
    )
    actor, reference = ending_policy(), ending_policy()
    torch.manual_seed(7)
    critic = ScalarModel(tiny_policy(1).base_model)
    critics_copy = copy.deepcopy(critic)
    actor_optimizer = loops.make_optimizer(actor, config.actor)
    critic_optimizer = loops.make_optimizer(critic, config.critic)
    generator, logged = torch.Generator().manual_seed(config.seed), []
    for index in loops.shuffled_batches(len(PROMPTS), 8, STEPS, config.seed):
        ids, prompt_mask = encode_prompts(TOKENIZER, [PROMPTS[i] for i in index])
        batch = draw(actor, ids, prompt_mask, eos_id=EOS, config=SAMPLING, generator=generator)
        mask = batch.action_mask
        with torch.no_grad():
            ref_logprobs = policy_logprobs(reference, batch, temperature=0.7)
            values = response_values(critic, batch)
            rewards = core.kl_shaped_rewards(
                score(batch), batch.old_logprobs, ref_logprobs, mask, kl_coef=0.5
            )
            advantages, returns = core.gae(rewards, values, mask, gamma=1.0, lam=0.95)
        logged.append(
            {
                "explained_variance": core.explained_variance(values, returns, mask).item(),
                "kl_per_token": core.masked_mean(
                    core.log_ratio(batch.old_logprobs, ref_logprobs, mask), mask
                ).item(),
                "length": mask.sum(1).float().mean().item(),
            }
        )
        if config.whiten:
            advantages = core.masked_whiten(advantages, mask)
        batch = batch.with_columns(advantages=advantages, returns=returns, values=values)
        for _ in range(2):
            for rows in torch.randperm(8, generator=generator).split(4):
                part = batch.select(rows)
                logprobs = policy_logprobs(actor, part, temperature=0.7)
                policy_loss = core.ppo_clip(
                    logprobs, part.old_logprobs, part.advantages, part.action_mask
                )
                values = response_values(critic, part)
                if config.value_clip_eps is None:
                    value_loss = core.value_loss(values, part.returns, part.action_mask)
                else:
                    value_loss = core.value_loss_clipped(
                        values, part.values, part.returns, part.action_mask, clip_eps=0.05
                    )
                for losses, optimizer in (
                    (policy_loss, actor_optimizer),
                    (value_loss, critic_optimizer),
                ):
                    core.aggregate(losses, part.action_mask).backward()
                    optimizer.step()
                    optimizer.zero_grad()
    other, other_critic, history = loops.train_ppo(
        ending_policy(),
        critics_copy,
        TOKENIZER,
        PROMPTS,
        score,
        config,
        formulas=loops.PPOFormulas(sample=draw),
    )
    for row, by_hand in zip(history, logged, strict=True):
        for name, value in by_hand.items():
            assert row[name] == pytest.approx(value, rel=1e-6), name
    assert same_weights(actor, other) and moved(actor, reference)
    assert same_weights(critic, other_critic)


@pytest.mark.parametrize("draw", SAMPLERS, ids=["whole responses", "a tool's tokens"])
@pytest.mark.parametrize("name", ["grpo", "dr-grpo", "rloo-verl"])
def test_group_methods(name, draw):
    row = loops.FAMILY[name]
    config = loops.GroupConfig.plain(
        name,
        steps=STEPS,
        prompts_per_step=3,
        group_size=4,
        minibatch_size=6,
        kl=KLConfig(kl_coef=0.1),
        sampling=SAMPLING,
    )
    policy, reference = ending_policy(), ending_policy()
    optimizer = loops.make_optimizer(policy, config.optimiser)
    generator = torch.Generator().manual_seed(config.seed)
    for index in loops.shuffled_batches(len(PROMPTS), 3, STEPS, config.seed):
        ids, mask = encode_prompts(TOKENIZER, [PROMPTS[i] for i in index])
        batch = draw(
            policy,
            ids,
            mask,
            eos_id=EOS,
            config=SAMPLING,
            samples_per_prompt=4,
            generator=generator,
        )
        mask = batch.action_mask
        with torch.no_grad():
            ref_logprobs = policy_logprobs(reference, batch, temperature=0.7)
        rewards = core.kl_shaped_rewards(
            score(batch), batch.old_logprobs, ref_logprobs, mask, kl_coef=0.1
        )
        group_scores = rewards.sum(1).view(3, 4)
        if name == "rloo-verl":
            compared = core.leave_one_out(group_scores)
        else:
            compared = core.group_relative(group_scores, scale_by_std=name == "grpo")
        advantages = core.over_tokens(compared, mask)
        batch = batch.with_columns(advantages=advantages)
        orders = [torch.randperm(12, generator=generator) for _ in range(2)]
        for rows in (rows for order in orders for rows in order.split(6)):
            part = batch.select(rows)
            logprobs = policy_logprobs(policy, part, temperature=0.7)
            losses = core.ppo_clip(logprobs, part.old_logprobs, part.advantages, part.action_mask)
            constant = 10.0 if name == "dr-grpo" else None  # max_new_tokens
            how = row.aggregation
            core.aggregate(losses, part.action_mask, how=how, constant=constant).backward()
            optimizer.step()
            optimizer.zero_grad()
    other, _ = loops.train_group(
        ending_policy(),
        TOKENIZER,
        PROMPTS,
        score,
        config,
        formulas=loops.GroupFormulas(sample=draw),
    )
    assert same_weights(policy, other) and moved(policy, reference)


def test_dpo():
    config = loops.DPOConfig.plain(steps=STEPS, batch_size=4)
    policy, reference = tiny_policy(), tiny_policy()
    optimizer = loops.make_optimizer(policy, config.optimiser)
    for index in loops.shuffled_batches(len(PAIRS), 4, STEPS, config.seed):
        rows = PAIRS[index.tolist()]
        responses = rows["chosen"] + rows["rejected"]  # both sides in one batch
        batch = encode(TOKENIZER, rows["prompt"] * 2, responses, max_response=32)
        logprobs = core.sequence_logprobs(policy_logprobs(policy, batch), batch.response_mask)
        with torch.no_grad():
            ref = core.sequence_logprobs(policy_logprobs(reference, batch), batch.response_mask)
        core.dpo(*logprobs.chunk(2), *ref.chunk(2), beta=0.1).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    other, _ = loops.train_dpo(tiny_policy(), TOKENIZER, PAIRS, config)
    assert same_weights(policy, other) and moved(policy, reference)


@pytest.mark.parametrize(
    "config",
    [
        loops.SFTConfig,
        loops.RewardConfig,
        loops.PPOConfig,
        loops.GroupConfig,
        loops.DPOConfig,
    ],
)
def test_plain_accepts_other_settings(config):
    assert config.plain(seed=5).seed == 5
    with pytest.raises(TypeError):
        config.plain(no_such_setting=1)


def test_a_constant_schedule_and_no_gradient_clipping():
    model = torch.nn.Linear(2, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    constant = OptimiserConfig.plain(lr=0.5)
    for step in range(3):
        loops.set_learning_rate(optimizer, constant, step, 3)
        assert optimizer.param_groups[0]["lr"] == 0.5
    before = model.weight.detach().clone()
    (100 * model(torch.ones(1, 2))).backward()  # a gradient of 100 at both weights
    norm = loops.clipped_step(model, optimizer, None)
    assert norm.item() == pytest.approx(100 * 2**0.5)
    torch.testing.assert_close(model.weight, before - 50)
    (torch.inf * model(torch.ones(1, 2))).backward()
    with pytest.raises(FloatingPointError, match="left as they were"):
        loops.clipped_step(model, optimizer, None)


@pytest.mark.parametrize(
    "given, said",
    [({"schedule": "cosine"}, "one of linear, constant"), ({"max_grad_norm": 0}, "above 0, or")],
)
def test_an_unknown_schedule_or_a_maximum_norm_of_0_is_refused(given, said):
    with pytest.raises(ValueError, match=said):
        OptimiserConfig(**given)


# ---- the loops that the lessons write by hand


def lesson_source(lesson, name):
    """The code cell of a lesson's source that defines the function `name`."""
    source = (Path(__file__).parents[2] / "notebooks" / "src" / f"{lesson}.py").read_text("utf-8")
    cells = [c for c in re.split(r"^# %%.*$", source, flags=re.M) if f"def {name}(" in c]
    assert len(cells) == 1
    return cells[0]


def lesson_step(lesson, name, **names):
    """The function `name` as a code cell of a lesson's source defines it, with these globals."""
    names |= {"core": core, "loops": loops, "models": models, "torch": torch}
    exec(compile(lesson_source(lesson, name), lesson, "exec"), names)
    return names[name]


def test_the_step_of_lesson_03_is_train_sft():
    config = loops.SFTConfig.plain(batch_size=5, epochs=STEPS * 5 / len(WRITTEN))
    policy, start = tiny_policy(), tiny_policy()
    step = lesson_step(
        "03_a_language_model_is_a_policy",
        "sft_step",
        tokenizer=TOKENIZER,
        policy=policy,
        optimizer=loops.make_optimizer(policy, config.optimiser),
    )
    for index in loops.shuffled_batches(len(WRITTEN), 5, STEPS, config.seed):
        step(WRITTEN[index.tolist()])
    other, _ = loops.train_sft(tiny_policy(), TOKENIZER, WRITTEN, config)
    assert same_weights(policy, other) and moved(policy, start)


def test_the_loop_of_lesson_04_is_train_group():
    sampling = SamplingConfig(max_new_tokens=10, temperature=0.7)
    config = loops.GroupConfig.plain(
        "reinforce",
        steps=STEPS,
        prompts_per_step=64,
        sampling=sampling,
        kl=KLConfig(kl_coef=0),
    )
    policy, start = ending_policy(), ending_policy()
    loop = lesson_step(
        "04_the_policy_gradient",
        "train_by_hand",
        tokenizer=TOKENIZER,
        eos_id=EOS,
        sampling=sampling,
        score=score,
        prompts=PROMPTS,
        policy=policy,
        optimizer=loops.make_optimizer(policy, config.optimiser),
        generator=torch.Generator().manual_seed(config.seed),
    )
    log = loop(loops.shuffled_batches(len(PROMPTS), 64, STEPS, config.seed))
    other, history = loops.train_group(ending_policy(), TOKENIZER, PROMPTS, score, config)
    assert same_weights(policy, other) and moved(policy, start)
    for row, by_hand in zip(history, log, strict=True):
        assert row["score"] == pytest.approx(by_hand["mean score"])
        assert row["policy_loss"] == pytest.approx(by_hand["loss"])


def test_the_step_of_lesson_05_is_the_critic_warm_up_of_train_ppo():
    sampling = SamplingConfig(max_new_tokens=10, temperature=0.7)
    config = loops.PPOConfig.plain(
        steps=STEPS,
        batch_size=64,
        sampling=sampling,
        kl=KLConfig(kl_coef=0),
        critic_warmup=STEPS,
    )
    policy, critic = ending_policy(), ScalarModel(tiny_policy(1).base_model)
    start = copy.deepcopy(critic)
    step = lesson_step(
        "05_advantages_gae",
        "critic_step",
        tokenizer=TOKENIZER,
        eos_id=EOS,
        sampling=sampling,
        score=score,
        policy=policy,
        critic=critic,
        optimizer=loops.make_optimizer(critic, config.critic),
        generator=torch.Generator().manual_seed(config.seed),
    )
    for index in loops.shuffled_batches(len(PROMPTS), 64, STEPS, config.seed):
        step([PROMPTS[i] for i in index])
    actor, other, _ = loops.train_ppo(
        ending_policy(), copy.deepcopy(start), TOKENIZER, PROMPTS, score, config
    )
    assert same_weights(critic, other) and moved(critic, start)
    assert same_weights(actor, policy)  # a warm-up leaves the actor as it is


def test_the_step_of_lesson_06_is_train_ppo():
    sampling = SamplingConfig(max_new_tokens=10, temperature=0.7)
    config = loops.PPOConfig.plain(steps=STEPS, batch_size=64, sampling=sampling)
    actor, reference, critic = (
        ending_policy(),
        ending_policy(),
        ScalarModel(tiny_policy(1).base_model),
    )
    critics_copy = copy.deepcopy(critic)
    step = lesson_step(
        "06_ppo",
        "ppo_step",
        tokenizer=TOKENIZER,
        eos_id=EOS,
        sampling=sampling,
        score=score,
        actor=actor,
        critic=critic,
        reference=reference,
        actor_optimizer=loops.make_optimizer(actor, config.actor),
        critic_optimizer=loops.make_optimizer(critic, config.critic),
        generator=torch.Generator().manual_seed(config.seed),
    )
    for index in loops.shuffled_batches(len(PROMPTS), 64, STEPS, config.seed):
        step([PROMPTS[i] for i in index])
    other, other_critic, _ = loops.train_ppo(
        ending_policy(), critics_copy, TOKENIZER, PROMPTS, score, config
    )
    assert same_weights(actor, other) and moved(actor, reference)
    assert same_weights(critic, other_critic)


def test_the_step_of_lesson_08_is_train_reward_model():
    config = loops.RewardConfig.plain(steps=STEPS, batch_size=6)
    backbone = tiny_policy().base_model
    torch.manual_seed(config.seed)
    model = ScalarModel(backbone)
    start = copy.deepcopy(model)
    step = lesson_step(
        "08_the_reward_model",
        "reward_step",
        tokenizer=TOKENIZER,
        model=model,
        optimizer=loops.make_optimizer(model, config.optimiser),
    )
    losses = [step(pairs) for pairs in islice(loops.comparison_batches(PAIRS, config), STEPS)]
    other, history = loops.train_reward_model(tiny_policy().base_model, TOKENIZER, PAIRS, config)
    assert losses == [row["loss"] for row in history]
    assert same_weights(model, other) and moved(model, start)


def test_the_step_of_lesson_11_is_train_group():
    sampling = SamplingConfig(max_new_tokens=10, temperature=1.0)
    config = loops.GroupConfig.plain(
        "grpo",
        steps=STEPS,
        prompts_per_step=16,
        group_size=8,
        minibatch_size=64,
        sampling=sampling,
        kl=KLConfig(kl_coef=0),
    )
    actor, start = ending_policy(), ending_policy()
    step = lesson_step(
        "11_grpo",
        "grpo_step",
        tokenizer=TOKENIZER,
        sampling=sampling,
        score=score,
        actor=actor,
        optimizer=loops.make_optimizer(actor, config.optimiser),
        generator=torch.Generator().manual_seed(config.seed),
    )
    for index in loops.shuffled_batches(len(PROMPTS), 16, STEPS, config.seed):
        step([PROMPTS[i] for i in index])
    other, _ = loops.train_group(ending_policy(), TOKENIZER, PROMPTS, score, config)
    assert same_weights(actor, other) and moved(actor, start)


def test_the_step_of_lesson_12_is_train_dpo():
    config = loops.DPOConfig.plain(steps=STEPS, batch_size=4, beta=0.1)
    actor, reference = tiny_policy(), tiny_policy()
    step = lesson_step(
        "12_dpo",
        "dpo_step",
        tokenizer=TOKENIZER,
        actor=actor,
        reference=reference,
        optimizer=loops.make_optimizer(actor, config.optimiser),
    )
    for index in loops.shuffled_batches(len(PAIRS), 4, STEPS, config.seed):
        step(PAIRS[index.tolist()])
    other, _ = loops.train_dpo(tiny_policy(), TOKENIZER, PAIRS, config)
    assert same_weights(actor, other) and moved(actor, reference)


@pytest.mark.parametrize("name", ["04_the_policy_gradient", "06_ppo", "11_grpo", "12_dpo"])
def test_the_batches_of_a_lesson_can_be_read_twice(name):
    """An exercise at the end of the lesson takes the same batches again."""
    cells = jupytext.read(NOTEBOOKS / "src" / f"{name}.py").cells
    (line,) = [x for c in cells for x in c.source.splitlines() if x.startswith("order = ")]
    scope = {"loops": loops, "prompts": range(200), "pairs": range(200), "steps": 3}
    exec(line, scope)
    first, again = ([*scope["order"]] for _ in range(2))
    assert len(first) == 3 and all(
        map(torch.equal, map(torch.as_tensor, first), map(torch.as_tensor, again))
    )
    assert len(again) == 3
