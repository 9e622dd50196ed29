"""The exercise "Runs without a name": diagnose five recorded runs of PPO from their curves.

One run is healthy, four have a fault. The runs are shown as letters, without their names. Lesson 09
shows three more faulty runs with their names. Their faults are possible answers too.
"""

import random
import textwrap

from minirlhf.experiments.records import load_results

# The faulty runs that lesson 09 shows with their names.
NAMED = ("collapsed", "reward scale wrong", "EOS never trained")

# Diagnosis -> the recorded run, where it has another name. A diagnosis says what is wrong in the
# code, and not which curve shows it.
RECORDED = {
    "no penalty": "hacked",
    "zero values": "dead critic",
    "turned sign": "KL sign wrong",
    "equal scores": "whitening at the optimum",
}

# Diagnosis -> what the log of such a run shows. A student who gave it to another run reads it.
CLUES = {
    "healthy": (
        "the KL stays at two nats, and the value loss falls to less than a fifth of its first "
        "value. Score and gold rise together and then level off. The explained variance keeps "
        "rising."
    ),
    "no penalty": (
        "score and KL rise until the end, the KL to many tens of nats. Gold peaks earlier and "
        "then falls. The entropy falls by four fifths."
    ),
    "collapsed": (
        "the KL jumps at once, with a third of the tokens clipped. Then the entropy is 0 and "
        "responses have five tokens: every prompt gets the same response."
    ),
    "zero values": (
        "the value loss starts at about a quarter of that of a healthy run, and rises instead of "
        "falling: this critic learns nothing. The explained variance is exactly 0. The other "
        "curves look nearly healthy."
    ),
    "turned sign": (
        "the KL grows by many nats per step and never slows down: the policy is rewarded for "
        "leaving the reference. Nearly every response is cut. The value loss grows."
    ),
    "reward scale wrong": (
        "the score is in the tens, gold is not. The value loss begins at about a hundred times "
        "that of the other runs."
    ),
    "EOS never trained": (
        "three quarters of the responses in the first batch are cut: the SFT model cannot "
        "stop. PPO slowly teaches it to stop."
    ),
    "equal scores": (
        "there is nothing to gain, since the score is constant. Responses hardly get shorter. The "
        "targets hardly vary, so the value loss ends below half of a healthy run's. The policy "
        "still moves, to a KL of about one nat, because whitening also scales pure noise to "
        "variance 1."
    ),
}


def runs() -> dict[str, list[dict]]:
    """The five unnamed runs: letter -> the rows of one run's History, without its name."""
    rows, names = load_results("atlas_history"), _names()
    return {
        letter: [
            {k: v for k, v in row.items() if k not in ("variant", "claim", "command")}
            for row in rows
            if row["variant"] == RECORDED.get(name, name)
        ]
        for letter, name in names.items()
    }


def diagnosed(answers: dict[str, str]) -> str:
    """Grade the diagnoses.

    Args:
        answers: letter -> a key of CLUES, for example {"A": "healthy"}. Letters may be left out.

    Returns:
        The number of right diagnoses, and for each wrong one what such a run looks like. If all
        five are right, the same for each run, as the reasons. If a letter or a diagnosis is
        unknown, a message that names it.
    """
    names = _names()
    for letter, said in answers.items():
        if letter not in names or said not in CLUES:
            return (
                f"not yet: '{letter}': '{said}' is not a diagnosis. The letters are "
                f"{', '.join(names)}. The diagnoses are {', '.join(CLUES)}."
            )
    wrong = [letter for letter, said in answers.items() if said != names[letter]]
    verdict = "is" if answers == names else "is not"
    lines = [
        f"{letter} {verdict} '{answers[letter]}'. In such a run {CLUES[answers[letter]]}"
        for letter in (names if answers == names else wrong)
    ]
    wrapped = (
        textwrap.fill(line, 100, initial_indent="  ", subsequent_indent="    ") for line in lines
    )
    return "\n".join([f"{len(answers) - len(wrong)} of {len(names)}.", *wrapped])


def _names() -> dict[str, str]:
    names = [name for name in CLUES if name not in NAMED]
    random.Random(9).shuffle(names)
    return dict(zip("ABCDE", names, strict=True))
