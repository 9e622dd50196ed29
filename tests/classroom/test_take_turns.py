"""The checker of lesson 15's loop of turns accepts every right loop and names each mistake."""

import pytest
import torch

from minirlhf.classroom import check
from minirlhf.classroom.exercise import LONGEST

LOOP = """
def take_turns(policy, tool, call_end, eos):
    ids, own = [], []
    while True:
        ids.append(policy(ids))
        own.append(True)
        if ids[-1] == eos:
            return ids, own
        if ids[-1] == call_end:
            result = tool(ids)
            ids += result
            own += [False] * len(result)
"""


def written(*changes):
    source = LOOP
    for right, wrong in changes:
        assert source.count(right) == 1, right
        source = source.replace(right, wrong)
    scope = {"torch": torch}
    exec(source, scope)
    return scope["take_turns"]


@pytest.mark.parametrize(
    "changes",
    [
        (),
        (("return ids, own", "return torch.tensor(ids), torch.tensor(own)"),),
        (("return ids, own", "return [ids, [int(x) for x in own]]"),),
        (("policy(ids)", "policy(torch.tensor(ids))"), ("tool(ids)", "tool(tuple(ids))")),
        (
            ("while True:", "while not ids or ids[-1] != eos:"),
            ("        if ids[-1] == eos:\n            return ids, own\n", ""),
            ("len(result)\n", "len(result)\n    return ids, own\n"),
        ),
    ],
)
def test_right_loops_pass(changes):
    assert check.take_turns(written(*changes))


MISTAKES = [
    (("own.append(True)", "own.append(ids[-1] != eos)"), "the EOS is not marked as own"),
    (("own.append(True)", "own.append(ids[-1] != call_end)"), "the ] is not marked as own"),
    (("[False]", "[True]"), "ids of the tool's result are marked as own"),
    (("len(result)\n", "len(result)\n            return ids, own\n"), "stops at the tool's result"),
    (("result = tool(ids)", "result = tool(ids) + tool(ids)"), "the tool is asked although"),
    (("if ids[-1] == call_end", "if call_end in ids"), "the tool is asked although no call has"),
    (("        if ids[-1] == eos:\n            return ids, own\n", ""), "goes on after the EOS"),
    (("ids += result", "ids.append(result)"), "ids has a list inside"),
    (("            ids += result\n", ""), "the tool's result is missing in ids"),
    (("tool(ids)", "tool(ids[:-1])"), "the tool is given [2*3. It reads all ids so far: [2*3]"),
    (("policy(ids)", "policy(ids[-1:])"), "the policy is given 2. It reads all ids so far: [2."),
    (("policy(ids)", "policy(len(ids))"), "ids is of type int. It must be a list."),
    (("policy(ids)", "policy(['['])"), "ids must have one number for each token"),
    (("return ids, own", "return ids[:-1], own[:-1]"), "the EOS is missing in ids"),
    (("return ids, own", "return ids[1:], own"), "ids is 2*3]{6}7 EOS. Return all tokens"),
    (("return ids, own", "return ids, own[:-1]"), "own has 9 entries for 10 tokens"),
    (("return ids, own", "return ids, [not x for x in own]"), "own is inverted"),
    (("return ids, own", "return ids, [False, *own[1:]]"), "token 0, [, is not marked as own"),
    (("return ids, own", "return ids"), "must return two lists"),
    (("return ids, own", "return"), "Is the `return` missing?"),
    (("while True:", "while len(ids) < 3:"), "returned None"),
    (
        ("        ids.append", "        if len(ids) == 3: return ids, own\n        ids.append"),
        "before",
    ),
    (("    while True", "    return ids, own\n    while True"), "the policy was never asked"),
    (("if ids[-1] == call_end", "if False"), "the loop does not ask the tool"),
    (("policy(ids)", "policy()"), "take_turns raised TypeError"),
    (("ids, own = [], []", "own = []"), "take_turns raised UnboundLocalError"),
    (("[], []", "1 / 0, 'long' * 200"), "take_turns raised ZeroDivisionError"),
]


@pytest.mark.parametrize("change, said", MISTAKES, ids=[said[:30] for _, said in MISTAKES])
def test_each_mistake_is_named(change, said):
    result = check.take_turns(written(change))
    assert not result and said in result.message, result.message
    assert len(result.message) <= LONGEST


def test_a_long_error_is_cut():
    def long(*_):
        raise ValueError("x" * 400)

    assert len(check.take_turns(long).message) == LONGEST
