"""The gold scorer: what "truly better" means here, never seen by training (loops/gold.py makes it)."""

import functools

from minirlhf.models.load import committed, load_scalar
from minirlhf.rewards.model import Judge, text_judge


@functools.cache
def gold_judge() -> Judge:
    """The committed ensemble: mean rating (-4..4) that raters would give the response, as its members predict it.

    Raises:
        ValueError: no committed gold scorer.
    """
    names = [name for name in committed("scalar.json") if name.startswith("gold-")]
    if not names:
        raise ValueError("No gold scorer in data/checkpoints; make one with `minirlhf gold`.")
    loaded = [load_scalar(name) for name in names]
    return text_judge([model for model, _ in loaded], loaded[0][1])
