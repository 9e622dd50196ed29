from dataclasses import dataclass, field
from functools import partial

import pytest
import torch

from minirlhf.loops.config import OptimiserConfig
from minirlhf.loops.family import GroupFormulas
from minirlhf.loops.group import GroupConfig, train_group
from minirlhf.loops.pretrain import new_gpt2
from minirlhf.models.agent import TextTool
from minirlhf.models.forward import encode_prompts, policy_logprobs
from minirlhf.models.sampling import SamplingConfig, sample
from minirlhf.runtime import seed_all
from minirlhf.tasks.calculator import Calculator, agent_tokenizer
from tests.tiny import tiny_tokenizer

TOKENIZER = agent_tokenizer()
EOS = TOKENIZER.eos_token_id
PROMPTS = ["47*83+5=", "10*10-1=", "5+12*34=", "99*99+9="]


@dataclass
class Echo:
    """A tool that answers a call with fixed ids, and keeps what it was asked."""

    call_end: int
    reply: list[int]
    asked: list[list[int]] = field(default_factory=list)

    def run(self, ids):
        self.asked.append(ids)
        return self.reply


def policy(seed=0):
    seed_all(seed)
    model = new_gpt2(TOKENIZER, layers=2, width=32, heads=2, positions=64)
    return model.double().eval()


def draw(tool=None, *, prompts=PROMPTS, seed=0, copies=8, **config):
    settings = SamplingConfig(**{"max_new_tokens": 20, "temperature": 1.0} | config)
    return sample(
        policy(),
        *encode_prompts(TOKENIZER, prompts),
        eos_id=EOS,
        config=settings,
        samples_per_prompt=copies,
        generator=torch.Generator().manual_seed(seed),
        tool=tool,
    )


def test_a_tool_that_writes_nothing_changes_nothing():
    plain, with_tool = draw(), draw(Echo(call_end=3, reply=[]))
    for name in ("response_ids", "response_mask", "action_mask", "old_logprobs"):
        assert torch.equal(getattr(plain, name), getattr(with_tool, name))
    assert torch.equal(plain.action_mask, plain.response_mask)


@pytest.mark.parametrize("reply", [[7], [7, EOS, 9], [3, 3]])
def test_the_tool_writes_right_after_a_call_and_the_policy_everything_else(reply):
    # the last reply holds the end of a call: the tool does not answer itself
    tool = Echo(call_end=3, reply=reply)
    batch, answered = draw(tool), 0
    for row in range(len(batch.response_ids)):
        ids = batch.response_ids[row][batch.response_mask[row]].tolist()
        chosen = batch.action_mask[row][batch.response_mask[row]].tolist()
        expected, t = [], 0
        while t < len(ids):
            expected.append(True)
            t += 1
            if ids[t - 1] == 3 and t < len(ids):
                assert ids[t : t + len(reply)] == reply[: len(ids) - t]
                expected += [False] * min(len(reply), len(ids) - t)
                t += len(reply)
                answered += 1
        assert chosen == expected
        ends = [
            i
            for i, (token, mine) in enumerate(zip(ids, chosen, strict=True))
            if token == EOS and mine
        ]
        assert ends in ([], [len(ids) - 1])
    assert answered >= 10 and len(tool.asked) >= answered
    assert all(ids[-1] == 3 for ids in tool.asked)


def test_the_tool_is_given_the_ids_that_were_sampled():
    tool = Echo(call_end=3, reply=[7, 9])
    batch = draw(tool)
    rows = [
        batch.response_ids[row][batch.response_mask[row]].tolist()
        for row in range(len(batch.response_ids))
    ]
    for asked in tool.asked:
        assert any(ids[: len(asked)] == asked for ids in rows)


def test_sampled_log_probabilities_equal_those_of_one_forward_pass_over_the_turns():
    batch = draw(Echo(call_end=3, reply=[7, 9, 11]))
    assert not batch.action_mask[batch.response_mask].all()
    again = policy_logprobs(policy(), batch)
    assert (again - batch.old_logprobs).abs().max() < 1e-9
    assert (batch.old_logprobs[~batch.action_mask] == 0).all()


def test_rows_at_different_turns_do_not_disturb_each_other():
    together = draw(Echo(call_end=3, reply=[7, 9]), copies=1, greedy=True)
    for row, prompt in enumerate(PROMPTS):
        alone = draw(Echo(call_end=3, reply=[7, 9]), prompts=[prompt], copies=1, greedy=True)
        width = int(alone.response_mask.sum())
        assert width == int(together.response_mask[row].sum())
        assert torch.equal(together.response_ids[row, :width], alone.response_ids[0, :width])
        assert torch.equal(together.action_mask[row, :width], alone.action_mask[0, :width])


def test_a_response_cut_in_the_tools_turn_is_unfinished():
    tool = Echo(call_end=3, reply=[EOS] * 40)
    batch = draw(tool)
    called = [row for row in range(len(batch.response_ids)) if not batch.action_mask[row].all()]
    cut = [row for row in called if not batch.action_mask[row, -1] and batch.response_mask[row, -1]]
    assert cut and not batch.finished(EOS)[cut].any()


