"""Short notebooks: with FAST=1 in the environment their live runs have fewer steps."""

import os

FAST = os.environ.get("FAST", "") not in ("", "0")
