"""The token microscope: point at a token of a response and see all its numbers.

The page is HTML, one script and data as JSON, all in one block. It needs no network and no kernel.
microscope.js draws it, microscope.css lays it out, microscope_data.py makes the JSON.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Literal

import pandas as pd
from matplotlib.figure import Figure

from minirlhf.runtime import atomic_path, check, write_text
from minirlhf.show.diagrams_parts import number
from minirlhf.show.microscope_columns import describe
from minirlhf.show.microscope_data import clean, microscope_data, to_json
from minirlhf.show.strips import escape, token_strip_html, token_strips, visible

SHORT = 24  # characters of a prompt that fits into the title of its response
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root{{color-scheme:{scheme}}}
body{{margin:1rem auto;padding:0 .75rem;max-width:75rem}}
</style>
</head>
<body>
{block}
</body>
</html>
"""


@dataclass(frozen=True)
class Microscope:
    """A token microscope, made by `show.microscope`. A notebook shows it as it is.

    Args:
        data: what the page shows, as JSON values.
        still: path of the still picture that stands beside it, "" where there is none.
    """

    data: dict = field(repr=False)
    still: str = ""

    @property
    def html(self) -> str:
        """The microscope as one block of HTML, to put into a notebook or a page.

        Where scripts do not run, it shows the coloured tokens of the first view.
        """
        return (
            f'<div class="minirlhf-microscope" data-theme="{self.data["theme"]}">'
            f"<style>{_asset('microscope.css')}</style>"
            f'<div class="still">{self._fallback()}</div>'
            f'<script type="application/json">{to_json(self.data)}</script>'
            f"<script>{_asset('microscope.js')}</script></div>"
        )

    def page(self) -> str:
        """The microscope as a whole HTML document. The document forbids itself the network."""
        scheme = {"auto": "light dark"}.get(self.data["theme"], self.data["theme"])
        title = escape(self.data["title"] or "Token microscope")
        return PAGE.format(title=title, scheme=scheme, block=self.html)

    def save(self, path: str | Path) -> Path:
        """Write the microscope to a file, atomically.

        Args:
            path: a name that ends in .html for a page, in .png for the still picture.

        Returns:
            The path.

        Raises:
            ValueError: the name has another ending.
        """
        path = Path(path)
        check("path", str(path), path.suffix in (".html", ".png"), "a name in .html or .png")
        if path.suffix == ".html":
            write_text(path, self.page())
        else:
            with atomic_path(path) as temporary:
                self.figure().savefig(temporary, format="png")
        return path

    def figure(self, *, width: int = 88) -> Figure:
        """The first view as a matplotlib figure: the tokens with their numbers beneath.

        A title names the response, and its score where the table has a column score. A prompt that
        all responses share stands above them. Short prompts that differ stand in the titles.
        Colours are those of the page. A ratio is shown by its logarithm, which is 0 for 1.

        Args:
            width: characters per line.
        """
        column = self._column
        strips = {}
        for title, tokens, values in self._view():
            while title in strips:
                title += " "  # two tables may hold the same title after cleaning
            strips[title] = (tokens, values)
        shared = self._shared_prompt()
        heading = f"prompt: {visible(shared.strip())}" if shared else ""
        return token_strips(strips, limit=column["limit"] or 0.0, width=width, heading=heading)

    def _repr_html_(self) -> str:
        return self.html

    def _repr_mimebundle_(
        self, include: object | None = None, exclude: object | None = None
    ) -> dict[str, str]:
        return {"text/html": self.html, "text/plain": str(self)}

    def __str__(self) -> str:
        texts = sum(len(side["frames"][0]["texts"]) for side in self.data["sides"])
        picture = (
            f"The still picture of the same view is {self.still}."
            if self.still
            else 'save("name.png") writes a still picture of the same view.'
        )
        return (
            f"Token microscope: {texts} response{'s' * (texts != 1)}, token by token, coloured by "
            f"{self._column['label']}. It is interactive where scripts run. {picture}"
        )

    @property
    def _column(self) -> dict:
        return next(c for c in self.data["columns"] if c["name"] == self.data["column"])

    def _view(self) -> list[tuple[str, list[str], list[float]]]:
        """What is shown at first: (title, tokens, distances from the colour white) per text."""
        column, words, shown = self._column, self.data["words"], []
        known = describe(column["name"])
        name = f"log of the {column['label']}" if known.factor else column["label"]
        prompts = self._short_prompts()
        for side, step, entry in self._entries():
            parts = [side["title"], f"response {entry['text']}"]
            parts[1] += f' to "{prompts[entry["prompt"]]}"' if prompts else ""
            parts += [] if step is None else [f"step {step}"]
            parts += [] if column["name"] == "score" else _score(entry)
            values = entry["numbers"].get(column["name"], [None] * len(entry["tokens"]))
            values = [known.distance(_number(v)) for v in values]
            tokens = [words[i] for i in entry["tokens"]]
            shown.append((f"{', '.join(filter(None, parts))}: {name}", tokens, values))
        return shown

    def _entries(self) -> Iterator[tuple[dict, int | None, dict]]:
        """The responses that are shown at first: (table, training step, response)."""
        for side, text in filter(None, (self.data["left"], self.data["right"])):
            side = self.data["sides"][side]
            frame = _frame(side, self.data["step"])
            for entry in frame["texts"]:
                if text in ("all", entry["text"]):
                    yield side, frame["step"], entry

    def _shared_prompt(self) -> str:
        """The prompt of all responses shown at first; empty if they differ or are not known."""
        found = {entry.get("prompt") for _, _, entry in self._entries()}
        place = found.pop()
        return "" if found or place is None else self.data["prompts"][place]

    def _short_prompts(self) -> dict[int, str]:
        """Number of a prompt -> its text for a title; empty if they are the same or one is long."""
        found = {entry.get("prompt") for _, _, entry in self._entries()}
        if len(found) == 1 or None in found:
            return {}
        texts = {
            place: visible(self.data["prompts"][place].strip())
            for place in found
            if place is not None
        }
        return texts if max(map(len, texts.values())) <= SHORT else {}

    def _fallback(self) -> str:
        """The first view as HTML without a script."""
        limit = self._column["limit"]
        parts = [f"<b>{escape(self.data['title'])}</b>"] if self.data["title"] else []
        if shared := self._shared_prompt():
            parts.append(f"<p><b>Prompt:</b> {escape(shared.strip())}</p>")
        parts += [token_strip_html(t, v, title=title, limit=limit) for title, t, v in self._view()]
        note = (
            "Blue is high, orange is low. Scripts do not run here, so this is a still view. In "
            "JupyterLab, run the cell or trust the notebook, then point at a token."
        )
        picture = f" A picture with all numbers: {self.still}" if self.still else ""
        return "".join(parts) + f"<p>{escape(note + picture)}</p>"


