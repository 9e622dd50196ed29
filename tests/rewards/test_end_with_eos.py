"""Every response is scored at an EOS, whoever wrote its last token."""

import torch

from minirlhf.core.rollout import Rollout
from minirlhf.rewards.model import end_with_eos


def batch(ids, lengths, actions=None):
    ids, columns = torch.tensor(ids), torch.arange(len(ids[0]))
    mask = columns < torch.tensor(lengths)[:, None]
    prompt = torch.tensor([[7]] * len(ids))
    actions = mask if actions is None else torch.tensor(actions)
    return Rollout(prompt, prompt > 0, ids, mask, torch.zeros(ids.shape), actions)


def test_a_truncated_response_gets_eos_after_its_last_token():
    # EOS is 9: the first response is cut at the limit, the second earlier, the third is finished
    ended = end_with_eos(batch([[1, 2, 3], [4, 5, 0], [6, 9, 0]], [3, 2, 2]), 9)
    assert ended.response_ids.masked_fill(~ended.response_mask, -1).tolist() == [
        [1, 2, 3, 9],
        [4, 5, 9, -1],
        [6, 9, -1, -1],
    ]


def test_what_a_tool_wrote_last_is_followed_by_eos_too():
    # the first response ends in a tool's token after the policy's EOS; a tool ended the second
    actions = [[True, True, False], [True, True, False]]
    ended = end_with_eos(batch([[1, 9, 3], [4, 5, 9]], [3, 3], actions), 9)
    assert ended.response_ids[0].tolist() == [1, 9, 3, 9] and ended.response_mask[0].all()
    assert ended.response_mask[1].tolist() == [True, True, True, False]


def test_an_empty_response_is_eos_alone():
    ended = end_with_eos(batch([[0, 0], [1, 2]], [0, 2]), 9)
    assert ended.response_ids[0, 0] == 9 and ended.response_mask[0].tolist() == [True, False, False]
