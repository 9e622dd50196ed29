"""pass@k for every k from a record, against cases worked by hand and against the other columns."""

import pandas as pd
import pytest
import torch

from minirlhf import experiments

# two samples for each of two problems; with seed 1 both samples of the first problem are right
FRAME = pd.DataFrame(
    [
        {"variant": "a", "seed": 0, "pass_1_by_prompt": [0.5, 0.0]},
        {"variant": "a", "seed": 1, "pass_1_by_prompt": [1.0, 0.5]},
        {"variant": "b", "seed": 0, "pass_1_by_prompt": [0.0, 0.0]},
    ]
)


def test_pass_at_1_is_the_mean_share_and_pass_at_n_counts_problems_with_a_right_sample():
    found = experiments.pass_at_each_k(FRAME, 2)
    assert list(found) == ["a", "b"]
    assert found["a"].tolist() == [[0.25, 0.5], [0.75, 1.0]]  # one row per seed
    assert found["b"].tolist() == [[0.0, 0.0]]


def test_it_agrees_with_the_columns_of_a_record():
    frame = experiments.results("longer")
    found = experiments.pass_at_each_k(frame, 16)
    for name, rows in frame.groupby("variant"):
        rows = rows.sort_values("seed")
        for k, column in ((1, "pass_1"), (16, "pass_16")):
            recorded = torch.tensor(rows[column].tolist(), dtype=torch.float64)
            torch.testing.assert_close(found[name][:, k - 1], recorded, rtol=0, atol=1e-6)
        assert (found[name].diff(dim=1) >= 0).all()


@pytest.mark.parametrize(
    "frame, samples, said",
    [
        (FRAME, 3, "Seed 0 of 'a' has pass@1 0.5 at problem 0; .* divided by 3."),
        (FRAME.iloc[[0, 0]], 2, "more than one row of seed 0"),
        (FRAME.drop(columns="pass_1_by_prompt"), 2, "No column 'pass_1_by_prompt'"),
        (FRAME, 0, "samples is 0; it must be at least 1"),
    ],
)
def test_what_it_refuses(frame, samples, said):
    with pytest.raises(ValueError, match=said):
        experiments.pass_at_each_k(frame, samples)