def microscope(
    table: pd.DataFrame | Mapping[str, pd.DataFrame],
    column: str = "advantage",
    *,
    title: str = "",
    text: int | Literal["all"] | None = None,
    beside: int | Literal["all"] | None = None,
    step: int | None = None,
    limits: Mapping[str, float] | None = None,
    still: str = "",
    theme: Literal["auto", "light", "dark"] = "auto",
) -> Microscope:
    """The token microscope: responses as coloured tokens, and all numbers of the token pointed at.

    Args:
        table: a row a token, as `evaluate.token_table` makes it. `text` says which response,
            `position` counts its tokens from 0, `token` is the token's text. `prompt`, `step` (of
            training) and `chosen` (False for a tool's token) may be there. Every other column of
            numbers or booleans can be chosen as colour; NaN means no value. `alternatives` and
            `ref_alternatives` hold lists of (token, probability), the five likeliest tokens under
            the actor and under the reference. A mapping from title to table shows two models or two
            runs side by side.
        column: the column that colours the tokens at first.
        title: a heading.
        text: the response shown at first, "all" for all of them; the first one by default.
        beside: a response shown beside it. With two tables it is the same response of the second
            table by default; with one table nothing stands beside it by default.
        step: the training step shown at first; the first step by default.
        limits: column -> end of its colour scale. By default it is the largest value. The scale
            is the same for all steps and all tables, so colours can be compared.
        still: path of a picture of the same view, named where scripts do not run.
        theme: colours of the page; "auto" follows JupyterLab, VS Code or the reader's system.

    Returns:
        A `Microscope`. A notebook shows it; `save` writes a page or a picture.

    Raises:
        ValueError: the table is empty or lacks a column, or there is no such response or step.
    """
    data = microscope_data(table, limits)
    names = [c["name"] for c in data["columns"]]
    check("column", column, column in names, f"a column of numbers: {', '.join(names)}")
    check("theme", theme, theme in ("auto", "light", "dark"), "auto, light or dark")
    for name in limits or {}:
        check("limits", name, name in names, f"a column of numbers: {', '.join(names)}")
    steps = data["steps"]
    if step is not None:
        check("step", step, step in steps, f"one of {', '.join(map(str, steps)) or 'no steps'}")
    step = steps[0] if step is None and steps else step
    step = None if step is None else int(step)
    left, right = _panes(data["sides"], step, text, beside)
    data |= {"title": clean(title), "column": column, "theme": theme, "step": step}
    data |= {"left": left, "right": right}
    return Microscope(data, clean(still))


def _panes(
    sides: list[dict], step: int | None, text: int | str | None, beside: int | str | None
) -> tuple[list, list | None]:
    """What stands left and right at first: [number of the table, response], or None for nothing."""
    numbers = _texts(sides[0], step)
    left = numbers[0] if text is None else text
    check("text", left, left == "all" or left in numbers, _one_of(numbers))
    second = min(1, len(sides) - 1)
    others = _texts(sides[second], step)
    if beside is None and second:
        beside = left if left == "all" or left in others else others[0]
    if beside is None:
        return [0, _plain(left)], None
    check("beside", beside, beside == "all" or beside in others, _one_of(others))
    return [0, _plain(left)], [second, _plain(beside)]


@cache
def _asset(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8").strip()


def _frame(side: dict, step: int | None) -> dict:
    """The frame of a step. A side without this step shows its last one before, or its first."""
    before = [f for f in side["frames"] if f["step"] is None or step is None or f["step"] <= step]
    return before[-1] if before and step is not None else side["frames"][0]


def _texts(side: dict, step: int | None) -> list[int]:
    return [entry["text"] for entry in _frame(side, step)["texts"]]


def _plain(text: int | str) -> int | str:
    return text if text == "all" else int(text)  # JSON knows no integer of numpy


def _one_of(numbers: list[int]) -> str:
    return f'"all" or one of {", ".join(map(str, numbers))}'


def _score(entry: dict) -> list[str]:
    """The score of a response for its title; nothing if its tokens have none, or several."""
    found = set(entry["numbers"].get("score", [])) - {None}
    if len(found) != 1:
        return []
    score = _number(found.pop())
    return [f"score {score:.0f}" if score.is_integer() else f"score {number(score)}"]


def _number(value: float | str | None) -> float:
    return float("nan") if value is None else float(value)
