"""Evaluation: the same measures for every method, and the table of a batch, a row a token.

samples = evaluate.draw(model, tokenizer, prompts, samples_per_prompt=4, reference=sft)
evaluate.summary(samples, {"gold": gold_judge()})          scores with 95 % intervals
evaluate.label_agreement(labels)                           people with the crowd and each other
evaluate.token_table(batch, tokenizer, actor=actor, ...)   every number of every token
"""

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
    "bootstrap",
    "distinct_n",
    "draw",
    "first_samples",
    "label_agreement",
    "most_common_opening",
    "paired_difference",
    "pass_at_k",
    "pass_summary",
    "sharpened_or_learned",
    "summary",
    "token_table",
    "token_text",
    "win_rate",
]
