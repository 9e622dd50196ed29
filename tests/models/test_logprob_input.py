"""A backbone that also reads the policy's log-probabilities."""

import copy

import pytest
import torch

from minirlhf.models.forward import encode, policy_logprobs, token_scores
from minirlhf.models.heads import ScalarModel
from minirlhf.models.logprob_input import WithLogprobs
from minirlhf.models.steps import step_end_ids, step_logits
from tests.tiny import tiny_policy, tiny_tokenizer


@pytest.fixture
def made():
    """(policy, tokenizer, ends, a ScalarModel WithLogprobs, a batch of two padded texts)."""
    torch.manual_seed(0)
    policy, tokenizer = tiny_policy(), tiny_tokenizer()
    ends = step_end_ids(policy, tokenizer, ".")
    backbone = WithLogprobs(policy, ends)
    batch = encode(tokenizer, ["a.", "a longer."], ["go.od.ab", "b.a"])
    return policy, tokenizer, ends, ScalarModel(backbone).eval(), batch


def test_it_starts_as_the_backbone_alone_and_then_adds_the_lowest_logprob_of_the_step(made):
    policy, _, ends, model, batch = made
    plain = ScalarModel(policy.base_model).eval()
    plain.head = model.head
    with torch.no_grad():
        alone, _ = step_logits(plain, batch, ends)
        found, _ = step_logits(model, batch, ends)
        torch.testing.assert_close(found, alone, rtol=0, atol=1e-6)
        model.backbone.direction.normal_()
        found, is_step = step_logits(model, batch, ends)
        logprobs = policy_logprobs(policy, batch)
    # "go." "od." "ab" EOS, and "b." "a" EOS
    lowest = torch.zeros_like(found)
    for row, column, first, after in [
        (0, 0, 0, 3), (0, 1, 3, 6), (0, 2, 6, 9), (1, 0, 0, 2), (1, 1, 2, 4)
    ]:  # fmt: skip
        lowest[row, column] = logprobs[row, first:after].min()
    assert is_step.sum() == 5
    factor = (model.head.weight[0] @ model.backbone.direction).item()
    torch.testing.assert_close(
        (found - alone)[is_step], factor * lowest[is_step], rtol=0, atol=1e-5
    )


def test_before_the_end_of_a_step_only_the_tokens_so_far_count(made):
    policy, _, _, model, batch = made
    plain = ScalarModel(policy.base_model).eval()
    plain.head = model.head
    first = batch.prompt_ids.shape[1]  # the column of the first response token
    with torch.no_grad():
        model.backbone.direction.normal_()
        added = (token_scores(model, batch) - token_scores(plain, batch))[0, first:]
        logprobs = policy_logprobs(policy, batch)[0]
    factor = (model.head.weight[0] @ model.backbone.direction).item()
    lowest = torch.cat([logprobs[k : k + 3].cummin(0).values for k in (0, 3, 6)])
    torch.testing.assert_close(added, factor * lowest, rtol=0, atol=1e-5)


def test_the_policy_is_not_trained(made):
    policy, _, _, model, batch = made
    before = copy.deepcopy(policy.state_dict())
    names = {name for name, _ in model.named_parameters()}
    assert names == {"backbone.direction", "head.weight", "head.bias"}
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    token_scores(model, batch).square().sum().backward()
    assert model.backbone.direction.grad.abs().sum() > 0
    optimizer.step()
    assert all(torch.equal(before[name], value) for name, value in policy.state_dict().items())
