"""The gold scorer: what "truly better" means here. It is fitted on films, by a method, that training never uses.

Two were made and compared on the validation films (`minirlhf gold` prints it): an ensemble of three small GPT-2 that regress the mean
rating, and a TF-IDF ridge on the same films. The ridge predicts people better, so the ridge is gold and the ensemble stands beside it.
"""

import functools
from pathlib import Path

import torch

from minirlhf.models.load import CHECKPOINTS, load_scalar
from minirlhf.rewards.bag_of_words import ridge_judge
from minirlhf.rewards.model import Judge, text_judge
from minirlhf.tasks.reviews import load_reviews


def gold_judge() -> Judge:
    """The mean rating (-4..4) that people would give, as the ridge on the gold films predicts it."""
    return ridge_judge("gold")


def ensemble_members(folder: Path = CHECKPOINTS) -> list[Path]:
    """The folders `gold-0`, `gold-1`, ... of an ensemble."""
    return sorted(folder.glob("gold-*"))


@functools.cache
def ensemble_judge(folder: Path = CHECKPOINTS) -> Judge:
    """The same by the ensemble `gold-0`, `gold-1`, ... of a folder: another judge, to see where gold is exploited.

    Raises:
        ValueError: no ensemble there.
    """
    loaded = [load_scalar(member) for member in ensemble_members(folder)]
    if not loaded:
        raise ValueError(f"No gold ensemble in {folder}; make one with `minirlhf gold`.")
    return text_judge([model for model, _ in loaded], loaded[0][1])


def correlation(judge: Judge, split: str = "val") -> float:
    """Pearson's r between a judge and the mean ratings of one split's films."""
    rated = [r for r in load_reviews() if r.split == split and r.ratings]
    predicted = judge([r.prompt for r in rated], [r.text for r in rated])
    return torch.corrcoef(torch.stack([predicted, torch.tensor([r.mean for r in rated])]))[
        0, 1
    ].item()
