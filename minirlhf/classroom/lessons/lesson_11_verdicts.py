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
    otherwise = "go through the rule of section 9 from its start."
    return judge_verdicts(answers, VERDICTS, MISTAKES, otherwise, kind="run")


def judge_verdicts(
    answers: Mapping[str, str],
    verdicts: Mapping[str, str],
    mistakes: Mapping[tuple[str, str], str],
    otherwise: str,
    *,
    kind: str,
) -> Result:
    """Compare verdicts with the right ones.

    Args:
        answers: letter -> the verdict that was given.
        verdicts: letter -> the right verdict. Each verdict that may be given occurs here.
        mistakes: (letter, wrong verdict) -> what was overlooked.
        otherwise: the hint for a mistake that is not listed.
        kind: what a letter stands for, for the messages.

    Returns:
        The Result. Its message is about the first verdict that is missing or wrong.
    """
    names = sorted(set(verdicts.values()))
    for letter, right in verdicts.items():
        given = answers.get(letter, "")
        if given == right:
            continue
        if given not in names:
            quoted = ", ".join(f'"{name}"' for name in names)
            return Result(False, f"{kind} {letter} needs a verdict. It is one of {quoted}.")
        hint = mistakes.get((letter, given), otherwise)
        return Result(False, f'{kind} {letter} is not "{given}": {hint}')
    return Result(True, "all six verdicts follow the rule.")
