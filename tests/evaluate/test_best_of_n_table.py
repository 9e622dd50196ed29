"""Best-of-n as n grows: the table by hand, its intervals, the verdict, and what is kept."""

import math

import pandas as pd
import pytest
import torch

from minirlhf import evaluate
from minirlhf.cli.best_of_n_tables import sentence
from tests.tiny import tiny_policy, tiny_tokenizer

DRAWN = pd.DataFrame(
    [
        (0, "p", "p1", 1.0, 10.0),
        (0, "p", "p2", 2.0, 20.0),
        (0, "p", "p3", 3.0, 0.0),
        (1, "q", "q1", 5.0, 2.0),
        (1, "q", "q2", 5.0, 4.0),  # a tie
        (1, "q", "q3", 1.0, 9.0),
    ],
    columns=["row", "prompt", "response", "score", "judge"],
)
# of one, two and three: the mean over all ways to take so many of p, then of q
P = {"score": [2, 8 / 3, 3], "judge": [10, 20 / 3, 0]}  # pairs of p keep 20, 0, 0
Q = {"score": [11 / 3, 5, 5], "judge": [5, 3, 3]}  # pairs of q keep 2 or 4, 2, 4


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4, 5], [3, 0, 4, 1, 2, 5]])
def test_the_table_by_hand_with_its_intervals(order):
    table = evaluate.best_of_n_table(DRAWN.loc[order], 3, bootstrap_seed=5)
    assert table.n.tolist() == [1, 2, 3] and set(table.prompts) == {2} and set(table.samples) == {3}
    assert table.kl_bound.tolist() == [0, math.log(2) - 1 / 2, math.log(3) - 2 / 3]
    assert table.sqrt_kl.tolist() == [math.sqrt(kl) for kl in table.kl_bound]
    for i in range(3):
        of = {name: torch.tensor([P[name][i], Q[name][i]]).double() for name in P}
        of["judge_to_last"] = torch.tensor([P["judge"][2], Q["judge"][2]]).double() - of["judge"]
        for name, values in of.items():
            low, high = evaluate.bootstrap(values, seed=5)
            found = [table[f"{name}{end}"][i] for end in ("", "_low", "_high")]
            assert found == pytest.approx([values.mean().item(), low, high]), (name, i)
    assert evaluate.best_of_n_verdict(table) == "falls"  # from 10 to 0, and from 5 to 3


def test_without_a_judge_the_table_has_its_own_score_alone():
    table = evaluate.best_of_n_table(DRAWN.drop(columns="judge"), 2)
    assert table.score.tolist() == pytest.approx([17 / 6, 23 / 6])
    assert not [name for name in table if name.startswith("judge")]
    with pytest.raises(ValueError, match="it must be with a judge among them"):
        evaluate.best_of_n_verdict(table)


def test_each_power_of_two_has_a_row_and_so_has_the_largest_n():
    numbers = {4: [1, 2, 4], 6: [1, 2, 4, 6], 7: [1, 2, 4, 7]}
    drawn = pd.DataFrame([(p, f"p{p}", "x", float(i)) for p in (0, 1) for i in range(8)])
    drawn.columns = ["row", "prompt", "response", "score"]
    for n, rows in numbers.items():
        table = evaluate.best_of_n_table(drawn, n)
        assert table.n.tolist() == rows
        # the largest of n of 0, 1, ..., 7 is (8 + 1) n / (n + 1) - 1 on average
        assert table.score.tolist() == pytest.approx([9 * k / (k + 1) - 1 for k in rows])


def test_rows_with_the_same_prompt_count_as_one_prompt():
    more = DRAWN[DRAWN.row == 1].assign(row=2, prompt="p", judge=6.0)
    table = evaluate.best_of_n_table(pd.concat([DRAWN, more]), 3)
    assert table.prompts[0] == 2
    assert table.judge.tolist() == pytest.approx([(8 + 5) / 2, (19 / 3 + 3) / 2, (3 + 3) / 2])
    with pytest.raises(ValueError, match="different prompts is 1; it must be at least 2"):
        evaluate.best_of_n_table(DRAWN.assign(prompt="p"), 3)


REFUSED = [
    (DRAWN, 4, "n is 4; it must be a whole number from [12] to 3, the number of responses"),
    (DRAWN, 0, "n is 0; it must be a whole number from [12] to 3"),
    (DRAWN, 2.0, "n is 2.0; it must be a whole number from [12] to 3"),
    (DRAWN, "2", "n is '2'; it must be a whole number from [12] to 3"),
    (DRAWN[1:], 2, r"responses to each row is \[2, 3\]; it must be one number"),
    (DRAWN[:0], 2, r"responses to each row is \[\]; it must be one number"),
    (DRAWN.assign(row=0), 2, "different prompts in a row is 2; it must be 1"),
    (DRAWN.drop(columns="score"), 2, "columns of drawn is 'row, prompt, .*with score among them"),
    (DRAWN.drop(columns="row"), 2, "it must be with row among them"),
    (DRAWN.drop(columns="prompt"), 2, "it must be with prompt among them"),
    (
        DRAWN.assign(judge=[1.0, 2.0, 3.0, 4.0, math.nan, 5.0]),
        2,
        "judge of a response to row 1, the prompt 'q', is nan; it must be a finite number",
    ),
    (DRAWN.assign(score=math.inf), 2, "score of a response to row 0, the prompt 'p', is inf"),
    (DRAWN.assign(score="high"), 2, "score of a response to row 0, the prompt 'p', is 'high'"),
    (DRAWN.assign(judge=None), 2, "judge of a response to row 0, the prompt 'p', is None"),
]


