"""Commands in which a person labels pairs: label, label-agreement."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from minirlhf.cli.limits import whole
from minirlhf.cli.options import DATA, RUN, Seed, given, option
from minirlhf.cli.terminal import console, say
from minirlhf.evaluate import label_agreement
from minirlhf.runtime import check, output_file
from minirlhf.show import printable
from minirlhf.tasks import LabelSession, pairs_from_file, pairs_to_label, read_labels
from minirlhf.tasks.labelling import check_annotator, files_of

app = typer.Typer()
CHOICES = {"1": "left", "2": "right", "0": "tie", "s": "skip"}
KEYS = "1 left, 2 right, 0 tie, s skip, u undo, q stop"


@app.command()
def label(
    annotator: Annotated[str, option(DATA, "Your name in the file.")] = "me",
    count: Annotated[
        int | None,
        option(
            DATA,
            "Different pairs of film reviews, 1 or more.",
            show_default="30",
            callback=whole(1),
        ),
    ] = None,
    repeats: Annotated[
        int | None,
        option(
            DATA,
            "Pairs that come a second time, with the sides swapped.",
            show_default="6; 0 with --pairs",
            callback=whole(0),
        ),
    ] = None,
    pairs: Annotated[
        Path | None,
        option(
            DATA,
            "A .jsonl or .csv file of yours with the columns prompt, response_a and response_b.",
            show_default="film reviews",
        ),
    ] = None,
    question: Annotated[
        str, option(DATA, "The question above each pair.")
    ] = "Which review is more positive?",
    out: Annotated[
        Path | None,
        option(
            RUN,
            "The .jsonl file of the labels. If it exists, the session continues in it.",
            show_default="out/labels/ANNOTATOR.jsonl",
        ),
    ] = None,
    seed: Seed = 0,
) -> None:
    """Label pairs of reviews in the terminal.

    One key is one choice, and it is saved at once. Stop with q or Ctrl-C. The same command
    continues later. Ties and skips are kept in a second file, whose name ends in .undecided.jsonl.

    `minirlhf reward --dataset FILE` trains a reward model on the labels.

    Example: minirlhf label --annotator anna --count 50
    """
    drawn: dict[str, int] = {"seed": seed} | given(repeats=repeats)
    check_annotator(annotator)
    file = files_of(out or Path("out/labels") / f"{annotator}.jsonl")[True]
    with output_file(file):  # no other session may write to it
        if pairs is None:
            shown = pairs_to_label(**drawn, **given(count=count))
        else:
            all_shown = "left out with --pairs: all pairs of a file are shown"
            check("--count", count, count is None, all_shown)
            shown = pairs_from_file(pairs, **drawn)
        session = LabelSession(shown, file, annotator)
        code = 0
        try:
            while act(session, question):
                pass
        except EOFError:  # the end of a file with keys
            pass
        except KeyboardInterrupt:
            code = 130
    done, total = session.progress
    more = "" if done == total else " The same command continues."
    files = " and ".join(str(file) for file in files_of(session.path).values() if file.exists())
    where = f" They are in {files}." if files else ""
    say(f"{done} of {total} pairs are labelled.{where}{more}")
    raise typer.Exit(code)


@app.command("label-agreement")
def agreement(
    files: Annotated[
        list[str],
        typer.Argument(help="Files of labels, one for each person.", show_default=False),
    ],
) -> None:
    """Print how much the labels of people agree.

    The crowd chooses the review with the higher mean rating. Repeated pairs show how often a
    person agrees with themselves. Comparisons with a tie are counted apart.

    Example: minirlhf label-agreement out/labels/anna.jsonl out/labels/ben.jsonl
    """
    for file in files:
        check("file", file, bool(file.strip()), "the name of a file of labels")
    found = label_agreement(read_labels(*files))
    table = Table("who", "with", "agree", "pairs", "agreement", "95 % interval", "ties")
    for row in found.itertuples():
        names = {"with the crowd": "the crowd", "with oneself": "oneself"}
        who = (row.annotator, names.get(row.comparison, row.other))
        counts = (str(row.agree), str(row.pairs))
        shares = (f"{row.agreement:.0%}", f"{row.low:.0%} to {row.high:.0%}")
        shares = shares if row.pairs else ("", "")
        table.add_row(*(Text(printable(name)) for name in who), *counts, *shares, str(row.ties))
    console.print(table)


def act(session: LabelSession, question: str) -> bool:
    """Show the current pair and do what the next key says. False: the session is over."""
    if session.current:
        print_pair(session, question)
        say(KEYS)
    else:
        say("All pairs are labelled. u takes the last choice back; any other key ends.")
    key = read_key()
    if key == "u":
        undone = session.undo()
        say(f"{undone} is taken back" if undone else "There is nothing to undo.")
    elif key == "q" or not session.current:
        return False
    elif key in CHOICES:
        session.choose(CHOICES[key])
        say(f"{CHOICES[key]}, saved")
    else:
        say(f"{printable(key)!r} is none of the keys.")
    return True


def print_pair(session: LabelSession, question: str) -> None:
    """Print the current pair with its responses side by side."""
    pair, (done, total) = session.current, session.progress
    assert pair is not None  # `act` has looked
    console.rule(f"Pair {done + 1} of {total}")
    console.print(Text(printable(pair.prompt.strip(), "\n"), style="bold"))
    console.print(Text(printable(question)))
    sides = Table.grid(expand=True, padding=(0, 1))
    sides.add_column(ratio=1)
    sides.add_column(ratio=1)
    texts = (Text(printable(text.strip(), "\n")) for text in (pair.left, pair.right))
    sides.add_row(*(Panel(text, title=key) for key, text in zip("12", texts, strict=True)))
    console.print(sides)


def read_key() -> str:
    """The next key, in lower case. From a pipe it is the next character that is no white space.

    Raises:
        EOFError: there is no more input.
    """
    if sys.stdin.isatty():
        return typer.getchar().lower()
    while (key := sys.stdin.read(1)).isspace():
        pass
    if not key:
        raise EOFError
    return key.lower()
