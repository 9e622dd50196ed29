"""The gold reward model: our measure of which response is truly better.

It is fitted on films, and by a method, that training never uses. Two candidates were compared on
the validation films (`minirlhf gold` prints the comparison). One is an ensemble of three small
GPT-2 models that regress the mean rating, the other a TF-IDF ridge regression on the same films.
The ridge regression predicts human ratings better, so it is the gold reward model. The ensemble is
reported next to it.
"""

import functools
from pathlib import Path

import torch

from minirlhf.models.load import CHECKPOINTS, load_scalar
from minirlhf.rewards.bag_of_words import ridge_judge
from minirlhf.rewards.model import Judge, text_judge
from minirlhf.tasks.reviews import load_reviews


def gold_judge() -> Judge:
    """The gold reward model: the mean rating that people would give, as the ridge predicts it.

    Scores are in rating units, -4 to 4. It is fitted on the gold films.
    """
    return ridge_judge("gold")


def ensemble_members(folder: Path = CHECKPOINTS) -> list[Path]:
    """The folders `gold-0`, `gold-1`, ... of an ensemble."""
    return sorted(folder.glob("gold-*"))


@functools.cache
def ensemble_judge(folder: Path = CHECKPOINTS) -> Judge:
    """The mean rating as predicted by the ensemble `gold-0`, `gold-1`, ... in a folder.

    As a second judge it shows where a policy exploits the gold reward model.

    Raises:
        ValueError: there is no ensemble in the folder.
    """
    loaded = [load_scalar(member) for member in ensemble_members(folder)]
    if not loaded:
        raise ValueError(f"No gold ensemble in {folder}; make one with `minirlhf gold`.")
    return text_judge([model for model, _ in loaded], loaded[0][1])


def correlation(judge: Judge, split: str = "val") -> float:
    """Pearson's r between a judge's scores and the mean ratings of one split's snippets."""
    rated = [r for r in load_reviews() if r.split == split and r.ratings]
    predicted = judge([r.prompt for r in rated], [r.text for r in rated])
    means = torch.tensor([r.mean for r in rated], device="cpu")
    return torch.corrcoef(torch.stack([predicted, means]))[0, 1].item()
