"""The one record that a batch is: what it computes and what it refuses."""

import dataclasses
import importlib.util
import sys

import pytest
import torch

from minirlhf.core.rollout import Rollout

GOOD = {
    "prompt_ids": torch.tensor([[0, 5, 6], [7, 8, 9]]),
    "prompt_mask": torch.tensor([[False, True, True], [True, True, True]]),
    "response_ids": torch.tensor([[4, 0], [3, 4]]),
    "response_mask": torch.tensor([[True, False], [True, True]]),
    "old_logprobs": torch.tensor([[-1.0, 0.0], [-2.0, -3.0]]),
}


def without_hook():
    """The module as a notebook sees it: the tests' shape checks would speak before its own."""
    spec = importlib.util.spec_from_file_location(
        "plain_rollout", importlib.util.find_spec("minirlhf.core.rollout").origin
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["plain_rollout"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_properties_of_a_rollout_by_hand():
    rollout = Rollout(**GOOD)
    assert rollout.sequences.tolist() == [[0, 5, 6, 4, 0], [7, 8, 9, 3, 4]]
    assert rollout.attention_mask.tolist() == [[False, True, True, True, False], [True] * 5]
    # the first real token of each row stands at 0; padding holds any valid position
    assert rollout.position_ids.tolist() == [[0, 0, 1, 2, 2], [0, 1, 2, 3, 4]]
    assert rollout.finished(4).tolist() == [True, True]
    assert rollout.finished(3).tolist() == [False, False]  # it is there, but not at the end
    assert rollout.finished(0).tolist() == [False, False]  # id 0 in the response is padding
    assert rollout.finished(5).tolist() == [False, False]  # nor does the prompt count


def test_select_takes_rows_in_any_order():
    rollout = Rollout(**GOOD)
    for index in (torch.tensor([1, 0, 1]), [1, 0, 1]):
        chosen = rollout.select(index)
        for name, value in GOOD.items():
            assert torch.equal(getattr(chosen, name), value[[1, 0, 1]])
    assert rollout.select(torch.tensor([False, True])).response_ids.tolist() == [[3, 4]]


def test_a_rollout_is_immutable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Rollout(**GOOD).response_ids = None


@pytest.mark.parametrize(
    "bad, word",
    [
        (
            {"prompt_mask": torch.tensor([[True, True, False], [True, True, True]])},
            "left",
        ),  # right-padded
        (
            {"prompt_mask": torch.tensor([[True, False, True], [True, True, True]])},
            "left",
        ),  # a hole
        (
            {"prompt_mask": torch.tensor([[False, False, False], [True, True, True]])},
            "left",
        ),  # no prompt at all
        ({"response_mask": torch.tensor([[False, True], [True, True]])}, "right"),
        ({"old_logprobs": torch.zeros(2, 3)}, "needs"),
        ({"response_ids": torch.zeros(3, 2, dtype=torch.long)}, "needs"),
        ({name: value[:0] for name, value in GOOD.items()}, "needs"),  # an empty batch
        (
            {name: GOOD[name][:, :0] for name in ("response_ids", "response_mask", "old_logprobs")},
            "needs",
        ),  # R = 0
        ({name: value[0] for name, value in GOOD.items()}, "needs"),  # one row is not a batch
    ],
)
def test_a_bad_rollout_is_refused_with_a_reason(bad, word):
    with pytest.raises(ValueError, match=word):
        without_hook().Rollout(**{**GOOD, **bad})


def test_an_empty_response_is_allowed():
    mask = torch.tensor([[False, False], [True, True]])
    rollout = Rollout(**{**GOOD, "response_mask": mask})
    assert rollout.finished(4).tolist() == [False, True]
    assert rollout.position_ids.tolist()[0] == [0, 0, 1, 1, 1]
    assert rollout.select([0]).response_ids.shape == (
        1,
        1,
    )  # one column is kept, though nothing in it is real


def test_a_prompt_may_be_one_token_after_padding():
    mask = torch.tensor([[False, False, False, True], [True] * 4])
    ids = torch.zeros(2, 4, dtype=torch.long)
    assert Rollout(**GOOD | {"prompt_ids": ids, "prompt_mask": mask}).position_ids[0].tolist() == [
        0,
        0,
        0,
        0,
        1,
        1,
    ]


def test_batches_of_different_widths_are_joined_unchanged():
    a = Rollout(**GOOD)
    b = Rollout(
        torch.tensor([[9]]),
        torch.tensor([[True]]),
        torch.tensor([[5, 6, 7]]),
        torch.ones(1, 3, dtype=torch.bool),
        torch.tensor([[-1.0, -2.0, -3.0]]),
    )
    joined = Rollout.concat([a, b])
    assert joined.prompt_ids.shape == (3, 3) and joined.response_ids.shape == (3, 3)
    assert (
        joined.prompt_mask[2].tolist() == [False, False, True]
        and joined.response_mask[:2, 2].eq(False).all()
    )
    for part, rows in ((a, [0, 1]), (b, [2])):
        again = joined.select(rows)
        for name in GOOD:
            assert torch.equal(getattr(again, name), getattr(part, name)), name


def test_columns_are_read_by_name_and_follow_their_rows():
    batch = Rollout(**GOOD).with_columns(
        advantages=torch.tensor([[1.0, 0.0], [2.0, 3.0]]), scores=torch.tensor([5.0, 6.0])
    )
    assert batch.advantages.tolist() == [[1, 0], [2, 3]] and batch.scores.tolist() == [5, 6]
    part = batch.select([1, 0])
    assert part.advantages.tolist() == [[2, 3], [1, 0]] and part.scores.tolist() == [6, 5]
    short = batch.select(torch.tensor([True, False]))  # one real token: every column is trimmed
    assert short.advantages.tolist() == [[1]] and short.response_mask.tolist() == [[True]]
    again = batch.with_columns(scores=torch.tensor([7.0, 8.0]))  # replaced; the old one stays
    assert again.scores.tolist() == [7, 8] and batch.scores.tolist() == [5, 6]
    assert torch.equal(again.advantages, batch.advantages)


def test_a_column_may_have_more_axes():
    logits = torch.arange(2 * 2 * 3.0).view(2, 2, 3)
    part = Rollout(**GOOD).with_columns(logits=logits).select([0])
    assert torch.equal(part.logits, logits[:1, :1])
    wide = Rollout.concat([part, Rollout(**GOOD).with_columns(logits=logits)])
    assert wide.logits.shape == (3, 2, 3) and wide.logits[0, 1].eq(0).all()
    assert torch.equal(wide.logits[1:], logits)


@pytest.mark.parametrize(
    "columns, said",
    [
        ({"scores": torch.zeros(3)}, "'scores' has shape .3,.; it must have one entry"),
        ({"values": torch.zeros(2, 5)}, "'values' has shape .2, 5."),
        ({"sequences": torch.zeros(2)}, "cannot be named 'sequences'"),
        ({"old_logprobs": torch.zeros(2, 2)}, "cannot be named 'old_logprobs'"),
    ],
)
def test_a_column_that_does_not_fit_is_refused(columns, said):
    with pytest.raises(ValueError, match=said):
        Rollout(**GOOD).with_columns(**columns)


def test_a_missing_column_is_named():
    with pytest.raises(AttributeError, match="no column 'values'. It has scores; add one with"):
        Rollout(**GOOD).with_columns(scores=torch.zeros(2)).values  # noqa: B018
    assert not hasattr(Rollout(**GOOD), "scores")


def test_batches_with_other_columns_are_not_joined():
    with pytest.raises(ValueError, match="same columns"):
        Rollout.concat([Rollout(**GOOD), Rollout(**GOOD).with_columns(scores=torch.zeros(2))])


def test_by_default_every_real_token_is_an_action():
    assert torch.equal(Rollout(**GOOD).action_mask, GOOD["response_mask"])


def test_a_tools_tokens_are_read_but_are_no_actions():
    # the policy writes 4, a tool 7 and 8, the policy 5 and EOS (6)
    ids = torch.tensor([[4, 7, 8, 5, 6], [4, 6, 0, 0, 0]])
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
    actions = torch.tensor([[True, False, False, True, True], [True, True, False, False, False]])
    given = {"response_ids": ids, "response_mask": mask, "old_logprobs": torch.zeros(2, 5)}
    batch = Rollout(**GOOD | given, action_mask=actions)
    assert batch.attention_mask.sum().item() == 5 + 7  # the tool's tokens are read
    assert batch.position_ids[0].tolist() == [0, 0, 1, 2, 3, 4, 5, 6]
    assert batch.finished(6).tolist() == [True, True]
    assert batch.finished(7).tolist() == [False, False]  # a tool does not end a response
    assert torch.equal(batch.select([1]).action_mask, actions[1:, :2])
    assert torch.equal(Rollout.concat([batch, batch]).action_mask, actions.repeat(2, 1))
    with pytest.raises(ValueError, match="True at padding"):
        Rollout(**GOOD | given, action_mask=torch.ones(2, 5, dtype=torch.bool))


def test_a_column_may_have_any_free_name():
    batch = Rollout(**GOOD).with_columns(
        prompt_index=torch.tensor([3, 4]), prompt_kl=torch.ones(2, 2)
    )
    twice = Rollout.concat([batch, batch])
    assert twice.prompt_index.tolist() == [3, 4, 3, 4] and twice.prompt_kl.shape == (4, 2)
    with pytest.raises(ValueError, match="cannot be named 'columns'"):
        Rollout(**GOOD).with_columns(columns=torch.zeros(2))
