"""A trigram model of tokens: the baseline for a language model's bits per byte."""

import math
from collections import Counter, defaultdict


class Trigram:
    """A trigram model, interpolated by Witten and Bell's rule.

        p(w | u v) = (c(u v w) + T(u v) p(w | v)) / (c(u v) + T(u v))

    c counts occurrences in the documents. T(u v) is the number of different tokens that followed u
    v. So the counts of a context have weight c / (c + T), and the rest comes from the shorter
    context: from v alone, then from no context, then from 1 / V.

    Args:
        documents: token ids of the training documents.
        vocab_size: V.
    """

    def __init__(self, documents: list[list[int]], vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.counts: dict[tuple, Counter] = defaultdict(Counter)
        for ids in documents:
            for i, token in enumerate(ids):
                for order in range(3):
                    if i >= order:
                        self.counts[tuple(ids[i - order : i])][token] += 1
        self.totals = {context: counter.total() for context, counter in self.counts.items()}

    def probability(self, token: int, context: tuple[int, ...]) -> float:
        """p(token | context). At most the last two tokens of the context are used."""
        p = 1 / self.vocab_size
        for order in range(min(2, len(context)) + 1):
            key = tuple(context[len(context) - order :])
            if key in self.totals:
                kinds = len(self.counts[key])
                p = (self.counts[key][token] + kinds * p) / (self.totals[key] + kinds)
        return p

    def nats(self, ids: list[int]) -> float:
        """-log p of one document in nats. EOS counts if it is in `ids`."""
        return -sum(
            math.log(self.probability(token, tuple(ids[max(0, i - 2) : i])))
            for i, token in enumerate(ids)
        )
