"""minirlhf: RLHF that a reader can step through. Rooms and rules are in README.md."""

import warnings

warnings.filterwarnings(
    "ignore", message="IProgress not found"
)  # progress bars are ours; notebooks need no widgets

__version__ = "0.1.0"
