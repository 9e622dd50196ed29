"""Best-of-n samples as demonstrations."""

import torch

from minirlhf.search import best_of_n, best_of_n_rows
from tests.tiny import tiny_policy, tiny_tokenizer


def longest(rollout) -> torch.Tensor:
    return rollout.response_mask.sum(1).float()


def test_rows_hold_the_best_sample_of_each_prompt():
    given = (tiny_policy(), tiny_tokenizer(), ["a film\n", "another\n"], longest)
    rows = best_of_n_rows(*given, 3, seed=1)
    assert rows["prompt"][:] == ["a film\n", "another\n"]
    assert rows["completion"][:] == best_of_n(*given, 3, seed=1)
    assert rows["completion"][:] != best_of_n(*given, 1, seed=1)
