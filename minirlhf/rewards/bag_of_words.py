"""Two judges that read single words only, so that fluent text cannot mislead them.

One is a ridge regression of the ratings on TF-IDF features, the other the VADER lexicon.
"""

import functools
import math
import re

import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import Ridge

from minirlhf.rewards.model import Judge
from minirlhf.tasks import sources
from minirlhf.tasks.reviews import load_reviews

NEGATIONS = {"not", "no", "never", "without", "hardly", "nor", "neither", "cannot"}


@functools.cache
def ridge_judge(split: str = "gold", max_features: int = 20_000) -> Judge:
    """Ridge regression of the mean rating on TF-IDF features of words and word pairs.

    It is fitted on the films of one split, in half a second, again in each process; nothing is
    stored. The data cache is needed.

    Args:
        split: whose films to fit on.
        max_features: number of words and word pairs.

    Returns:
        (prompts, responses) -> scores (B,) in rating units, -4 to 4.
    """
    reviews = [r for r in load_reviews() if r.split == split and r.ratings]
    features = TfidfVectorizer(
        ngram_range=(1, 2), min_df=2, sublinear_tf=True, max_features=max_features
    )
    model = Ridge(alpha=2.0).fit(
        features.fit_transform([r.text for r in reviews]), [r.mean for r in reviews]
    )

    def judge(prompts: list[str], responses: list[str]) -> torch.Tensor:
        return torch.tensor(
            model.predict(features.transform(responses)), dtype=torch.float32, device="cpu"
        )

    return judge


@functools.cache
def lexicon_judge() -> Judge:
    """Sentiment by the VADER lexicon.

        s / sqrt(s^2 + 15)        s = sum of the valences of the words

    A valence is multiplied by -0.74 in the three words after a negation, as VADER does. The
    lexicon, this factor and the formula are Hutto and Gilbert's. Their rules for intensifiers,
    capitals and punctuation are left out.

    Returns:
        (prompts, responses) -> scores (B,) from -1 to 1.
    """
    rows = [line.split("\t") for line in sources.read_vader_lexicon().splitlines() if line.strip()]
    valence = {word: float(mean) for word, mean, *_ in rows}

    def score(text: str) -> float:
        words = re.findall(r"[a-z']+", text.lower())
        total = 0.0
        for i, word in enumerate(words):
            negated = any(w in NEGATIONS or w.endswith("n't") for w in words[max(0, i - 3) : i])
            total += valence.get(word, 0.0) * (-0.74 if negated else 1.0)
        return total / math.sqrt(total * total + 15)

    return lambda prompts, responses: torch.tensor(
        [score(text) for text in responses], device="cpu"
    )
