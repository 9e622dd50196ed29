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

TRACEBACK = "MINIRLHF_TRACEBACK"  # the environment variable that shows where an error arose
BUG = (
    "This is an error in minirlhf, or in Python code of yours that it ran. If it is not yours, "
    "please report it with the command and the lines above."
)
FULL = "The memory is full. A smaller --micro-batch, --recompute or a smaller model needs less"
DEEP = "An input is nested too deeply"

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
    """Run a command. A wrong input ends in one sentence instead of a traceback.

    The exit code is 0 where the command did its work; 1 where an input or the machine stopped it; 2
    where the command line itself is wrong, such as an unknown option; and 130, 143 or 129 after
    Ctrl-C, SIGTERM or SIGHUP.
    """
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
    from minirlhf.cli.terminal import say
    from minirlhf.loops.checkpoint import Stopped

    if isinstance(error, Stopped):
        more = (
            " To continue, run the same command with --resume. "
            "(tour, experiment and smollm2 continue without it.)"
        )
        with suppress(OSError):  # the terminal was closed
            say(f"{error}{'' if error.finished else more}")
        return 128 + error.number  # 130 after Ctrl-C, 143 after SIGTERM, as shells have it
    if os.environ.get(TRACEBACK):
        raise error
    sentence = " ".join([sentence_of(error), *filter(None, getattr(error, "__notes__", []))])
    if not sentence_of(error):
        error.add_note(BUG)
        raise error
    console = Console(stderr=True)
    text = Text("Error: ", style="bold red") + Text(sentence, style="default")
    console.print(text, soft_wrap=not console.is_terminal)
    return 1


def sentence_of(error: Exception) -> str:
    """What stopped a command, in one sentence; "" for a bug, whose traceback says more."""
    import torch
    from safetensors import SafetensorError

    from minirlhf.show.strips import printable

    said = next(iter(str(error).splitlines()), type(error).__name__)
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return printable(f"{FULL} ({said}).")
    if isinstance(error, RecursionError):
        return f"{DEEP} ({said}); {TRACEBACK}=1 shows where."
    if isinstance(error, UnicodeDecodeError):
        return f"A text file is not UTF-8: {said} ({TRACEBACK}=1 shows where.)"
    if isinstance(error, ValueError):  # our own sentences may quote a name with a line end
        said = str(error).strip().replace("\n", "\\n") or said
    elif isinstance(error, RuntimeError | SafetensorError):  # of a library
        said = f"{said} ({TRACEBACK}=1 shows where.)"
    elif not isinstance(error, OSError | FloatingPointError):
        return ""
    return printable(said)
