"""The prompts argument of the RL loops: the forms that are read, and those that are refused."""

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset, DatasetDict

from minirlhf.loops.group import GroupConfig, train_group
from minirlhf.loops.online import OnlineConfig, train_online
from minirlhf.loops.ppo import PPOConfig, train_ppo
from minirlhf.loops.preference import DPOConfig
from minirlhf.models.forward import encode_prompts
from minirlhf.models.heads import ScalarModel
from minirlhf.models.sampling import SamplingConfig
from minirlhf.tasks.prompts import prompt_texts
from tests.tiny import tiny_policy, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
DATA = Dataset.from_dict({"answer": [1, 2], "prompt": ["a", "bc"]})
TURNS = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    "prompts",
    [
        ["a", "bc"],
        ("a", "bc"),
        (text for text in ("a", "bc")),
        np.array(["a", "bc"]),
        np.array(["a", "bc"], dtype=object),
        pd.Series(["a", "bc"]),
        pd.Series(["a", "bc"], index=[7, 3]),
        pd.Series(["a", "bc"], dtype="category"),
        DATA["prompt"],
        DATA.to_iterable_dataset()["prompt"],
        DATA,
        DATA.to_iterable_dataset(),
        DATA.to_pandas(),
        DATA.to_list(),
        DATA.to_dict(),
    ],
    ids=lambda prompts: type(prompts).__name__,
)
def test_prompts_are_read_from_whatever_holds_them(prompts):
    texts = prompt_texts(prompts, TOKENIZER)
    assert texts == ["a", "bc"] and [type(text) for text in texts] == [str, str]


@pytest.mark.parametrize(
    "prompts, said",
    [
        ("the film", "prompts is 'the film', of type str; .* give a list of one text"),
        (b"the film", "of type bytes; it must be a list of texts"),
        ({"a", "b"}, "of type set; it must be .*, which has an order"),
        (frozenset("a"), "of type frozenset"),
        (None, "prompts is 'None', of type NoneType; it must be"),
        (3, "prompts is '3', of type int; it must be"),
        (np.array("a"), "of type ndarray; it must be"),
        ([], "^rows to train on is 0; it must be at least 1: there are no prompts.$"),
        (pd.Series(dtype=str), "there are no prompts"),
        (["a", ""], "^Prompt 2 is empty; remove it or give it a text.$"),
        (["a", None], "^Prompt 2 is 'None', of type NoneType; it must be text.$"),
        (pd.Series(["a", None, float("nan")]), "Prompt 2 is 'nan', of type float"),
        (pd.Series(["a", pd.NA], dtype="string"), "Prompt 2 is '<NA>'"),
        ([1.0], "Prompt 1 is '1.0', of type float"),
        ([b"a"], "of type bytes; it must be text"),
        (["a", "\ud800"], "Prompt 2 holds half a character"),
        (np.array([["a", "b"]]), "Prompt 1 is .* of type ndarray; it must be text"),
        (torch.tensor([[1, 2]]), "of type Tensor; it must be text"),
        (TURNS, "Prompt 1 is .*'role'.*, of type dict; it must be text"),
        ([TURNS], "Prompt 1 is a conversation; give a tokenizer that has a chat template"),
        ([[]], r"Prompt 1 is '\[\]', of type list"),
        (DATA.rename_column("prompt", "q"), "a Dataset with answer, q; it must have a column `pro"),
        (DATA.rename_column("prompt", "q").to_pandas(), "a DataFrame with answer, q; it must have"),
        (DatasetDict(train=DATA), "a DatasetDict with train; it must have a column `prompt`"),
        ({"train": ["a"]}, "a dict with train; it must have"),
        ({"prompt": "abc"}, "^The column `prompt` is 'abc', of type str; it must be one column"),
        ({"prompt": {"a"}}, "^The column `prompt` is .*, of type set; .*, which has an order"),
        ({"prompt": {"a": 1}}, "^The column `prompt` is .*, of type dict; it must be one column"),
        ({"prompt": None}, "^The column `prompt` is 'None'"),
        (
            pd.DataFrame([["a", "b"]], columns=["prompt", "prompt"]),
            "^The column `prompt` is .*, of type DataFrame",
        ),
    ],
)
def test_prompts_that_cannot_be_meant_are_refused_with_their_row(prompts, said):
    with pytest.raises(ValueError, match=said):
        prompt_texts(prompts, TOKENIZER)


def test_conversations_are_written_with_the_chat_template():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}<{{ m['content'] }}>{% endfor %}:"
    assert prompt_texts([TURNS, TURNS], tokenizer) == ["<hi>:", "<hi>:"]
    assert prompt_texts(Dataset.from_dict({"prompt": [TURNS]}), tokenizer) == ["<hi>:"]
    parts = [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]
    assert prompt_texts([[{"role": "user", "content": parts}]], tokenizer) == ["<hi>:"]
    calls = "{% for m in messages %}<{{ m.content }}{{ m.tool_calls }}>{% endfor %}:"
    called = [*TURNS, {"role": "assistant", "content": None, "tool_calls": ["f"]}, *TURNS]
    tokenizer.chat_template = calls
    assert prompt_texts([called], tokenizer) == ["<hi><['f']><hi>:"]
    deep = []
    for _ in range(900):
        deep = [deep]
    for bad, said in (
        ({"role": "assistant", "content": "a"}, "Prompt 2: the prompt ends with the assistant's"),
        ({"role": None, "content": "a"}, "Prompt 2: the role of turn 2 in prompt is 'None'"),
        ({"role": "user", "content": "a", "x": deep}, "Prompt 2 holds lists that are nested too"),
    ):
        with pytest.raises(ValueError, match=said):
            prompt_texts([TURNS, [*TURNS, bad]], tokenizer)
    with pytest.raises(ValueError, match="Prompt 2: the content of turn 1 in prompt is 'None'"):
        prompt_texts([TURNS, [{"role": "user", "content": None}]], tokenizer)


def test_one_text_is_not_a_list_of_letters():
    with pytest.raises(
        ValueError, match=r"prompts is 'ab'; it must be a list of texts: \[prompt\]"
    ):
        encode_prompts(TOKENIZER, "ab")


def run(loop, prompts):
    short, policy = SamplingConfig(max_new_tokens=2), tiny_policy()

    def score(batch):
        return batch.response_mask.sum(1).float()

    if loop == "group":
        config = GroupConfig(
            steps=1, prompts_per_step=2, group_size=2, minibatch_size=4, epochs=1, sampling=short
        )
        return train_group(policy, TOKENIZER, prompts, score, config)[-1]
    if loop == "ppo":
        config = PPOConfig(steps=1, batch_size=2, minibatch_size=2, epochs=1, sampling=short)
        critic = ScalarModel(tiny_policy().transformer)
        return train_ppo(policy, critic, TOKENIZER, prompts, score, config)[-1]
    config = OnlineConfig(sampling=short, dpo=DPOConfig(steps=1, batch_size=2))
    return train_online(policy, TOKENIZER, prompts, score, config)[-1]


@pytest.mark.parametrize("loop", ["group", "ppo", "online"])
def test_every_loop_reads_prompts_in_these_forms(loop):
    histories = [run(loop, p) for p in (["a", "bc"], DATA["prompt"], DATA.to_pandas().prompt, DATA)]
    assert all(history == histories[0] for history in histories)
    with pytest.raises(ValueError, match="give a list of one text"):
        run(loop, "a bc")
    with pytest.raises(ValueError, match="Prompt 2 is empty"):
        run(loop, ["a", ""])
