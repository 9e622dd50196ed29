"""Read the log: eight recorded runs of PPO, one healthy, shown as curves without names and graded by letter."""

import random

from minirlhf.classroom.claims import load_results

CLUES = {  # what the log shows, for who did not see it
    "healthy": "score and gold rise together and level off, the KL stays at two nats, the critic explains more and more.",
    "hacked": "score and KL climb to the end, to many tens of nats; gold has its peak behind it; entropy falls by four fifths.",
    "collapsed": "a KL leap at once, a third of its tokens clipped; then an entropy of 0 and five tokens a text: one text for all.",
    "dead critic": "explained variance is 0, not around 0, and stays there, while all else looks nearly healthy.",
    "KL sign wrong": "the KL grows by many nats a step and never slows: drifting is paid. Nearly every text is cut, the value loss grows.",
    "reward scale wrong": "the score is counted in tens, gold is not, and the value loss begins at a hundred times that of the others.",
    "EOS never trained": "three quarters of the first rollout are cut: the start cannot stop. PPO slowly teaches it to.",
    "whitening at the optimum": "the score is constant, nothing can be learned; yet the policy moves: whitened noise has variance 1 too.",
}


def runs() -> dict[str, list[dict]]:
    """Letter -> the History of one recorded run, without its name."""
    rows, names = load_results("atlas_history"), _names()
    return {
        letter: [
            {k: v for k, v in row.items() if k not in ("variant", "claim", "command")}
            for row in rows
            if row["variant"] == name
        ]
        for letter, name in names.items()
    }


def diagnosed(answers: dict[str, str]) -> str:
    """How many of the eight diagnoses are right, and a clue for each that is not; or which answer is none.

    Args:
        answers: letter -> one of CLUES, for example {"A": "healthy"}; letters may be left out.
    """
    names = _names()
    for letter, said in answers.items():
        if letter not in names or said not in CLUES:
            return f"not yet: '{letter}': '{said}' is no diagnosis; the letters are {', '.join(names)}, the diagnoses {', '.join(CLUES)}."
    wrong = {letter: names[letter] for letter, said in answers.items() if said != names[letter]}
    lines = [
        f"  {letter} is not '{answers[letter]}'. Look again: {CLUES[name]}"
        for letter, name in wrong.items()
    ]
    return "\n".join([f"{len(answers) - len(wrong)} of {len(names)}.", *lines])


def _names() -> dict[str, str]:
    names = list(CLUES)
    random.Random(9).shuffle(names)
    return dict(zip("ABCDEFGH", names, strict=True))
