"""Reward functions with the signature of TRL, and the error messages when a function breaks it."""

import pytest
import torch
from datasets import Dataset
from tokenizers.processors import TemplateProcessing

from minirlhf.loops.config import KLConfig, OptimiserConfig
from minirlhf.loops.group import GroupConfig, train_group
from minirlhf.models.forward import encode
from minirlhf.models.sampling import SamplingConfig
from minirlhf.rewards.function import reward_function, weighted
from tests.tiny import EOS, tiny_policy, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
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
        "answer": [2, 1, 2],
    }


@pytest.mark.parametrize(
    "function, said",
    [
        (
            lambda prompts, completions: 1 / 0,
            "raised ZeroDivisionError: division by zero; it was given prompts, completions",
        ),
        (lambda prompts: [0.0], "raised TypeError"),
        (lambda prompts, completions: None, "returned None; it must be one number"),
        (lambda prompts, completions: [None, 1.0], "must be one number for each"),
        (lambda prompts, completions: [1.0], "1 values for 2 completions"),
        (lambda prompts, completions: [1.0, float("nan")], "one finite number"),
        (lambda prompts, completions: 3.0, "returned 3.0; it must be one number"),
        (lambda prompts, completions: ["x", "y"], "returned ..x., .y..; it must be one number"),
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


def test_two_rows_with_the_same_prompt_are_refused():
    with pytest.raises(ValueError, match="Two rows have the prompt 'a'"):
        reward_function(
            lambda **given: [], TOKENIZER, Dataset.from_list([{"prompt": "a", "answer": 1}] * 2)
        )


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
