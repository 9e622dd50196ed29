"""Training, one file an algorithm family, each a script in numbered beats."""
