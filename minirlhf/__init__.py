"""minirlhf: RLHF that a reader can step through. Rooms and rules are in README.md."""

__version__ = "0.1.0"
