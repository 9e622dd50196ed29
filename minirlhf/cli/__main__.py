"""`python -m minirlhf.cli` is the same as `minirlhf`."""

from minirlhf.cli import main

main()
