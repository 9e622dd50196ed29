"""What a policy is trained on: prompts, examples and ground truth.

`reviews`, `arithmetic` and `calculator` are modules, one for each task. The functions convert
datasets to standard rows, load datasets by name and measure the agreement of human raters.
`LabelSession` keeps the choices of a person who labels pairs.
"""

from minirlhf.tasks import arithmetic, calculator, reviews
from minirlhf.tasks.agreement import (
    disagreements,
    human_ceiling,
    krippendorff_alpha,
    odds_of_steps,
    preference_share,
    tie_share,
)
from minirlhf.tasks.formats import (
    check_rows,
    completions,
    conversational,
    paired,
    standard,
    texts_once,
    unpaired,
)
from minirlhf.tasks.hub import (
    DATASETS,
    load_by_name,
    named_demonstrations,
    named_pairs,
    named_prompts,
)
from minirlhf.tasks.labelling import LabelSession, read_labels
from minirlhf.tasks.pairs import Pair, pairs_from_file, pairs_to_label
from minirlhf.tasks.prompts import prompt_texts
from minirlhf.tasks.sources import SourceError, fetch, fetch_smollm2
from minirlhf.tasks.trigram import Trigram

__all__ = [
    "DATASETS",
    "LabelSession",
    "Pair",
    "SourceError",
    "Trigram",
    "arithmetic",
    "calculator",
    "check_rows",
    "completions",
    "conversational",
    "disagreements",
    "fetch",
    "fetch_smollm2",
    "human_ceiling",
    "krippendorff_alpha",
    "load_by_name",
    "named_demonstrations",
    "named_pairs",
    "named_prompts",
    "odds_of_steps",
    "paired",
    "pairs_from_file",
    "pairs_to_label",
    "preference_share",
    "prompt_texts",
    "read_labels",
    "reviews",
    "standard",
    "texts_once",
    "tie_share",
    "unpaired",
]