@pytest.mark.parametrize("name", ["grpo", "reinforce"])
def test_group_algorithms_train_on_turns_and_the_tools_tokens_have_no_loss(name):
    """Two tools, whose replies differ only in tokens after which nothing was sampled."""

    def trained(reply):
        config = GroupConfig.plain(
            name,
            steps=2,
            prompts_per_step=4,
            group_size=4,
            minibatch_size=16,
            epochs=1,
            sampling=SamplingConfig(max_new_tokens=6, temperature=1.0),
            optimiser=OptimiserConfig.plain(lr=1e-2),
        )
        seen = []

        def score(batch):
            seen.append(batch)
            return batch.action_mask.sum(1).double()

        model, _ = train_group(
            policy(),
            TOKENIZER,
            PROMPTS,
            score,
            config,
            formulas=GroupFormulas(sample=partial(sample, tool=Echo(call_end=3, reply=reply))),
        )
        return model, seen

    # a reply as long as the response: the policy writes nothing after it
    (one, seen), (other, seen_other) = trained([7] * 6), trained([9] * 6)
    assert not seen[0].action_mask[seen[0].response_mask].all()
    assert not torch.equal(seen[0].response_ids, seen_other[0].response_ids)
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
    assert any(
        not torch.equal(a, b) for a, b in zip(one.parameters(), policy().parameters(), strict=True)
    )


def test_the_calculator_takes_its_turn_in_a_batch():
    tool = Calculator(TOKENIZER)
    batch = draw(tool, copies=32)
    results = 0
    for row in range(len(batch.response_ids)):
        ids = batch.response_ids[row].tolist()
        for t in range(len(ids) - 1):
            if ids[t] == tool.call_end and batch.action_mask[row, t]:
                reply = tool.run(ids[: t + 1])[: len(ids) - t - 1]
                assert ids[t + 1 : t + 1 + len(reply)] == reply
                results += 1
    assert results >= 20


def test_a_tool_of_texts_is_the_same_tool_as_one_of_ids():
    calculator = Calculator(TOKENIZER)

    def product(text):
        return TOKENIZER.decode(calculator.run(TOKENIZER(text).input_ids))

    by_ids, by_texts = draw(calculator), draw(TextTool(TOKENIZER, "]", product))
    assert not by_ids.action_mask[by_ids.response_mask].all()
    for name in ("response_ids", "response_mask", "action_mask", "old_logprobs"):
        assert torch.equal(getattr(by_ids, name), getattr(by_texts, name))


def test_the_function_reads_the_response_so_far_and_its_special_tokens():
    asked = []
    tool = TextTool(TOKENIZER, "]", lambda text: asked.append(text) or "")
    ids = TOKENIZER("[4*5]{20}[7]").input_ids
    assert tool.run(ids) == [] and tool.run([EOS, *ids]) == []
    assert asked == ["[4*5]{20}[7]", "<|endoftext|>[4*5]{20}[7]"]


def test_special_tokens_in_an_answer_are_text():
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["</call>"]})
    tokenizer.add_tokens(["<result>"])
    tokenizer.chat_template = "</call>"  # in a prompt of the reader's it would be a token
    tool = TextTool(tokenizer, "</call>", lambda text: "<result>" + text)
    end, result = (tokenizer.get_vocab()[token] for token in ("</call>", "<result>"))
    ids = tool.run([end, tokenizer.eos_token_id])
    assert tool.call_end == end and ids[0] == result
    assert tokenizer.decode(ids) == "<result></call><|endoftext|>"
    assert not {end, tokenizer.eos_token_id} & {*ids}


def test_a_tool_changes_no_settings_of_the_run():
    tool = TextTool(TOKENIZER, "]", lambda text: torch.set_default_dtype(torch.float64) or "1")
    tool.run([3])
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize("call_end", ["]]", "", "x", "<|endoftext|>", None, 5])
def test_a_call_must_end_in_one_token(call_end):
    with pytest.raises(ValueError, match="The end of a call is .* a text that is one token of"):
        TextTool(TOKENIZER, call_end, str)


class Unspeakable:
    """An object without a name, whose text cannot be asked for."""

    def __call__(self, text):
        return 5

    def __getattr__(self, name):
        raise KeyError(name)

    def __repr__(self):
        raise RuntimeError


def fails(text):
    raise KeyError(text)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (
            fails,
            r"function fails raised KeyError: '\+' \(test_tool.py, line [0-9]+\); it was given",
        ),
        (
            lambda text: 5,
            "returned 5, of type int; it must be text; it was given the response '[+]'",
        ),
        (lambda text: None, "returned None, of type NoneType"),
        (
            lambda text: Unspeakable(),
            r"returned \(a Unspeakable that cannot be shown\), of type Unsp",
        ),
        (lambda text: "[a]", "which has characters that the tokenizer cannot write"),
    ],
)
def test_a_tool_that_fails_is_one_sentence(function, words):
    plus = TOKENIZER.get_vocab()["+"]
    with pytest.raises(ValueError, match=words):
        TextTool(TOKENIZER, "]", function).run([plus])


def test_a_tool_without_a_name_that_fails_is_one_sentence():
    with pytest.raises(ValueError, match="function Unspeakable returned 5, of type int; it must"):
        TextTool(TOKENIZER, "]", Unspeakable()).run([TOKENIZER.get_vocab()["+"]])
