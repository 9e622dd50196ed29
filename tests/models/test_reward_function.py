"""Reward functions with the signature of TRL, and the error messages when a function breaks it."""

import asyncio
import functools
import os
import sys
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from tokenizers.processors import TemplateProcessing

from minirlhf.loops.config import KLConfig, OptimiserConfig
from minirlhf.loops.group import GroupConfig, train_group
from minirlhf.loops.online import OnlineConfig, train_online
from minirlhf.loops.ppo import PPOConfig, train_ppo
from minirlhf.loops.preference import DPOConfig
from minirlhf.models.forward import encode
from minirlhf.models.heads import ScalarModel
from minirlhf.models.sampling import SamplingConfig
from minirlhf.rewards.answers import answer_reward
from minirlhf.rewards.function import reward_function, weighted
from minirlhf.runtime.shared import restore_settings, settings_kept, shared_settings
from tests.tiny import EOS, tiny_policy, tiny_tokenizer

TOKENIZER = tiny_tokenizer()


def tiny_critic():
    return ScalarModel(tiny_policy().transformer)


DATA = Dataset.from_list([{"prompt": "a", "answer": 1}, {"prompt": "longer", "answer": 2}])


def test_the_function_gets_prompts_completions_and_columns_in_order():
    seen = {}

    def function(prompts, completions, **columns):
        seen.update(prompts=prompts, completions=completions, **columns)
        return [float(len(c)) for c in completions]

    rollout = encode(TOKENIZER, ["longer", "a", "longer"], ["xy", "z", ""])
    assert reward_function(function, TOKENIZER, DATA)(rollout).tolist() == [2.0, 1.0, 0.0]
    assert seen == {
        "prompts": ["longer", "a", "longer"],
        "completions": ["xy", "z", ""],
        "completion_ids": [[88, 89, 0], [90, 0], [0]],  # EOS included
        "trainer_state": None,  # no loop called
        "answer": [2, 1, 2],
    }


@pytest.mark.parametrize(
    "function, said",
    [
        (
            lambda prompts, completions: 1 / 0,
            "raised ZeroDivisionError: division by zero; it was given prompts, completions",
        ),
        (lambda prompts: [0.0], "returned 1 values for 2 completions"),
        (lambda prompts, completions: None, "returned None; it must be one number"),
        (lambda prompts, completions: {"c": 1.0, "d": 0.0}, "returned {'c': 1.0, .* one number"),
        (lambda prompts, completions: {0.0, 1.0}, "it must be one number"),
        (lambda prompts, completions: "12", "returned 12; it must be one number"),
        (
            lambda prompts, completions: [0.0, 1e300],
            "1e.300' for completion 2 of 2; .* finite number",
        ),
        (
            lambda prompts, completions: [[0.0, 1.0]] * 2,
            "for completion 1 of 2; it must be one finite",
        ),
        (lambda prompts, completions: torch.zeros(()), "returned 0.0; it must be one number"),
        (
            lambda prompts, completions: (1 / (c != "d") for c in completions),
            "ZeroDivisionError: division by zero; .* first completion for which it does is 2 of",
        ),
        (lambda prompts, completions: [1.0], "1 values for 2 completions"),
        (lambda prompts, completions: [1.0, float("nan")], "one finite number"),
        (lambda prompts, completions: 3.0, "returned 3.0; it must be one number"),
        (
            lambda prompts, completions: ["x", "y"],
            "returned 'x' for completion 1 of 2; it must be one finite number",
        ),
    ],
)
def test_a_function_that_breaks_the_contract_is_refused(function, said):
    with pytest.raises(ValueError, match=said):
        reward_function(function, TOKENIZER)(encode(TOKENIZER, ["a", "b"], ["c", "d"]))


def test_a_prompt_without_a_row_is_refused():
    with pytest.raises(ValueError, match="The prompt 'new' has no row"):
        reward_function(lambda **given: [0.0], TOKENIZER, DATA)(encode(TOKENIZER, ["new"], ["c"]))


def test_the_function_gets_prompts_without_bos():
    tokenizer, seen = tiny_tokenizer(), []
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{EOS} $A", special_tokens=[(EOS, 0)]
    )
    assert tokenizer("a").input_ids[0] == 0
    for dataset in (None, DATA):
        reward_function(lambda prompts, **given: seen.append(prompts) or [0.0], tokenizer, dataset)(
            encode(tokenizer, ["a"], ["c"])
        )
    assert seen == [["a"], ["a"]]


