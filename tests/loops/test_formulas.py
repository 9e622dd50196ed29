"""Formulas as arguments: a loop uses them, and they are part of what identifies a run."""

import functools

import pytest
import torch

from minirlhf import core
from minirlhf.loops.checkpoint import Checkpoint
from minirlhf.loops.family import GroupFormulas
from minirlhf.loops.formulas import function_signature, identity
from minirlhf.loops.group import GroupConfig, train_group
from minirlhf.loops.losses import DPOFormulas
from minirlhf.loops.ppo import PPOConfig, PPOFormulas, train_ppo
from minirlhf.loops.preference import DPOConfig, train_dpo
from minirlhf.loops.reward import RewardConfig, RewardFormulas, train_reward_model
from minirlhf.loops.sft import SFTConfig, SFTFormulas, train_sft
from minirlhf.models.heads import ScalarModel
from minirlhf.models.sampling import SamplingConfig
from tests.loops.test_by_hand import PAIRS, PROMPTS, TOKENIZER, WRITTEN, score
from tests.tiny import tiny_policy

SAMPLING = SamplingConfig(max_new_tokens=4)
FACTOR = 2.0


def my_gae(rewards, values, mask, *, gamma, lam):
    return core.gae(rewards, scaled(values), mask, gamma=gamma, lam=lam)


def scaled(values):
    return values * FACTOR


def other_gae(rewards, values, mask, *, gamma, lam):
    return core.gae(rewards, values, mask, gamma=gamma, lam=lam / 2)


def ppo(formulas=PPOFormulas(), reward=score, **given):
    config = PPOConfig(steps=2, batch_size=4, minibatch_size=4, sampling=SAMPLING)
    torch.manual_seed(0)
    critic = ScalarModel(tiny_policy(1).base_model)
    return train_ppo(
        tiny_policy(), critic, TOKENIZER, PROMPTS, reward, config, formulas=formulas, **given
    )[2]


def group(formulas=GroupFormulas(), **given):
    config = GroupConfig(
        steps=2, prompts_per_step=2, group_size=2, minibatch_size=4, sampling=SAMPLING
    )
    return train_group(
        tiny_policy(), TOKENIZER, PROMPTS, score, config, formulas=formulas, **given
    )[1]


def dpo(formulas=DPOFormulas(), **given):
    config = DPOConfig(steps=2, batch_size=4)
    return train_dpo(tiny_policy(), TOKENIZER, PAIRS, config, formulas=formulas, **given)[1]


def reward(formulas=RewardFormulas(), **given):
    config = RewardConfig(steps=2, batch_size=4)
    backbone = tiny_policy().base_model
    return train_reward_model(backbone, TOKENIZER, PAIRS, config, formulas=formulas, **given)[1]


def sft(formulas=SFTFormulas(), **given):
    config = SFTConfig(batch_size=6, epochs=1)
    return train_sft(tiny_policy(), TOKENIZER, WRITTEN, config, formulas=formulas, **given)[1]


@pytest.mark.parametrize(
    "train, formulas",
    [
        (ppo, PPOFormulas()),
        (group, GroupFormulas()),
        (dpo, DPOFormulas()),
        (reward, RewardFormulas()),
        (sft, SFTFormulas()),
    ],
    ids=["ppo", "group", "dpo", "reward", "sft"],
)
def test_a_loop_calls_the_given_formulas_that_its_settings_need(train, formulas):
    called = {}

    def counted(name, function):
        def call(*args, **given):
            called[name] = called.get(name, 0) + 1
            return function(*args, **given)

        return call

    names = list(type(formulas).__dataclass_fields__)
    watched = {name: counted(name, getattr(formulas, name)) for name in names}
    assert train(type(formulas)(**watched)) == train()  # the same functions: the same history
    expected = {
        ppo: set(names) - {"value_loss"},  # the clipped one is the default
        group: {"sample", "kl_shaped_rewards", "group_relative", "over_tokens", "ppo_clip"},
        dpo: {"dpo", "implicit_rewards"},
        reward: set(names),
        sft: set(names),
    }
    assert set(called) == expected[train]


def test_another_formula_changes_the_run():
    assert ppo(PPOFormulas(gae=my_gae)) != ppo()


def test_only_replaced_formulas_have_an_identity():
    assert identity(PPOFormulas()) == {}
    (found,) = identity(PPOFormulas(gae=my_gae)).items()
    assert found[0] == "gae" and found[1].startswith(f"{__name__}.my_gae ")
    assert len(found[1].split()[1]) == 64  # SHA-256
    assert identity(PPOFormulas(gae=other_gae))["gae"] != found[1]
    assert identity(PPOFormulas(gae=my_gae))["gae"] == found[1]


def test_the_identity_covers_called_functions_globals_and_closures(monkeypatch):
    before = identity(PPOFormulas(gae=my_gae))["gae"]
    monkeypatch.setitem(globals(), "FACTOR", 3.0)  # used by `scaled`, which my_gae calls
    assert identity(PPOFormulas(gae=my_gae))["gae"] != before
    monkeypatch.setitem(globals(), "FACTOR", 2.0)
    assert identity(PPOFormulas(gae=my_gae))["gae"] == before

    def weighted(factor):
        return lambda *given, **settings: factor * core.ppo_clip(*given, **settings)

    one, two = (identity(PPOFormulas(ppo_clip=weighted(f)))["ppo_clip"] for f in (1.0, 2.0))
    assert one != two
    half = functools.partial(core.ppo_clip, dual_clip=3.0)
    third = functools.partial(core.ppo_clip, dual_clip=2.0)
    assert identity(PPOFormulas(ppo_clip=half)) != identity(PPOFormulas(ppo_clip=third))


