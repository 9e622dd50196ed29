"""Pictures: tensors, lists and a Rollout in, a figure or escaped HTML out."""
