"""A widget for a notebook in which a person labels pairs of responses."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # other figures need no widgets
    from minirlhf.show.labelling_widget import LabelWidget


class PairShown(Protocol):
    """What the widget reads of a pair."""

    @property
    def prompt(self) -> str: ...
    @property
    def left(self) -> str: ...
    @property
    def right(self) -> str: ...


class Labelling(Protocol):
    """What the widget needs of a session. `tasks.LabelSession` is one."""

    path: Path
    pairs: Sequence

    @property
    def current(self) -> PairShown | None: ...
    @property
    def progress(self) -> tuple[int, int]: ...
    def choose(self, choice: str) -> None: ...
    def undo(self) -> str | None: ...


def label_pairs(
    session: Labelling, *, question: str = "Which review is more positive?"
) -> "LabelWidget":
    """Show a session in a notebook: two responses side by side, with buttons and keys.

    The keys work when the widget has the focus, for example after a click into it: 1 chooses the
    left response, 2 the right one, 0 says tie, s skips the pair, and u takes the last choice back.
    Each choice goes to the session, which saves it. Text is shown as text, whatever it contains.

    The cell that shows the widget ends at once. So a notebook that is executed without a reader
    does not wait for labels.

    Args:
        session: holds the pairs and saves the choices.
        question: stands above the two responses.

    Returns:
        A `LabelWidget` (anywidget). Make it the last line of a cell.
    """
    from minirlhf.show.labelling_widget import LabelWidget  # late: other figures need no widgets

    return LabelWidget(session, question)
