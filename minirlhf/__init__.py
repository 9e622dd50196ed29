"""minirlhf: RLHF from scratch that you can step through.

    from minirlhf import core, evaluate, experiments, loops, models, rewards, search, show, tasks

`core` holds the maths, `loops` the training, `models` loading and sampling, `tasks` the data,
`rewards` what scores a response, `search` methods at inference time, `evaluate` the measures,
`show` the figures, `experiments` the records, `classroom` the exercises, `tour` the whole pipeline.
"""

import warnings

# our own progress bars need no widgets in a notebook
warnings.filterwarnings("ignore", message="IProgress not found")

__version__ = "0.1.0"
__all__ = [
    "classroom",
    "core",
    "evaluate",
    "experiments",
    "loops",
    "models",
    "rewards",
    "search",
    "show",
    "tasks",
    "tour",
]