TWICE = Dataset.from_list([{"prompt": p, "answer": i} for i, p in enumerate(["a", "b", "a"])])


def test_rows_with_the_same_prompt_keep_their_own_columns():
    def answers(completions, answer):
        return answer

    score = reward_function(answers, TOKENIZER, TWICE)
    batch = encode(TOKENIZER, ["a", "b", "a", "a"], ["x"] * 4)
    row = torch.tensor([2, 1, 0, 2])
    assert score(batch.with_columns(prompt_row=row)).tolist() == [2.0, 1.0, 0.0, 2.0]
    for unknown in (batch, batch.with_columns(prompt_row=torch.tensor([5, 1, 0, 2]))):
        with pytest.raises(ValueError, match="Rows 1 and 3 both have the prompt 'a', so it is not"):
            score(unknown)
    equal = Dataset.from_list([{"prompt": "a", "answer": 7}] * 2)  # it does not matter which
    assert reward_function(answers, TOKENIZER, equal)(batch.select([0, 2])).tolist() == [7.0, 7.0]


def test_the_loops_say_which_row_a_prompt_is_and_how_far_they_are():
    seen = []

    def watch(prompts, completions, answer, trainer_state, **columns):
        assert [TWICE[i]["prompt"] for i in answer] == prompts
        seen.append((answer, trainer_state.global_step, trainer_state.max_steps))
        return [float(len(text)) for text in completions]

    score, short = reward_function(watch, TOKENIZER, TWICE), SamplingConfig(max_new_tokens=2)
    group = GroupConfig(
        steps=2, prompts_per_step=3, group_size=2, minibatch_size=6, epochs=1, sampling=short
    )
    train_group(tiny_policy(), TOKENIZER, TWICE["prompt"], score, group)
    ppo = PPOConfig(steps=2, batch_size=6, samples_per_prompt=2, minibatch_size=6, sampling=short)
    train_ppo(tiny_policy(), tiny_critic(), TOKENIZER, TWICE, score, ppo)
    dpo = DPOConfig(steps=2, batch_size=3)
    online = OnlineConfig(sampling=short, dpo=dpo)
    train_online(tiny_policy(), TOKENIZER, TWICE.to_pandas().prompt, score, online)
    assert [(sorted(rows), *at) for rows, *at in seen] == 3 * [
        ([0, 0, 1, 1, 2, 2], step, 2) for step in (0, 1)
    ]  # each row twice; the groups side by side
    assert all(rows[::2] == rows[1::2] for rows, *_ in seen)


def test_a_function_gets_only_the_arguments_that_it_names():
    batch = encode(TOKENIZER, ["longer", "a"], ["xy", "z"])

    def by_name(completions, answer, extra=5):
        return [a + extra for a in answer]

    class Callable:
        def __call__(self, completion_ids, **rest):
            return [len(ids) for ids in completion_ids]

    assert reward_function(by_name, TOKENIZER, DATA)(batch).tolist() == [7.0, 6.0]
    part = functools.partial(by_name, extra=1)
    assert reward_function(part, TOKENIZER, DATA)(batch).tolist() == [3.0, 2.0]
    assert reward_function(Callable(), TOKENIZER)(batch).tolist() == [3.0, 2.0]


async def leaves(completions, **rest):
    exit()


def raises(kind):
    def function(completions):
        raise kind("now")

    return function


def soon(kind, in_a_task=False):
    async def function(completions):
        await asyncio.sleep(0)
        if in_a_task:
            await asyncio.create_task(soon(kind)(completions))
        raise kind("now")

    return function


@pytest.mark.parametrize(
    "function, said",
    [
        (lambda completions: [exit() for _ in completions], "raised SystemExit: None; it was"),
        (lambda completions: sys.exit("stop" if "d" in completions else 0), "SystemExit: stop; "),
        (
            lambda completions: (c != "d" or exit() for c in completions),
            "for which it does is 2 of",
        ),
        (leaves, "raised SystemExit: None; it was given"),
        (raises(GeneratorExit), "GeneratorExit: now; .*This is test_reward_function.py, line"),
        (raises(asyncio.CancelledError), "CancelledError: now; .*test_reward_function.py, line"),
        (raises(BaseException), "BaseException: now; .*This is test_reward_function.py, line"),
        (soon(GeneratorExit), "GeneratorExit: now; .*This is test_reward_function.py, line"),
        (soon(asyncio.CancelledError), "CancelledError: now; .*test_reward_function.py, line"),
        (soon(KeyboardInterrupt), "KeyboardInterrupt; .*This is test_reward_function.py, line"),
        (soon(KeyboardInterrupt, in_a_task=True), "KeyboardInterrupt; .*test_reward_function.py"),
    ],
)
def test_a_function_that_ends_python_is_refused(function, said):
    with pytest.raises(ValueError, match=said):
        reward_function(function, TOKENIZER)(encode(TOKENIZER, ["a", "b"], ["c", "d"]))


