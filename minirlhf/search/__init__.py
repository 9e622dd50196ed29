"""Inference-time search: choose among samples and leave the policy's weights as they are."""

from minirlhf.search.selection import best_index, best_of_n, best_of_n_rows

__all__ = ["best_index", "best_of_n", "best_of_n_rows"]
