"""The checker of the whole PPO step says which part of a step is wrong: errors are planted."""

import copy

import pytest
import torch

from minirlhf import core, loops, models
from minirlhf.classroom import check
from minirlhf.classroom.exercise import LONGEST
from minirlhf.classroom.lessons import lesson_06_step
from minirlhf.models.heads import ScalarModel
from minirlhf.models.sampling import SamplingConfig
from tests.loops.test_by_hand import lesson_source, score
from tests.tiny import ending_policy, tiny_policy, tiny_tokenizer

TITLES = [f"{n}" for n in range(64)]  # two minibatches
SOURCE = lesson_source("06_ppo", "ppo_step")


def run(*changes, steps=2):
    """(batches, what the updates used) of steps of the lesson's code, pieces of it replaced."""
    source = SOURCE
    for right, wrong in changes:
        assert source.count(right) == 1, right
        source = source.replace(right, wrong)
    tokenizer = tiny_tokenizer()
    actor, critic = ending_policy(), ScalarModel(copy.deepcopy(tiny_policy(1).base_model))
    torch.nn.init.normal_(critic.head.weight, generator=torch.Generator().manual_seed(0))
    names = {
        "core": core,
        "models": models,
        "torch": torch,
        "tokenizer": tokenizer,
        "eos_id": tokenizer.eos_token_id,
        "sampling": SamplingConfig(max_new_tokens=4, temperature=0.7),
        "score": score,
        "actor": actor,
        "critic": critic,
        "reference": ending_policy(),
        "actor_optimizer": loops.make_optimizer(actor, loops.OptimiserConfig(lr=1e-3)),
        "critic_optimizer": loops.make_optimizer(critic, loops.OptimiserConfig(lr=1e-3)),
        "generator": torch.Generator().manual_seed(0),
    }
    watched = check.watch_updates(
        actor=(actor, names["actor_optimizer"]), critic=(critic, names["critic_optimizer"])
    )
    exec(source, names)
    return [names["ppo_step"](TITLES) for _ in range(steps)], watched


@pytest.fixture(scope="module")
def right():
    return run()


def compared(mine, right):
    batches, watched = mine
    after = {name: one.model for name, one in right[1].items()}
    result = check.whole_step(batches, right[0], watched, **after)
    assert len(result.message) <= LONGEST, result.message
    return result


def test_the_step_of_the_lesson_passes(right):
    assert compared(run(), right)


WITH_A_REFERENCE_AT_1 = ("(reference, batch, temperature=0.7)", "(reference, batch)")


@pytest.mark.parametrize(
    "change, said",
    [
        (
            ("config=sampling", "config=models.SamplingConfig(max_new_tokens=4, temperature=1.0)"),
            "step 1: the sampled tokens",
        ),
        (("score(batch)", "-score(batch)"), "step 1: `scores` differ"),
        (WITH_A_REFERENCE_AT_1, "step 1: `rewards` differ first. Look at the reference in part 2"),
        (("kl_coef=0.5", "kl_coef=5.0"), "step 2: `rewards` differ first"),
        (("lam=0.95", "lam=0.5"), "step 1: `advantages` differ first"),
        (("(critic, batch)", "(critic, batch) * 2"), "step 1: `advantages` differ first"),
        (("targets=targets", "targets=advantages"), "step 1: `targets` differ first"),
        (("rewards=token_rewards, ", ""), "step 1: the batch has no column `rewards`"),
        (("range(2)", "range(1)"), "the actor was updated 2 times on rows of its batch, not 4"),
        (("split(32)", "split(16)"), "the actor was updated 8 times"),
        (("            actor_optimizer.step()\n", ""), "the actor was updated 0 times"),
        (("            critic_optimizer.step()\n", ""), "the critic was updated 0 times"),
        (
            ("torch.randperm(len(titles), generator=generator)", "(torch.arange(64) // 2)"),
            "the minibatches of epoch 1 do not hold each response once",
        ),
        (
            ("            actor_optimizer.zero_grad()\n", ""),
            "update 2: the minibatch is right, but the actor's gradient still holds that of the update",
        ),
        (
            ("            critic_optimizer.zero_grad()\n", ""),
            "update 2: the minibatch is right, but the critic's gradient still holds that of the update",
        ),
        (
            ("aggregate(policy_losses", "aggregate(-policy_losses"),
            "update 1: the minibatch is right, but the actor's gradient differs. Look at its loss",
        ),
        (
            ("(actor, part, temperature=0.7)", "(actor, part)"),
            "update 1: the minibatch is right, but the actor's gradient differs. Look at its loss: "
            "temperature",
        ),
        (
            ("core.aggregate(policy_losses, real).backward()", "policy_losses.sum().backward()"),
            "the actor's gradient has the right direction, but it is",
        ),
        (
            ("part.old_logprobs, part.advantages", "logprobs.detach(), part.advantages"),
            "the actor's gradient differs. Look at its loss: update 1 was right",
        ),
        (
            ("(new_values, part.targets", "(new_values, part.advantages"),
            "update 1: the minibatch is right, but the critic's gradient differs",
        ),
        (("(len(titles), generator=generator)", "(len(titles))"), "`torch.randperm` once per"),
        (("return batch", "return batch.scores.mean()"), "It must return the batch."),
        (("return batch", "pass"), "my_step returned NoneType. It must return the batch."),
    ],
    ids=lambda x: x[0][:30] if isinstance(x, tuple) else "",
)
def test_a_planted_error_is_located(change, said, right):
    result = compared(run(change), right)
    assert not result and said in result.message, result.message


def test_an_error_in_the_last_update_shows_in_the_weights(right):
    batches, watched = run()
    with torch.no_grad():
        next(iter(watched["critic"].model.parameters())).add_(0.1)
    message = compared((batches, watched), right).message
    assert (
        "the critic's weights differ at the end. Step 1 is right; what is different in step 2?"
        in message
    )


FROM_STEP_2 = (  # the sign of the actor's loss is wrong
    ("def ppo_step(titles):", "count = []\n\ndef ppo_step(titles):\n    count.append(1)"),
    ("aggregate(policy_losses", "aggregate((1 if len(count) == 1 else -1) * policy_losses"),
)


@pytest.mark.parametrize("steps", [2, 3])
def test_an_error_from_step_2_on_is_not_looked_for_in_step_1(steps, right):
    wanted = right if steps == 2 else run(steps=3)
    message = compared(run(*FROM_STEP_2, steps=steps), wanted).message
    assert "Step 1 is right; what is different in step 2?" in message


def test_updates_whose_weights_were_not_kept_are_passed_over(right, monkeypatch):
    monkeypatch.setattr(lesson_06_step, "KEPT", 2)
    message = compared(run(("(len(titles), generator=generator)", "(len(titles))")), right).message
    assert "In step 1 the losses are right" in message
