"""Exercises of lesson 11b: an interval over seeds, and verdicts on six comparisons."""

from collections.abc import Mapping

import torch

from minirlhf.classroom.exercise import Exercise, Result
from minirlhf.classroom.lessons.lesson_11_verdicts import judge_verdicts

FACTORS = {3: 4.30, 4: 3.18, 5: 2.78}  # number of seeds -> 95 % factor of Student's t


def _runs(g, seeds, prompts=6):
    """Shares of right samples: a problem and a seed move both methods, and each run has noise."""
    problems = torch.randn(1, prompts, generator=g)
    luck = 0.5 * torch.randn(seeds, 1, generator=g)
    noise = 0.4 * torch.randn(2, seeds, prompts, generator=g)
    effect = 0.4 * torch.randn(2, seeds, 1, generator=g)
    ours, theirs = torch.sigmoid(problems + luck + effect + noise).mul(100).round() / 100
    return ours, theirs, FACTORS[seeds]


def _case(g):
    return _runs(g, int(torch.randint(3, 6, (), generator=g)))


def _around(a, b, half):
    mean = (a - b).mean()
    return torch.stack([mean, mean - half, mean + half])


def _interval(a, b, factor):
    if len(a) < 2:
        raise ValueError("one seed has no interval")  # so no message shows a case of one row
    return _around(a, b, factor * (a - b).mean(1).std() / len(a) ** 0.5)


def _with_half(half):
    """A wrong answer: the mean difference with another half width."""
    return lambda a, b, factor: _around(a, b, half(a, b, factor))


_EDGES = torch.Generator().manual_seed(11)

interval_over_seeds = Exercise(
    "interval_over_seeds",
    ("ours", "theirs", "factor"),
    _case,
    _interval,
    {
        "every problem of every seed counts as an observation. But the problems of one run share "
        "its luck. How many runs are there? Average over the problems first.": _with_half(
            lambda a, b, k: k * (a - b).std() / a.numel() ** 0.5
        ),
        "the differences are averaged over the seeds first. What scatters then is the problems: "
        "this interval says nothing about other seeds.": _with_half(
            lambda a, b, k: k * (a - b).mean(0).std() / a.shape[1] ** 0.5
        ),
        "this divides by the square root of the number of all differences. The mean is one of S "
        "numbers, one per seed.": _with_half(
            lambda a, b, k: k * (a - b).mean(1).std() / a.numel() ** 0.5
        ),
        "this divides by the square root of the number of problems. You have one difference per "
        "seed: how many are that?": _with_half(
            lambda a, b, k: k * (a - b).mean(1).std() / a.shape[1] ** 0.5
        ),
        "this is unpaired: it adds the scatter of both methods. Runs in the same row have the same "
        "seed. Subtract them first.": _with_half(
            lambda a, b, k: k * ((a.mean(1).var() + b.mean(1).var()) / len(a)).sqrt()
        ),
        "this is the scatter of single differences. Their *mean* scatters less: divide by the "
        "square root of the number of seeds.": _with_half(
            lambda a, b, k: k * (a - b).mean(1).std()
        ),
        "this divides by the number of seeds. Divide by its square root.": _with_half(
            lambda a, b, k: k * (a - b).mean(1).std() / len(a)
        ),
        "this uses the variance. Take the standard deviation.": _with_half(
            lambda a, b, k: k * (a - b).mean(1).var() / len(a) ** 0.5
        ),
        "this uses the variance, divided by the number of seeds. Take its square root, too.": (
            _with_half(lambda a, b, k: k * (a - b).mean(1).var() / len(a))
        ),
        "the standard deviation divides by S. With so few seeds, divide by S - 1, as `std` "
        "does.": _with_half(
            lambda a, b, k: k * (a - b).mean(1).std(unbiased=False) / len(a) ** 0.5
        ),
        "the factor is missing: this is the mean plus and minus one standard error.": _with_half(
            lambda a, b, k: (a - b).mean(1).std() / len(a) ** 0.5
        ),
        "1.96 is the factor for many seeds. Three to five seeds need a larger one: use "
        "`factor`.": _with_half(lambda a, b, k: 1.96 * (a - b).mean(1).std() / len(a) ** 0.5),
        "4.30 is the factor for three seeds only. Use `factor`.": _with_half(
            lambda a, b, k: 4.30 * (a - b).mean(1).std() / len(a) ** 0.5
        ),
        "this always divides by the square root of 3. Here the number of seeds varies: it is the "
        "number of rows.": _with_half(lambda a, b, k: k * (a - b).mean(1).std() / 3**0.5),
        "this is theirs minus ours. Return ours minus theirs.": lambda a, b, k: _interval(b, a, k),
        "the order is low, mean, high. Return the mean first.": lambda a, b, k: _interval(a, b, k)[
            [1, 0, 2]
        ],
        "the two ends are exchanged: the low end comes first.": lambda a, b, k: _interval(a, b, k)[
            [0, 2, 1]
        ],
        "these are the mean, and how far the interval reaches to each side. Return its two ends: "
        "the mean minus and plus that.": lambda a, b, k: (
            _interval(a, b, k) - _interval(a, b, k)[0] * torch.tensor([0.0, 1.0, 1.0])
        ),
    },
    edges=tuple(_runs(_EDGES, seeds, prompts=2) for seeds in FACTORS),  # small, to be shown
)

