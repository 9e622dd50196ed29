"""One number per token, drawn over the text: blue is high, orange is low, white is 0."""

import html
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.patches import Rectangle

from minirlhf.show.look import new_figure

LOW, ZERO, HIGH = "#d95f02", "#ffffff", "#3b6fb6"
SPAN = (
    "color:#222;padding:2px 1px;border-radius:3px;"
    "print-color-adjust:exact;-webkit-print-color-adjust:exact"
)
_MAP = matplotlib.colors.LinearSegmentedColormap.from_list("reward", [LOW, ZERO, HIGH])


def strip_colour(value: float, limit: float) -> str:
    """Hex colour of a value on a scale from -limit to limit.

    NaN is grey. A value beyond the scale has the colour of the scale's end.
    """
    if math.isnan(value):
        return "#cccccc"
    share = 0.5 if not 0 < limit < math.inf else min(max(value / limit, -1), 1) / 2 + 0.5
    return to_hex(_MAP(0.1 + 0.8 * share))  # the ends of the scale stay light enough for black text


def visible(token: str) -> str:
    """A token with its leading space, line ends and control characters made visible."""
    shown = printable(token.replace("\n", "\u23ce").replace("\t", "\u21e5"))
    return ("\u00b7" + shown[1:] if shown.startswith(" ") else shown) or "\u2205"


def token_strip(
    tokens: list[str],
    values: Sequence[float],
    *,
    title: str = "",
    limit: float | None = None,
    width: int = 88,
    legend: bool = True,
) -> Figure:
    """The text as coloured boxes with the number under each token, wrapped like text.

    Args:
        values: one number per token.
        limit: the end of the colour scale; the largest |value| by default.
        width: characters per line. legend: the colour scale at the upper right.

    Raises:
        ValueError: the numbers of tokens and values differ.
    """
    return token_strips({title: (tokens, values)}, limit=limit, width=width, legend=legend)


def token_strips(
    strips: Mapping[str, tuple[list[str], Sequence[float]]],
    *,
    limit: float | None = None,
    width: int = 88,
    legend: bool = True,
    heading: str = "",
) -> Figure:
    """Several strips below each other on one colour scale, so that their colours can be compared.

    Args:
        strips: title -> (tokens, values), one number per token.
        heading: a text above all strips, in at most three lines. Otherwise as `token_strip`.
    """
    if not strips:
        raise ValueError("token_strips needs at least one strip.")
    strips = {
        title: (list(tokens), [float(v) for v in values])
        for title, (tokens, values) in strips.items()
    }
    for title, (tokens, values) in strips.items():
        if len(tokens) != len(values):
            raise ValueError(
                f"Strip {title!r} has {len(tokens)} tokens but {len(values)} values; "
                "it needs one value per token."
            )
    limit = _limit([v for _, values in strips.values() for v in values]) if limit is None else limit
    legend = legend and limit > 0
    # the heading's lines are parts without tokens; the colour scale stands beside the first one
    above = textwrap.wrap(heading, int(0.85 * width), max_lines=3, placeholder="\u2026")
    parts: list[tuple[str, list[list[tuple]]]] = [(line, []) for line in above]
    parts += [(title, _line_up(*strip, width)) for title, strip in strips.items()]
    heads = [0.36] * len(above[1:]) + [0.68] * bool(above)
    heads += [
        0.68 if title or (legend and not index) else 0.16
        for index, (title, _) in enumerate(parts[len(above) :], len(above))
    ]
    rows = sum(head + len(lines) for head, (_, lines) in zip(heads, parts, strict=True))
    figure = new_figure(width * 0.105, 0.62 * rows + 0.04, layout=None)
    axes = figure.add_axes((0.01, 0.0, 0.98, 1.0))
    axes.set(xlim=(0, width), ylim=(rows, 0))
    axes.axis("off")
    y = 0.0
    for head, (title, lines) in zip(heads, parts, strict=True):
        for line in lines:
            for x, size, text, value in line:
                _box(axes, x, y + head, size, text, value, limit)
            y += 1
        if title:
            place = (0.012, 1 - (y - len(lines) + 0.42) / rows)
            text = {"fontsize": 10.5, "va": "center", "color": "#222222", "parse_math": False}
            figure.text(*place, _drawable(printable(title), "DejaVu Sans"), **text)
        y += head
    if legend:
        _colour_scale(figure, limit, 1 - 0.36 / rows)
    return figure