@pytest.mark.parametrize("drawn, n, said", REFUSED)
@pytest.mark.parametrize("use", [evaluate.best_of_n_table, evaluate.best_of_n_kept])
def test_what_cannot_be_used_is_refused(use, drawn, n, said):
    with pytest.raises(ValueError, match=said):
        use(drawn, n)


def test_the_table_needs_an_n_to_compare_with_and_takes_a_whole_number_of_numpy():
    with pytest.raises(ValueError, match="n is 1; it must be a whole number from 2 to 3"):
        evaluate.best_of_n_table(DRAWN, 1)
    table = evaluate.best_of_n_table(DRAWN, 3)
    pd.testing.assert_frame_equal(evaluate.best_of_n_table(DRAWN, table.n.iloc[-1]), table)


def table_of(*rows):
    """A table of n, the judge's mean, and the interval of the difference to the largest n."""
    names = ["n", "judge", "judge_to_last", "judge_to_last_low", "judge_to_last_high"]
    return pd.DataFrame(rows, columns=names)


@pytest.mark.parametrize(
    "rows, verdict, said",
    [
        (
            [(1, 0, 3, 2, 4), (2, 2, 1, 0.5, 1.5), (4, 3, 0, 0, 0)],
            "grows",
            "the mean of gold still grows at the largest n. Its difference from n = 2 to n = 4, "
            "+1.00 [+0.50, +1.50], is above 0.",
        ),
        (
            [(1, 0, 3, 2, 4), (2, 2, 1, -0.5, 2.5), (4, 3, 0, 0, 0)],
            "no change seen",
            "is not seen to grow at the largest n. Its difference from n = 2 to n = 4, "
            "+1.00 [-0.50, +2.50], contains 0.",
        ),
        (
            [(1, 5, -2, -3, -1), (2, 4, -1, -3, 1), (4, 3, 0, 0, 0)],
            "falls",
            "the mean of gold is highest at n = 1, and it falls from n = 1 to n = 4. The "
            "difference, -2.00 [-3.00, -1.00], is below 0: what rm chooses there is worse by gold",
        ),
        (
            [(1, 5, -2, -5, 1), (2, 4, -1, -3, -0.5), (4, 3, 0, 0, 0)],
            "falls",
            "the mean of gold is highest at n = 1, and it falls from n = 2 to n = 4. The "
            "difference, -1.00 [-3.00, -0.50], is below 0: what rm chooses there is worse by gold",
        ),
        (
            [(1, 5, -2, -5, 1), (2, 4, -1, -3, 0.5), (4, 3, 0, 0, 0)],
            "no change seen",
            "from n = 2 to n = 4, -1.00 [-3.00, +0.50], contains 0. It is highest at n = 1, but "
            "the difference from there to n = 4, -2.00 [-5.00, +1.00], contains 0.",
        ),
        (
            [(1, 5, -1, -3, 1), (2, 3, 1, 0.5, 1.5), (4, 4, 0, 0, 0)],
            "grows",
            "is above 0. It is highest at n = 1, but the difference from there to n = 4",
        ),
        (  # not from n = 4, which is too near: the row at or below 5 / 2 is n = 2
            [(1, 0, 3, 2, 4), (2, 2, 1, 0.5, 1.5), (4, 3, 0.1, -0.1, 0.3), (5, 3.1, 0, 0, 0)],
            "grows",
            "from n = 2 to n = 5, +1.00 [+0.50, +1.50], is above 0.",
        ),
        (
            [(1, 0, 3, 2, 4), (2, 2, 1, -0.5, 2.5), (4, 2.9, 0.1, 0.05, 0.2), (5, 3, 0, 0, 0)],
            "no change seen",
            "from n = 2 to n = 5, +1.00 [-0.50, +2.50], contains 0.",
        ),
        ([(1, 0, 1, 0.5, 2), (2, 1, 0, 0, 0)], "grows", "from n = 1 to n = 2, +1.00"),
    ],
)
def test_the_verdict_follows_the_intervals(rows, verdict, said):
    table = table_of(*rows)
    assert evaluate.best_of_n_verdict(table) == verdict
    assert said in sentence(table, "rm", "gold")


def test_the_best_of_the_first_n_is_kept_and_of_equal_scores_the_first():
    kept = {n: evaluate.best_of_n_kept(DRAWN, n).response.tolist() for n in (1, 2, 3)}
    assert kept == {1: ["p1", "q1"], 2: ["p2", "q1"], 3: ["p3", "q1"]}


def test_two_frames_whose_index_repeats_keep_one_response_to_each_row():
    parts = [DRAWN[:3], DRAWN[3:].reset_index(drop=True)]  # both have the index 0, 1, 2
    assert evaluate.best_of_n_kept(pd.concat(parts), 3).response.tolist() == ["p3", "q1"]


def test_a_judge_scores_the_same_samples_and_changes_none_of_them():
    ones = lambda batch: torch.ones(len(batch.response_ids))
    length = lambda batch: batch.response_mask.sum(1).float()
    given = (tiny_policy(), tiny_tokenizer(), ["p ", "q "], ones)
    alone = evaluate.scored_responses(*given, batch_size=3)
    judged = evaluate.scored_responses(*given, judge=length, batch_size=3)
    assert judged.judge.tolist() == judged.length.tolist()
    pd.testing.assert_frame_equal(judged.drop(columns="judge"), alone)
    with pytest.raises(ValueError, match="The judge's score of a response to the prompt 'p ' is"):
        evaluate.scored_responses(*given, judge=lambda batch: ones(batch) * math.nan)
