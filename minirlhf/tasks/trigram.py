"""A trigram model of tokens: the yardstick beside a language model's bits per byte."""

import math
from collections import Counter, defaultdict


class Trigram:
    """Interpolated by Witten and Bell's rule: a context that was followed by T kinds of token trusts its counts c by c / (c + T).

    p(w | u v) = (c(u v w) + T(u v) p(w | v)) / (c(u v) + T(u v))        then v alone, then no context, then 1 / V
    """

    def __init__(self, documents: list[list[int]], vocab_size: int):
        self.vocab_size = vocab_size
        self.counts: dict[tuple, Counter] = defaultdict(Counter)
        for ids in documents:
            for i, token in enumerate(ids):
                for order in range(3):
                    if i >= order:
                        self.counts[tuple(ids[i - order : i])][token] += 1
        self.totals = {context: counter.total() for context, counter in self.counts.items()}

    def probability(self, token: int, context: tuple[int, ...]) -> float:
        """p(token | the last tokens of context), at most two of them used."""
        p = 1 / self.vocab_size
        for order in range(min(2, len(context)) + 1):
            key = tuple(context[len(context) - order :])
            if key in self.totals:
                kinds = len(self.counts[key])
                p = (self.counts[key][token] + kinds * p) / (self.totals[key] + kinds)
        return p

    def nats(self, ids: list[int]) -> float:
        """-log p of one document, EOS included if it is in ids."""
        return -sum(
            math.log(self.probability(token, tuple(ids[max(0, i - 2) : i])))
            for i, token in enumerate(ids)
        )
