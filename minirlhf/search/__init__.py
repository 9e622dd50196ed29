"""Inference time: choose among samples instead of changing the policy."""
