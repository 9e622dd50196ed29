"""Special tokens that are written in a text, and those that a tokenizer adds to it."""

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from minirlhf.models.forward import (
    encode,
    encode_prompts,
    position_limit,
    prompt_tokens,
    template_tokens,
    text_tokens,
)
from minirlhf.rewards.function import reward_function
from tests.tiny import EOS, tiny_policy, tiny_tokenizer

MARKS = ("<|im_start|>", "<|im_end|>", "[SEP]", "<start_of_turn>", "</s>")


def marked(template=None, *, wrap=None):
    """A byte tokenizer with more special tokens, a chat template, and a post-processor."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": list(MARKS), "bos_token": "<s>"})
    tokenizer.chat_template = template
    if wrap:
        special = [(t, tokenizer.convert_tokens_to_ids(t)) for t in ("<s>", "</s>", "[SEP]")]
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=wrap, special_tokens=special
        )
    return tokenizer


@pytest.mark.parametrize("mark", [EOS, *MARKS])
def test_a_special_token_in_a_text_is_text(mark):
    tokenizer = marked()
    text = f"say {mark} twice, {mark}!"
    spelled = [
        tokenizer.convert_tokens_to_ids(c)
        for c in tokenizer.tokenize(text, split_special_tokens=True)
    ]
    batch = encode(tokenizer, [text], [text])
    assert batch.prompt_ids[0].tolist() == spelled
    assert batch.response_ids[0].tolist() == [*spelled, tokenizer.eos_token_id]
    assert tokenizer.decode(spelled) == text


def test_the_special_tokens_of_the_chat_template_are_tokens_unless_they_are_split():
    tokenizer = marked("<|im_start|>{{ messages }}<|im_end|>{{ eos_token }}")
    assert set(template_tokens(tokenizer)) == {"<|im_start|>", "<|im_end|>", EOS}
    start, end, eos = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>", EOS])
    (ids,) = text_tokens(tokenizer, [f"<|im_start|>a[SEP]b<|im_end|>{EOS}"])
    assert (ids[0], ids[-2:]) == (start, [end, eos])
    assert tokenizer.decode(ids[1:-2]) == "a[SEP]b" and len(ids) == 3 + len("a[SEP]b")
    tokenizer.split_special_tokens = True
    (ids,) = text_tokens(tokenizer, ["<|im_start|>a[SEP]b<|im_end|>"])
    assert len(ids) == len("<|im_start|>a[SEP]b<|im_end|>")


@pytest.mark.parametrize(
    "wrap, before",
    [("<s> $A </s>", ["<s>"]), ("$A </s>", []), ("$A [SEP]", []), ("<s> $A", ["<s>"])],
)
def test_a_prompt_keeps_bos_and_loses_what_the_tokenizer_appends(wrap, before):
    tokenizer = marked(wrap=wrap)
    expected = tokenizer.convert_tokens_to_ids([*before, "h", "i"])
    ids, mask = encode_prompts(tokenizer, ["hi", "h"])
    assert ids[0].tolist() == expected and mask[0].all()
    assert ids[1][mask[1]].tolist() == expected[:-1]
    # a response gets no BOS, and one EOS
    batch = encode(tokenizer, ["hi"], ["yo"])
    assert batch.response_ids[0].tolist() == [
        *tokenizer.convert_tokens_to_ids(["y", "o"]),
        tokenizer.eos_token_id,
    ]


@pytest.mark.parametrize("template", [None, "{{ bos_token }}{{ messages }}"])
@pytest.mark.parametrize("wrap", [None, "<s> $A </s>"])
def test_bos_at_the_beginning_of_a_prompt_is_read_once(template, wrap):
    tokenizer = marked(template, wrap=wrap)
    (ids,) = prompt_tokens(tokenizer, ["<s>hi"])
    assert ids == tokenizer.convert_tokens_to_ids(["<s>", "h", "i"])


def test_a_response_in_parts_counts_the_parts_of_the_policy():
    tokenizer = tiny_tokenizer()
    parts = [("ab", True), ("cde", False), ("f", True)]
    batch = encode(tokenizer, ["p", "p"], [parts, "abcdef"])
    assert torch.equal(batch.response_ids[0], batch.response_ids[1])
    assert batch.action_mask.tolist() == [
        [True, True, False, False, False, True, True],
        [True] * 7,
    ]
    cut = encode(tokenizer, ["p"], [parts], max_response=4)
    assert cut.action_mask.tolist() == [[True, True, False, False]] and cut.response_mask.all()


def test_a_tokenizer_without_eos_is_refused_and_without_pad_it_pads():
    words = models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?")
    bare = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words))
    bare.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(ValueError, match="eos_token_id is None; it must be the token that ends"):
        encode(bare, ["a"], ["b"])
    ids, mask = encode_prompts(bare, ["a b", "b"])
    assert ids[mask].tolist() == [0, 1, 1] and mask.tolist() == [[True, True], [False, True]]


def test_the_positions_of_a_model_are_those_of_its_text():
    model = tiny_policy(positions=48)
    assert position_limit(model) == position_limit(model.base_model) == 48
    assert position_limit(torch.nn.Linear(1, 1)) is None


def test_a_tokenizer_in_python_is_read_in_the_same_way():
    tokenizer = ByT5Tokenizer()  # it appends </s>
    ids, _ = encode_prompts(tokenizer, ["a</s>b"])
    assert tokenizer.decode(ids[0]) == "a</s>b" and tokenizer.eos_token_id not in ids[0]
    batch = encode(tokenizer, ["x"] * 2, ["a</s>b", "a</s>"])
    assert batch.response_mask.sum(1).tolist() == [7, 2]
    assert batch.finished(tokenizer.eos_token_id).all()


def test_a_reward_function_finds_the_row_of_a_prompt_after_which_the_tokenizer_adds_eos():
    tokenizer = marked(wrap="<s> $A </s>")
    dataset = Dataset.from_list([{"prompt": "1+1=", "answer": "2"}])
    score = reward_function(
        lambda completions, answer, **_: [
            float(c == a) for c, a in zip(completions, answer, strict=True)
        ],
        tokenizer,
        dataset,
    )
    assert score(encode(tokenizer, ["1+1=", "1+1="], ["2", "3"])).tolist() == [1.0, 0.0]
