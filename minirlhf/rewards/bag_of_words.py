"""Two judges that cannot be fooled by fluency: a TF-IDF ridge on the ratings, and the VADER lexicon."""

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
    """Regression of the mean rating on TF-IDF of words and word pairs, fitted on the films of one split (half a second).

    Scores are in rating units, -4..4. It needs the data cache; it is fitted anew in each process, nothing is stored.
    """
    reviews = [r for r in load_reviews() if r.split == split and r.ratings]
    features = TfidfVectorizer(
        ngram_range=(1, 2), min_df=2, sublinear_tf=True, max_features=max_features
    )
    model = Ridge(alpha=2.0).fit(
        features.fit_transform([r.text for r in reviews]), [r.mean for r in reviews]
    )

    def judge(prompts: list[str], responses: list[str]) -> torch.Tensor:
        return torch.tensor(model.predict(features.transform(responses)), dtype=torch.float32)

    return judge


@functools.cache
def lexicon_judge() -> Judge:
    """Sum s of word valences of the VADER lexicon, sign turned in the three words after a negation, as s / sqrt(s^2 + 15).

    Only the lexicon is Hutto and Gilbert's; their rules for intensifiers, capitals and punctuation are left out.
    """
    rows = [line.split("\t") for line in sources.read_vader_lexicon().splitlines() if line.strip()]
    valence = {word: float(mean) for word, mean, *_ in rows}

    def score(text: str) -> float:
        words = re.findall(r"[a-z']+", text.lower())
        total = 0.0
        for i, word in enumerate(words):
            negated = any(w in NEGATIONS or w.endswith("n't") for w in words[max(0, i - 3) : i])
            total += valence.get(word, 0.0) * (
                -0.74 if negated else 1.0
            )  # their damping of a negated word
        return total / math.sqrt(total * total + 15)

    return lambda prompts, responses: torch.tensor([score(text) for text in responses])
