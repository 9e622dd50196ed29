"""What is being learned: prompts, examples and ground truth."""