DIFFERENCES = {  # variant -> pass@1 minus GRPO's, by seed; the table of exercise 3
    "A": (0.05, 0.06, 0.04),
    "B": (0.01, 0.05, 0.03),
    "C": (-0.03, -0.04, -0.05),
    "D": (0.002, -0.003, 0.001),
    "E": (0.03, -0.03, 0.0),
    "F": (0.04, 0.05, 0.06),
}
COMPARISONS = {
    "A": "ahead",
    "B": "undecided",
    "C": "behind",
    "D": "equal",
    "E": "undecided",
    "F": "ahead, reason open",
}
ONE_THING = "it differs from GRPO in one thing only. Then the reason is known."
B_AHEAD = (
    "all three seeds are ahead, and so is the interval over prompts alone. But how far do the "
    "three differences lie apart? Build the interval over seeds, with the factor 4.30."
)
OVERLOOKED = {  # (variant, wrong verdict) -> what was overlooked
    ("A", "ahead, reason open"): ONE_THING,
    ("A", "undecided"): "build the interval of its three differences. Does it reach 0? Their "
    "standard deviation is divided by the square root of 3 before you multiply.",
    ("B", "ahead"): B_AHEAD,
    ("B", "ahead, reason open"): B_AHEAD,
    ("B", "equal"): "its interval contains 0. But does it stay between -0.02 and 0.02?",
    ("C", "ahead"): "mind the sign: the numbers are the variant's pass@1 minus GRPO's.",
    ("C", "undecided"): "build the interval of its three differences. Does it reach 0?",
    ("D", "undecided"): "its interval contains 0. But how far does it reach? Compare its ends with "
    "-0.02 and 0.02.",
    ("E", "equal"): "the mean is 0, but the three differences lie far apart. How far does the "
    "interval over seeds reach?",
    ("F", "ahead"): "it is ahead. But in how many things does it differ from GRPO?",
    ("F", "undecided"): "build the interval first: does it contain 0? That you do not know the "
    "reason is another question, and has its own verdict.",
}


def six_comparisons(answers: Mapping[str, str]) -> Result:
    """Check the verdicts on the six variants of the exercise.

    Args:
        answers: variant, "A" to "F" -> its verdict.

    Returns:
        The Result. Its message is about the first variant whose verdict is missing or wrong.
    """
    otherwise = "build the interval of its three differences, and go through section 3b."
    return judge_verdicts(answers, COMPARISONS, OVERLOOKED, otherwise, kind="variant")