class NoText(Exception):
    def __str__(self):
        raise RuntimeError("no text")

    __repr__ = __str__


class NoFloat:
    def __float__(self):
        raise KeyError("float")

    __str__ = NoText.__str__


class NoAttributes:
    def __getattr__(self, name):
        raise KeyError(name)

    def __call__(self, **given):
        raise ValueError("x" * 10_000)


def raises_no_text(completions):
    raise NoText


@pytest.mark.parametrize(
    "function, said",
    [
        (raises_no_text, "raised NoText: (a NoText that cannot be shown); it was given compl"),
        (lambda completions: [NoFloat() for _ in completions], "returned '(a NoFloat that can"),
        ([NoAttributes()], f"NoAttributes raised ValueError: {'x' * 300} ...; it was given"),
        (lambda completions: [mock.MagicMock() for _ in completions], 'returned "<MagicMock'),
        (lambda completions: mock.MagicMock(), "returned <MagicMock"),
        (lambda *a: [1.0], "<lambda> takes none of the arguments that it is given by name: pro"),
        (lambda: [1.0], "takes none of the arguments that it is given by name"),
        (max, "raised TypeError: max expected at least 1 argument, got 0; it was given prompts, "),
        (functools.lru_cache(lambda completions: [1.0]), "TypeError: unhashable type: 'list'"),
    ],
)
def test_what_the_objects_of_a_user_raise_becomes_one_sentence(function, said):
    with pytest.raises(ValueError) as error:
        function = function[0] if isinstance(function, list) else function  # pytest asks its name
        reward_function(function, TOKENIZER)(encode(TOKENIZER, ["a"], ["c"]))
    text = str(error.value)
    assert said in text and "\n" not in text and len(text) < 1000, text
    assert " function.py" not in text and "user_code.py" not in text, text  # no line of ours


def test_ctrl_c_in_a_function_is_no_error_of_it():
    with pytest.raises(KeyboardInterrupt):
        reward_function(raises(KeyboardInterrupt), TOKENIZER)(encode(TOKENIZER, ["a"], ["c"]))


@pytest.mark.parametrize(
    "change",
    [
        lambda: torch.set_default_dtype(torch.float64),
        lambda: torch.set_num_threads(torch.get_num_threads() + 1),
        lambda: torch.use_deterministic_algorithms(True),
        lambda: torch.use_deterministic_algorithms(True, warn_only=True),
        lambda: torch.set_grad_enabled(False),
        lambda: torch.set_default_device("meta"),
        lambda: torch.set_float32_matmul_precision("medium"),
        lambda: torch.autocast("cpu", dtype=torch.bfloat16).__enter__(),
        lambda: torch.set_autocast_dtype("cuda", torch.bfloat16),
        lambda: torch.backends.cuda.enable_math_sdp(False),
        lambda: os.chdir("/"),
    ],
)
def test_what_a_function_sets_for_all_is_set_back(change):
    def function(completions):
        change()
        return [0.0 for _ in completions]

    before = shared_settings()
    with settings_kept():
        change()
        assert shared_settings() != before
    try:
        reward_function(function, TOKENIZER)(encode(TOKENIZER, ["a"], ["c"]))
        assert shared_settings() == before
    finally:
        restore_settings(before)


def test_all_rows_are_tokenised_in_one_call(monkeypatch):
    asked = []
    monkeypatch.setattr(
        "minirlhf.rewards.function.prompt_tokens",
        lambda tokenizer, texts: asked.append(texts) or [[1], [2], [1]],
    )
    reward_function(lambda completions: [], TOKENIZER, TWICE)
    assert asked == [["a", "b", "a"]]


async def waits(completions, **rest):
    await asyncio.sleep(0)
    return [float(len(c)) for c in completions]


def test_async_functions_are_awaited_also_while_an_event_loop_runs():
    batch = encode(TOKENIZER, ["a", "b"], ["xy", "z"])
    score = reward_function(waits, TOKENIZER)

    async def in_a_notebook():
        return score(batch)

    assert score(batch).tolist() == asyncio.run(in_a_notebook()).tolist() == [2.0, 1.0]