SETTINGS, TABLE, SHIFT = (1.0, 2.0), {"lam": 0.5}, torch.tensor(1.0)
HALF = functools.partial(core.gae, lam=0.5)


def of_globals(*given, **settings):
    advantages, returns = HALF(*given, gamma=SETTINGS[0])
    return advantages * TABLE["lam"] + SHIFT, returns


@pytest.mark.parametrize(
    "name, other",
    [
        ("SETTINGS", (1.0, 3.0)),
        ("TABLE", {"lam": 0.1}),
        ("SHIFT", torch.tensor(2.0)),
        ("HALF", functools.partial(core.gae, lam=0.9)),
    ],
)
def test_the_identity_covers_containers_tensors_and_partials(name, other, monkeypatch):
    before = identity(PPOFormulas(gae=of_globals))["gae"]
    monkeypatch.setitem(globals(), name, other)
    assert None not in (before, after := identity(PPOFormulas(gae=of_globals))["gae"])
    assert after != before


def times(factor):
    def decorated(function):
        @functools.wraps(function)
        def wrapper(*given, **settings):
            advantages, returns = function(*given, **settings)
            return factor * advantages, returns

        return wrapper

    return decorated


def test_a_wrapper_is_not_what_it_wraps():
    two, three = (identity(PPOFormulas(gae=times(f)(core.gae)))["gae"] for f in (2, 3))
    assert two and three and two != three
    again = identity(PPOFormulas(gae=times(2)(core.gae)))["gae"]
    assert again == two


def test_two_functions_on_one_line_differ():
    both = {"a": lambda *x, **k: (x[0], 1), "b": lambda *x, **k: (x[0], 2)}
    one, two = (identity(PPOFormulas(gae=f))["gae"] for f in both.values())
    assert one != two


class ScaledGae:
    """A formula as an object: its class and its attributes are its source."""

    def __init__(self, factor):
        self.factor = factor

    def __call__(self, rewards, values, mask, *, gamma, lam):
        return core.gae(rewards, values * self.factor, mask, gamma=gamma, lam=lam)


def test_an_object_and_its_method_are_identified_by_class_and_attributes():
    for of in (lambda x: x, lambda x: x.__call__):
        one, again, other = (
            identity(PPOFormulas(gae=of(ScaledGae(f))))["gae"] for f in (1.0, 1.0, 2.0)
        )
        assert one == again != other and "ScaledGae" in one


def typed_at_a_prompt():
    return eval("lambda *given, **settings: core.gae(*given, **settings)", {"core": core})


@pytest.mark.parametrize(
    "function",
    [typed_at_a_prompt(), ScaledGae(torch.nn.Linear(1, 1))],
    ids=["typed at a prompt", "holds a model"],
)
def test_a_formula_without_source_code_has_no_identity(function):
    assert identity(PPOFormulas(gae=function)) == {"gae": None}
    assert function_signature(function)  # what has no source counts by its type


def stopped(path, formulas):
    """A run of one step of two, saved."""

    class Enough(Exception):
        pass

    def stop(row):
        if row["step"] == 1:
            raise Enough

    with pytest.raises(Enough):
        ppo(formulas, checkpoint=Checkpoint(path, every=0), on_step=stop)


def test_a_run_resumes_only_with_its_own_formulas(tmp_path):
    path = tmp_path / "training.safetensors"
    stopped(path, PPOFormulas(gae=my_gae))
    for formulas in (PPOFormulas(), PPOFormulas(gae=other_gae)):
        with pytest.raises(ValueError, match="another run, which differs in: formula gae"):
            ppo(formulas, checkpoint=Checkpoint(path, resume=True))
    whole = ppo(PPOFormulas(gae=my_gae))
    assert ppo(PPOFormulas(gae=my_gae), checkpoint=Checkpoint(path, resume=True)) == whole


def test_a_run_with_a_formula_without_source_code_is_not_resumed(tmp_path):
    path = tmp_path / "training.safetensors"
    formulas = PPOFormulas(gae=typed_at_a_prompt())
    with pytest.warns(UserWarning, match="formula gae has no source that can be read"):
        stopped(path, formulas)
    with (
        pytest.raises(ValueError, match="the formula gae has no source to compare"),
        pytest.warns(UserWarning),
    ):
        ppo(formulas, checkpoint=Checkpoint(path, resume=True))
    with pytest.raises(ValueError, match="another run, which differs in: formula gae"):
        ppo(checkpoint=Checkpoint(path, resume=True))


def longer(batch):
    return batch.response_mask.sum(1).float()


def test_a_run_resumes_only_with_its_own_reference_and_says_that_the_score_changed(
    tmp_path, capsys
):
    path = tmp_path / "training.safetensors"
    stopped(path, PPOFormulas())
    with pytest.raises(ValueError, match="another run, which differs in: reference"):
        ppo(reference=tiny_policy(5), checkpoint=Checkpoint(path, resume=True))
    assert ppo(checkpoint=Checkpoint(path, resume=True)) == ppo()
    said = "the score (the reward function or the judge, or what it reads). The run goes on with the new one."
    assert said not in capsys.readouterr().out
    assert ppo(reward=longer, checkpoint=Checkpoint(path, resume=True)) == ppo()  # it was done
    assert said in capsys.readouterr().out
