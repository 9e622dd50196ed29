"""Recorded experiments: what is run, how, and the records that the lessons read."""