@pytest.mark.parametrize(
    "made",
    [
        tuple,
        iter,
        np.array,
        pd.Series,
        torch.tensor,
        lambda v: torch.tensor(v, requires_grad=True),
        lambda v: torch.tensor(v)[:, None],  # as a reward model's logits
        lambda v: torch.tensor(v, dtype=torch.bfloat16),
        lambda v: [np.float32(x) for x in v],
        lambda v: [torch.tensor(x) for x in v],
    ],
)
def test_rewards_may_come_as_any_sequence_of_numbers(made):
    score = reward_function(lambda completions: made([1.0, 0.5]), TOKENIZER)
    assert score(encode(TOKENIZER, ["a", "b"], ["c", "d"])).tolist() == [1.0, 0.5]


def test_what_a_function_does_not_score_is_left_out_of_the_weighted_sum():
    batch = encode(TOKENIZER, ["a", "b", "c"], ["x", "y", "z"])
    first = reward_function(lambda completions: [1.0, None, None], TOKENIZER)
    second = reward_function(lambda completions: [4.0, 4.0, None], TOKENIZER)
    assert first(batch)[0] == 1.0 and first(batch)[1:].isnan().all()
    both = weighted([(first, 2.0), (second, 0.5)])(batch)
    assert both[:2].tolist() == [4.0, 2.0] and both[2].isnan()


def test_conversations_are_given_as_conversations():
    tokenizer, seen = tiny_tokenizer(), {}
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    prompt = [{"role": "user", "content": "a"}]
    data = Dataset.from_list([{"prompt": prompt, "answer": "x"}])

    def same(prompts, completions, answer):
        seen.update(prompts=prompts, completions=completions)
        return [c[-1]["content"] == a for c, a in zip(completions, answer, strict=True)]

    batch = encode(tokenizer, ["<user>a<assistant>"], ["x"])
    assert reward_function(same, tokenizer, data)(batch).tolist() == [1.0]
    reply = [{"role": "assistant", "content": "x"}]
    assert seen == {"prompts": [prompt], "completions": [reply]}
    assert answer_reward([prompt], [reply], answer=["x"]) == [0.0]  # x alone is no answer
    short = GroupConfig(
        steps=1,
        prompts_per_step=2,
        group_size=2,
        minibatch_size=4,
        epochs=1,
        sampling=SamplingConfig(max_new_tokens=2),
    )
    train_group(tiny_policy(), tokenizer, data, reward_function(same, tokenizer, data), short)
    assert seen["prompts"] == [prompt] * 4


@pytest.mark.parametrize(
    "function, data, said",
    [
        ("my-reward-model", None, "function is 'my-reward-model'; it must be a Python function"),
        ([len], None, "for several functions rewards.weighted"),
        (torch.nn.Linear(1, 1), None, "For a reward model use rewards.rollout_score"),
        (
            lambda completions, solution: [],
            DATA,
            "<lambda> needs the argument solution, but it is given prompts, completions, "
            "completion_ids, trainer_state, answer, by name",
        ),
        (lambda completions, log_metric: [], None, "needs the argument log_metric"),
        (lambda texts, /: [], None, "needs the argument texts"),
        (waits, Dataset.from_list([]), "dataset is 'Dataset'; it must be a Dataset with one row"),
        (waits, Dataset.from_list([{"q": "a"}]), "Row 1 of the reward function's dataset is"),
        (waits, DATA.to_pandas(), "Row 1 of the reward function's dataset is 'prompt'; it must"),
        (waits, Dataset.from_list([{"prompt": None}]), "Prompt 1 is 'None', of type NoneType"),
        (
            waits,
            Dataset.from_list([{"prompt": "a", "completions": 1}]),
            "a column 'completions', which is the name of an argument",
        ),
    ],
)
def test_a_function_or_dataset_that_cannot_be_used_is_refused_before_training(function, data, said):
    with pytest.raises(ValueError, match=said):
        reward_function(function, TOKENIZER, data)


