"""Evaluation: the same measures for every method, and the table of a batch, a row a token.

samples = evaluate.draw(model, tokenizer, prompts, samples_per_prompt=4, reference=sft)
evaluate.summary(samples, {"gold": gold_judge()})          scores with 95 % intervals
evaluate.compare(new, old)                                 is a model better than its start?
evaluate.best_of_n_table(drawn, 64)                        what more samples buy, by two judges
evaluate.label_agreement(labels)                           people with the crowd and each other
evaluate.token_table(batch, tokenizer, actor=actor, ...)   every number of every token
"""

from minirlhf.evaluate.best_of_n import best_of_n_kept, best_of_n_table, best_of_n_verdict
from minirlhf.evaluate.comparison import (
    compare,
    pair_accuracy,
    scored_pairs,
    scored_responses,
    text_score,
    verdict,
)
from minirlhf.evaluate.labels import label_agreement
from minirlhf.evaluate.methods import (
    Samples,
    bootstrap,
    distinct_n,
    draw,
    first_samples,
    most_common_opening,
    paired_difference,
    pass_at_k,
    pass_summary,
    sharpened_or_learned,
    summary,
    win_rate,
)
from minirlhf.evaluate.tokens import token_table, token_text

__all__ = [
    "Samples",
    "best_of_n_kept",
    "best_of_n_table",
    "best_of_n_verdict",
    "bootstrap",
    "compare",
    "distinct_n",
    "draw",
    "first_samples",
    "label_agreement",
    "most_common_opening",
    "pair_accuracy",
    "paired_difference",
    "pass_at_k",
    "pass_summary",
    "scored_pairs",
    "scored_responses",
    "sharpened_or_learned",
    "summary",
    "text_score",
    "token_table",
    "token_text",
    "verdict",
    "win_rate",
]
