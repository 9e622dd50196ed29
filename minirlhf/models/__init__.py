"""Policies, scalar heads and our own sampling loop."""
