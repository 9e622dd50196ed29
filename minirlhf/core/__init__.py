"""The maths: pure functions on tensors. No model, no file, no state."""
