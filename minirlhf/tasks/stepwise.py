"""Solutions whose steps are labelled, for a process reward model: rows of three public layouts.

prompt, completions, labels    TRL's stepwise supervision: the steps, and a label for each
input, label                   Math-Shepherd: two texts. "ки" ends a step in input; in label
                               there is + or - in its place
question, label                PRM800K: the steps in label, with ratings from -1 to 1
"""

from collections.abc import Callable, Mapping
from typing import Any

from datasets import Dataset

from minirlhf.runtime import check_text
from minirlhf.tasks.formats import as_dataset
from minirlhf.tasks.hub import read_named
from minirlhf.tasks.lines import BadRow, Row
from minirlhf.tasks.reports import ORIGIN, Source

MARK = "ки"  # ends a step in Math-Shepherd
FORMAT = (
    "give rows with the columns prompt (a text), completions (a list of texts, the steps) and "
    "labels (a list with one of true, false, null or a number from 0 to 1 for each step). The "
    "layouts of Math-Shepherd (input, label) and PRM800K (question, label) are known too"
)


def named_steps(
    name: str,
    *,
    rows: int | None = None,
    skip_invalid: bool = False,
    step_end: str = "\n",
    say: Callable[[str], object] = print,
) -> Dataset:
    """Solutions with labelled steps, of a file or a dataset of the hub.

    Args:
        name: as `load_by_name` takes it.
        rows: only the first so many rows.
        skip_invalid: leave out rows that cannot be used, instead of refusing them.
        step_end: the text that will end each step; no step may have it.
        say: is called with a sentence: the layout, and the rows that were left out.

    Returns:
        Columns prompt, completions, labels (numbers from 0 to 1, or None) and row_of_file.

    Raises:
        ValueError: the dataset cannot be loaded, has no such layout, or has a row that cannot be
            used.
    """
    found, title = read_named(name, None, rows)
    source = Source(title)
    names = {column for row in found if isinstance(row, dict) for column in row}
    layout = next((row for row in LAYOUTS if set(row[0]) <= names), None)
    if layout is None:
        listed = ", ".join(sorted(map(str, names))) or "nothing"
        raise ValueError(
            f"{title} has the columns {listed}, which hold no labelled steps; {FORMAT}."
        )
    made: dict[int, Row] = {}
    faults: dict[int, BadRow] = {}
    for number, row in enumerate(found):
        try:
            if isinstance(row, BadRow):
                raise row
            solved = layout[1](row, source.row(number))
            check_steps(solved, source.row(number), step_end)
            made[number] = solved | {ORIGIN: source.origin(number, chat=False)}
        except BadRow as fault:
            faults[number] = fault
    if faults and not (skip_invalid and made):
        more = f" {len(faults)} of {len(found)} rows cannot be used." if len(faults) > 1 else ""
        raise ValueError(f"{faults[min(faults)]}{more} --skip-invalid leaves such rows out.")
    say(f"{title}: {len(made)} of {len(found)} rows; {layout[2]}")
    if faults:
        first = faults[min(faults)]
        say(f"Left out: {source.listed(list(faults))}. The first: {first}")
    labels = {number: [_number(y) for y in row["labels"]] for number, row in made.items()}
    return as_dataset({number: row | {"labels": labels[number]} for number, row in made.items()})


def check_steps(row: Mapping[str, Any], where: str, step_end: str) -> None:
    """Check a row of stepwise supervision.

    Args:
        row: prompt, completions and labels. where: names it in messages.
        step_end: the text that ends a step.

    Raises:
        BadRow: a value is missing or of another type, steps and labels do not fit, or a step has
            the text that ends steps.
    """
    try:
        _check_steps(row, where, step_end)
    except ValueError as fault:
        raise BadRow("no labelled steps", str(fault)) from None


