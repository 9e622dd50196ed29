import importlib.util
import math
import sys

import pytest
import torch

from minirlhf.core.logprobs import entropy, response_logprobs, response_slice, sequence_logprobs
from minirlhf.core.rollout import Rollout


def test_response_slice_by_hand():
    # positions 0..4, prompt of 2 tokens: response tokens stand at 2, 3, 4 and are predicted at 1, 2, 3
    x = torch.arange(5.0)[None, :, None]
    assert response_slice(x, 2).flatten().tolist() == [1, 2, 3]
    with pytest.raises(ValueError, match="prompt_length"):
        response_slice(x, 0)


def test_logprobs_by_hand():
    # weights 1 : 3 over two words -> probabilities 1/4, 3/4; at temperature 1/2 weights 1 : 9 -> 1/10, 9/10
    logits = torch.tensor([[[0.0, math.log(3)], [0.0, math.log(3)]]], dtype=torch.float64)
    ids, mask = torch.tensor([[1, 0]]), torch.tensor([[True, True]])
    got = response_logprobs(logits, ids, mask)
    torch.testing.assert_close(got, torch.tensor([[3 / 4, 1 / 4]], dtype=torch.float64).log())
    torch.testing.assert_close(
        sequence_logprobs(got, mask), torch.tensor([3 / 16], dtype=torch.float64).log()
    )
    cold = response_logprobs(logits, ids, mask, temperature=0.5)
    torch.testing.assert_close(cold, torch.tensor([[9 / 10, 1 / 10]], dtype=torch.float64).log())
    with pytest.raises(ValueError, match="temperature"):
        response_logprobs(logits, ids, mask, temperature=0.0)


def test_entropy_of_uniform_is_log_v_and_of_certainty_is_zero():
    logits = torch.stack([torch.zeros(4), torch.tensor([0.0, -torch.inf, -torch.inf, -torch.inf])])[
        None
    ].double()
    got = entropy(logits, torch.tensor([[True, True]]))
    torch.testing.assert_close(got, torch.tensor([[math.log(4), 0.0]], dtype=torch.float64))


def test_nan_in_padding_reaches_neither_value_nor_gradient():
    logits = torch.randn(2, 3, 5, dtype=torch.float64)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    logits[~mask] = torch.nan
    logits.requires_grad_(True)
    total = (
        response_logprobs(logits, torch.zeros(2, 3, dtype=torch.long), mask).sum()
        + entropy(logits, mask).sum()
    )
    total.backward()
    assert total.isfinite()
    assert logits.grad.isfinite().all()


def test_gradcheck():
    logits = torch.randn(1, 2, 4, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True, False]])
    assert torch.autograd.gradcheck(
        lambda x: response_logprobs(x, torch.tensor([[2, 1]]), mask, temperature=0.7), logits
    )
    assert torch.autograd.gradcheck(lambda x: entropy(x, mask, temperature=0.7), logits)


def test_rollout_positions_and_refusals():
    good = dict(
        prompt_ids=torch.tensor([[0, 5], [6, 7]]),
        prompt_mask=torch.tensor([[False, True], [True, True]]),
        response_ids=torch.tensor([[8, 0], [9, 9]]),
        response_mask=torch.tensor([[True, False], [True, True]]),
        old_logprobs=torch.zeros(2, 2),
    )
    rollout = Rollout(**good)
    assert rollout.position_ids.tolist() == [[0, 0, 1, 1], [0, 1, 2, 3]]
    assert rollout.sequences.tolist() == [[0, 5, 8, 0], [6, 7, 9, 9]]
    assert rollout.finished(9).tolist() == [False, True]
    assert rollout.finished(0).tolist() == [
        False,
        False,
    ]  # the padding's id is 0, its mask is False: not an EOS
    assert rollout.select(torch.tensor([1])).response_ids.tolist() == [[9, 9]]
    right_padded = torch.tensor([[True, False], [True, True]])
    left_padded = torch.tensor([[False, True], [True, True]])
    for bad in (
        {"prompt_mask": right_padded},
        {"response_mask": left_padded},
        {"old_logprobs": torch.zeros(2, 3)},
    ):
        with pytest.raises(
            (ValueError, TypeError)
        ):  # the shape hook of the tests speaks first where it can
            Rollout(**{**good, **bad})


