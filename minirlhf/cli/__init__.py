"""The command line. Each command parses its options, calls one function of the package and prints.

commands.py lists the commands. A command's module is imported when the command is called.
"""

import logging
import os
import sys
from contextlib import suppress

import typer
from rich.console import Console
from rich.text import Text

from minirlhf.cli.commands import COMMANDS, OnDemand, listed

app = typer.Typer(
    cls=OnDemand,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="RLHF from scratch on a laptop: real human ratings and a small GPT-2.\n\n"
    "Start with `minirlhf tour`. `minirlhf COMMAND --help` shows a command's options.",
)
for _name in COMMANDS:
    listed(app, _name)


def main() -> None:
    """Run a command. A wrong input ends in one sentence instead of a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal may lack a letter: it shows "?"
    try:
        app(obj=prepare)
    except Exception as error:
        raise SystemExit(report(error)) from None


def prepare() -> None:
    """Before a command runs: other libraries are silent, and torch uses the available cores."""
    import datasets
    import transformers

    from minirlhf.runtime import set_threads

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # our own message says it
    logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)
    set_threads()


def report(error: Exception) -> int:
    """Print what stopped a command in one sentence. Returns the exit code.

    Raises:
        Exception: `error` itself, if it is a bug, or if MINIRLHF_TRACEBACK is set.
    """
    from safetensors import SafetensorError

    from minirlhf.loops.checkpoint import Stopped

    if isinstance(error, Stopped):
        with suppress(OSError):  # the terminal was closed
            Console().print(
                f"{error} To continue, run the same command with --resume. "
                "(tour, experiment and smollm2 continue without it.)",
                highlight=False,
                markup=False,
            )
        return 128 + error.number  # 130 after Ctrl-C, 143 after SIGTERM, as shells have it
    expected = (ValueError, ArithmeticError, OSError, RuntimeError, SafetensorError)
    if not isinstance(error, expected) or os.environ.get("MINIRLHF_TRACEBACK"):
        raise error
    sentence = next(iter(str(error).splitlines()), type(error).__name__)
    Console(stderr=True).print(Text("Error: ", style="bold red") + Text(sentence, style="default"))
    return 1