@pytest.mark.parametrize(
    "score, said",
    [
        (
            lambda batch: [0.0] * 4,
            r"is \[0.0, 0.0, 0.0, 0.0\], of type list; it must be a tensor of one number for each",
        ),
        (lambda batch: torch.zeros(4, 1), r"of shape \(4, 1\); it must be .* of shape \(4,\)"),
        (lambda batch: torch.tensor(1.0), r"a tensor of shape \(\)"),
        (
            lambda batch: torch.tensor([0.0, 0.0, float("nan"), 0.0]),
            r"The score of response 3 of 4, to prompt \d, is nan; it must be finite",
        ),
        (lambda batch: torch.tensor([float("inf")] * 4), "The score of response 1 of 4, to prompt"),
        (reward_function(lambda completions: [None] * 4, TOKENIZER), "every reward function"),
    ],
)
@pytest.mark.parametrize("loop", ["group", "ppo", "online"])
def test_a_score_that_is_not_one_finite_number_each_stops_a_loop(loop, score, said):
    short = SamplingConfig(max_new_tokens=2)
    with pytest.raises(ValueError, match=said):
        if loop == "group":
            config = GroupConfig(
                steps=1, prompts_per_step=2, group_size=2, minibatch_size=4, sampling=short
            )
            train_group(tiny_policy(), TOKENIZER, ["a", "b"], score, config)
        elif loop == "ppo":
            config = PPOConfig(steps=1, batch_size=4, minibatch_size=4, sampling=short)
            train_ppo(tiny_policy(), tiny_critic(), TOKENIZER, ["a", "b"], score, config)
        else:
            config = OnlineConfig(sampling=short, dpo=DPOConfig(steps=1, batch_size=2))
            train_online(tiny_policy(), TOKENIZER, ["a", "b"], score, config)


def test_a_loop_learns_from_a_reward_function():
    def half(prompts, completions, **columns):
        return torch.tensor(
            [sum(c < "\x80" for c in text) / max(1, len(text)) for text in completions]
        )

    config = GroupConfig(
        steps=10,
        prompts_per_step=8,
        group_size=4,
        minibatch_size=16,
        missing_eos_penalty=0.0,
        kl=KLConfig(kl_coef=0.0),
        sampling=SamplingConfig(max_new_tokens=6),
        optimiser=OptimiserConfig(lr=1e-2),
    )
    _, history = train_group(
        tiny_policy(), TOKENIZER, ["a", "longer"], reward_function(half, TOKENIZER, DATA), config
    )
    assert history[-1]["score"] > history[0]["score"] + 0.2


def test_weighted_is_the_sum_of_weights_times_scores():
    rollout = encode(TOKENIZER, ["a", "b", "a"], ["xy", "z", ""])
    length = reward_function(lambda prompts, completions: [len(c) for c in completions], TOKENIZER)
    has_z = reward_function(lambda prompts, completions: ["z" in c for c in completions], TOKENIZER)
    # lengths 2, 1, 0; z in the second: 0.5 * 2, 0.5 * 1 - 4, 0
    assert weighted([(length, 0.5), (has_z, -4)])(rollout).tolist() == [1.0, -3.5, 0.0]
    assert weighted([(length, 3)])(rollout).tolist() == [6.0, 3.0, 0.0]
    assert weighted([(length, 1.0), (length, 1.0)])(rollout).tolist() == [
        4.0,
        2.0,
        0.0,
    ]  # a dict of functions would hold it once
    assert weighted([(weighted([(length, 2.0)]), 0.0), (has_z, 1.0)])(rollout).tolist() == [
        0.0,
        1.0,
        0.0,
    ]


def test_weighted_copies_the_given_list():
    pairs = [(lambda rollout: torch.ones(2), 2.0)]
    score = weighted(pairs)
    pairs.clear()
    assert score(None).tolist() == [2.0, 2.0]


@pytest.mark.parametrize(
    "functions, said",
    [
        ([], r"^functions is \[\]; it must be a list of one pair \(function, weight\) or more\.$"),
        ({len: 1.0}, "a list of one pair"),
        ([len], "a list of one pair"),
        ([(len, 1.0), (len, float("nan"))], r"^weight is nan; it must be a finite number\.$"),
        ([(len, float("-inf"))], "weight is -inf"),
        ([(len, "1")], "weight is '1'"),
        ([(len, None)], "weight is None"),
    ],
)
def test_weighted_refuses_wrong_terms(functions, said):
    with pytest.raises(ValueError, match=said):
        weighted(functions)


def test_weighted_refuses_scores_of_different_shapes():  # (2,) + (2, 1) would be (2, 2)
    with pytest.raises(ValueError, match=r"scores 0 \(2,\), scores 1 \(2, 1\)"):
        weighted([(lambda rollout: torch.ones(2), 1.0), (lambda rollout: torch.ones(2, 1), 1.0)])(
            None
        )


def test_rows_of_a_reward_have_the_same_columns():
    with pytest.raises(ValueError, match="Row 2 of the reward function.s dataset has the columns"):
        reward_function(len, tiny_tokenizer(), [{"prompt": "q", "a": 1}, {"prompt": "r"}])