def test_the_shift_refuses_a_prompt_length_without_a_response():
    for prompt_length in (-1, 0, 5, 6):
        with pytest.raises(ValueError, match="prompt_length"):
            response_slice(torch.zeros(1, 5), prompt_length)


def test_logprobs_are_precise_for_tiny_probabilities_and_large_logits():
    one = torch.tensor([[True]])
    assert response_logprobs(torch.tensor([[[0.0, -800.0]]]), torch.tensor([[1]]), one) == -800
    # log softmax(c, c + 1)[1] = -log(1 + 1/e) for any c; float32 has 1e-3 between neighbours at 1e4, hence c exact
    got = response_logprobs(torch.tensor([[[1e4, 1e4 + 1]]]), torch.tensor([[1]]), one)
    torch.testing.assert_close(got.item(), -math.log1p(math.exp(-1)), rtol=1e-6, atol=0)


def test_entropy_ignores_a_forbidden_word_and_has_a_finite_gradient():
    logits = torch.tensor([[[0.0, 0.0, -torch.inf]]], dtype=torch.float64, requires_grad=True)
    h = entropy(logits, torch.tensor([[True]]))
    torch.testing.assert_close(h.item(), math.log(2), rtol=1e-12, atol=0)
    assert torch.autograd.grad(h.sum(), logits)[0].isfinite().all()


def test_bad_temperatures_and_shapes_are_refused_without_the_test_hook():
    spec = importlib.util.spec_from_file_location(
        "plain_logprobs", importlib.util.find_spec("minirlhf.core.logprobs").origin
    )
    plain = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(plain)
    logits, ids, mask = (
        torch.zeros(2, 3, 5),
        torch.zeros(2, 3, dtype=torch.long),
        torch.ones(2, 3, dtype=torch.bool),
    )
    for bad_ids, bad_mask in ((ids[:1], mask), (ids, mask[:, :1]), (ids[:, :1], mask[:, :1])):
        with pytest.raises(ValueError, match="Shapes"):
            plain.response_logprobs(logits, bad_ids, bad_mask)
    for temperature in (0.0, -1.0):
        for call in (
            lambda t: plain.response_logprobs(logits, ids, mask, temperature=t),
            lambda t: plain.entropy(logits, mask, temperature=t),
        ):
            with pytest.raises(ValueError, match="temperature"):
                call(temperature)


@pytest.mark.parametrize(
    "bad",
    [
        {"prompt_ids": torch.zeros(1, 1)},
        {"response_ids": torch.ones(1, 1).bool()},
        {"prompt_mask": torch.ones(1, 1).long()},
        {"response_mask": torch.ones(1, 1)},
        {"old_logprobs": torch.zeros(1, 1).long()},
    ],
)
def test_a_rollout_refuses_wrong_dtypes(bad):
    ids, mask = torch.zeros(1, 1, dtype=torch.long), torch.ones(1, 1, dtype=torch.bool)
    good = {
        "prompt_ids": ids,
        "prompt_mask": mask,
        "response_ids": ids,
        "response_mask": mask,
        "old_logprobs": torch.zeros(1, 1),
    }
    spec = importlib.util.spec_from_file_location(
        "plain_rollout", importlib.util.find_spec("minirlhf.core.rollout").origin
    )
    plain = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = plain  # dataclasses look their module up
    spec.loader.exec_module(plain)
    with pytest.raises(ValueError, match="integer ids"):
        plain.Rollout(**{**good, **bad})


def test_entropy_is_at_temperature_1_by_default():
    logits, mask = torch.tensor([[[math.log(3), 0.0]]]).double(), torch.ones(1, 1, dtype=torch.bool)
    by_hand = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert entropy(logits, mask).item() == pytest.approx(by_hand, abs=1e-7)
    assert entropy(logits, mask, temperature=2.0).item() > by_hand