def _line_up(tokens: list[str], values: Sequence[float], width: int) -> list[list[tuple]]:
    """Lines of (column, width, text, value)."""
    lines: list[list[tuple]] = [[]]
    column = 0.0
    for token, value in zip(tokens, values, strict=True):
        text = _drawable(visible(token))
        if len(text) >= width - 2:  # one line holds the longest token
            text = text[: width - 3] + "\u2026"
        size = max(len(text), 5) + 1.4
        if column + size > width and lines[-1]:
            lines.append([])
            column = 0.0
        lines[-1].append((column, size, text, value))
        column += size
    return lines


def _box(
    axes: Axes, x: float, y: float, size: float, text: str, value: float, limit: float
) -> None:
    colour = strip_colour(value, limit)
    frame: dict[str, Any] = {"facecolor": colour, "edgecolor": "#999999", "linewidth": 0.5}
    axes.add_patch(Rectangle((x, y + 0.06), size - 0.25, 0.54, **frame))
    middle: dict[str, Any] = {"ha": "center", "va": "center", "parse_math": False}
    centre = x + (size - 0.25) / 2
    axes.text(centre, y + 0.34, text, fontsize=10, family="monospace", color="#222222", **middle)
    number = "" if math.isnan(value) else f"{value:+z.2f}"
    axes.text(centre, y + 0.78, number, fontsize=8, color="#444444", **middle)


def _colour_scale(figure: Figure, limit: float, middle: float) -> None:
    """What the colours mean, at the upper right: orange is -limit, white 0, blue +limit."""
    high = 0.16 / figure.get_figheight()
    axes = figure.add_axes((0.80, middle - high / 2, 0.12, high))
    colours = [[to_rgb(strip_colour(limit * (2 * i / 63 - 1), limit)) for i in range(64)]]
    axes.imshow(colours, aspect="auto", extent=(-1, 1, 0, 1))
    axes.set(xticks=[], yticks=[])
    text: dict[str, Any] = {
        "va": "center",
        "fontsize": 8,
        "color": "#222222",
        "transform": axes.transAxes,
    }
    axes.text(-0.04, 0.45, f"{-limit:.2g}", ha="right", **text)
    axes.text(0.5, 0.45, "0", ha="center", **text)
    axes.text(1.04, 0.45, f"+{limit:.2g}", ha="left", **text)


def token_strip_html(
    tokens: list[str], values: Iterable[float], *, title: str = "", limit: float | None = None
) -> str:
    """A strip as inline HTML, with its colour scale; the number of a token appears on hover.

    All text is escaped. A line may break after every token.
    """
    values = [float(v) for v in values]
    limit = _limit(values) if limit is None else limit
    spans = "<wbr>".join(
        f'<span style="background:{strip_colour(v, limit)};{SPAN}" '
        f'title="{"no value" if math.isnan(v) else f"{v:+.3f}"}">'
        f"{escape(visible(t))}</span>"
        for t, v in zip(tokens, values, strict=True)
    )
    scale = "".join(
        f'<span style="background:{strip_colour(end, limit)};{SPAN}">{end:+z.2g}</span>'
        for end in ((-limit, 0.0, limit) if limit > 0 else ())
    )
    head = f"<b>{escape(title)}</b> {scale}"
    return f'<p style="line-height:1.9;font-family:monospace">{head}<br>{spans}</p>'


def escape(text: str) -> str:
    """Text of models and data, safe in HTML and in its attributes.

    Characters that do not print are replaced, except line ends and tabs.
    """
    return html.escape(printable(str(text), keep="\n\t"), quote=True)


def printable(text: str, keep: str = "") -> str:
    """Text without characters that could harm a page or a terminal.

    Control characters, lone surrogates and marks that turn the reading direction become U+FFFD.
    """
    return "".join(c if c.isprintable() or c in keep else "\ufffd" for c in text)


def _drawable(text: str, family: str = "monospace") -> str:
    """Text in which characters that the figure's font lacks (Chinese, emoji) become U+FFFD.

    The HTML strip keeps them, since a browser has fonts for them.
    """
    font = get_font(findfont(family))
    return "".join(c if font.get_char_index(ord(c)) else "\ufffd" for c in text)


def _limit(values: list[float]) -> float:
    return max((abs(v) for v in values if math.isfinite(v)), default=0.0)
