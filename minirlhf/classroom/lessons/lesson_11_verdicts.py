"""Exercise 6 of lesson 11: verdicts on six runs."""

from collections.abc import Mapping

from minirlhf.classroom.exercise import Result

VERDICTS = {
    "A": "learning",
    "B": "undecided",
    "C": "sharpening",
    "D": "undecided",
    "E": "no gain",
    "F": "sharpening with a loss",
}
NAMES = sorted(set(VERDICTS.values()))
MISTAKES = {  # (run, wrong verdict) -> what was overlooked
    ("A", "undecided"): "two seeds' intervals contain 0, but that does not contradict the third. "
    "Look at the pooled interval of pass@16.",
    (
        "A",
        "sharpening",
    ): "the pooled interval ends at 0.07, so a rise worth having is not excluded.",
    ("B", "sharpening"): "compare the intervals of seed 0 and seed 1: what does each of them show?",
    ("B", "learning"): "one seed is not enough: compare the intervals of seed 0 and seed 1.",
    ("C", "undecided"): "the pooled interval of pass@16 is narrow. "
    "Is a rise of 0.05 still possible?",
    ("C", "no gain"): "look at the interval of pass@1: does it lie above 0?",
    ("D", "sharpening"): "the pooled interval of pass@16 contains 0, but it is wide. "
    "Is a rise of 0.05 excluded?",
    ("D", "learning"): "the mean is 0.05, but the pooled interval of pass@16 contains 0.",
    ("E", "sharpening"): "its pass@16 is that of C. But look at the interval of pass@1 first.",
    ("E", "undecided"): "look at the interval of pass@1 first.",
    ("F", "sharpening"): "a rise worth having is excluded. "
    "But the interval of pass@16 shows more than that: where does it lie?",
    ("F", "no gain"): "no gain speaks of pass@1. Its interval lies above 0.",
    ("F", "undecided"): "one seed's interval contains 0, but no two seeds contradict each other. "
    "Look at the pooled interval of pass@16.",
}


def six_verdicts(answers: Mapping[str, str]) -> Result:
    """Check the verdicts on the six runs of the exercise.

    Args:
        answers: run, "A" to "F" -> its verdict.

    Returns:
        The Result. Its message is about the first run whose verdict is missing or wrong.
    """
    for run, right in VERDICTS.items():
        given = answers.get(run, "")
        if given == right:
            continue
        if given not in NAMES:
            names = ", ".join(f'"{name}"' for name in NAMES)
            return Result(False, f"run {run} needs a verdict. It is one of {names}.")
        hint = MISTAKES.get((run, given), "go through the rule of section 9 from its start.")
        return Result(False, f'run {run} is not "{given}": {hint}')
    return Result(True, "all six verdicts follow the rule.")