def _check_steps(row: Mapping[str, Any], where: str, step_end: str) -> None:
    check_text(row.get("prompt"), f"{where}: the prompt")
    if not row["prompt"].strip():
        raise ValueError(f"{where}: the prompt is empty; give at least one token before the steps.")
    steps, labels = row.get("completions"), row.get("labels")
    for column, values in (("completions", steps), ("labels", labels)):
        if not isinstance(values, list) or not values:
            raise ValueError(
                f"{where}: {column} is {values!r:.60}; it must be a list with one value for each "
                "step."
            )
    assert isinstance(steps, list) and isinstance(labels, list)
    if len(steps) != len(labels):
        raise ValueError(
            f"{where} has {len(steps)} steps in completions and {len(labels)} labels; give each "
            "step one label (None if nobody rated it)."
        )
    if all(label is None for label in labels):
        raise ValueError(f"{where}: no step has a label; leave the row out.")
    for number, (step, label) in enumerate(zip(steps, labels, strict=True), start=1):
        check_text(step, f"{where}, step {number}")
        is_last = number == len(steps)  # the response may end right after the step before
        if step_end in step or not (step or is_last):
            raise ValueError(
                f"{where}, step {number} is {step[:60]!r}; a step must have text, without "
                f"{step_end!r}, which ends a step (--step-end; step_end)."
            )
        if not (label is None or (isinstance(label, bool | int | float) and 0 <= label <= 1)):
            raise ValueError(
                f"{where}, step {number}: the label is {label!r:.40}; it must be from 0 to 1, "
                "True, False or None (not rated)."
            )


def _number(label: Any) -> float | None:
    return None if label is None else float(label)


def _of_trl(row: Row, where: str) -> Row:
    return {name: row.get(name) for name in ("prompt", "completions", "labels")}


def _of_shepherd(row: Row, where: str) -> Row:
    """A row of Math-Shepherd. The prompt ends before "Step 1:", with a line break."""
    given, label = row.get("input"), row.get("label")
    parts = given.split(MARK) if isinstance(given, str) else []
    start = parts[0].find("Step 1:") if parts else -1
    if start < 1 or parts[-1].strip() or not isinstance(label, str):
        raise BadRow(
            "no row of Math-Shepherd",
            f"{where}: input and label are not as in Math-Shepherd: input is a question, then "
            f"steps from Step 1: on, each ended by {MARK}; or {FORMAT}.",
        )
    signs, rest = [], label
    for part in parts[:-1]:
        if not rest.startswith(part) or rest[len(part) : len(part) + 1] not in ("+", "-"):
            raise BadRow(
                "no row of Math-Shepherd",
                f"{where}: label must be the same text as input, with + or - in place of each "
                f"{MARK}.",
            )
        signs.append(rest[len(part)] == "+")
        rest = rest[len(part) + 1 :]
    prompt = parts[0][:start].strip() + "\n"
    steps = [part.strip() for part in [parts[0][start:], *parts[1:-1]]]
    return {"prompt": prompt, "completions": steps, "labels": signs}


def _of_prm800k(row: Row, where: str) -> Row:
    """A row of PRM800K. Of several completions of a step the chosen one counts, else the first."""
    try:
        prompt, completions, labels = row["question"]["problem"] + "\n", [], []
        for step in row["label"]["steps"]:
            some, chosen = step["completions"], step.get("chosen_completion")
            one = some[chosen or 0] if some else step["human_completion"]
            completions.append(one["text"].strip())
            labels.append(None if one.get("rating") is None else one["rating"] >= 0)
    except (KeyError, TypeError, IndexError, AttributeError):
        raise BadRow(
            "no row of PRM800K",
            f"{where}: question and label are not as in PRM800K: question.problem is a text, and "
            "label.steps is a list with completions, each with text and rating; or " + FORMAT + ".",
        ) from None
    return {"prompt": prompt, "completions": completions, "labels": labels}


# (columns, row -> row of prompt, completions, labels, what is said)
LAYOUTS: tuple[tuple[tuple[str, ...], Callable[[Row, str], Row], str], ...] = (
    (("prompt", "completions", "labels"), _of_trl, "prompt; completions; labels."),
    (("input", "label"), _of_shepherd, "steps and labels as in Math-Shepherd; + is right."),
    (("question", "label"), _of_prm800k, "steps and ratings as in PRM800K; 1 and 0 are right."),
)
