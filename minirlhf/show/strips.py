"""One number a token, drawn over the text: blue is high, orange is low (safe for colour-blind eyes), white is 0."""

import html
import math

import matplotlib
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font

LOW, ZERO, HIGH = "#d95f02", "#ffffff", "#3b6fb6"
SPAN = "color:#222;padding:2px 1px;border-radius:3px;print-color-adjust:exact;-webkit-print-color-adjust:exact"
_MAP = matplotlib.colors.LinearSegmentedColormap.from_list("reward", [LOW, ZERO, HIGH])


def strip_colour(value: float, limit: float) -> str:
    """Hex colour of a value on a scale from -limit to limit; grey for NaN, an end of the scale for what lies beyond it."""
    if math.isnan(value):
        return "#cccccc"
    share = 0.5 if not 0 < limit < math.inf else min(max(value / limit, -1), 1) / 2 + 0.5
    return to_hex(_MAP(0.1 + 0.8 * share))  # the ends of the scale stay light enough for black text


def visible(token: str) -> str:
    """A token with its leading space, line ends and control characters made visible."""
    shown = printable(token.replace("\n", "\u23ce").replace("\t", "\u21e5"))
    return ("\u00b7" + shown[1:] if shown.startswith(" ") else shown) or "\u2205"


def token_strip(
    tokens: list[str], values, *, title: str = "", limit: float | None = None, width: int = 88
) -> Figure:
    """The text as coloured boxes with the number under each token, wrapped like text.

    Args:
        values: one number a token. limit: the scale's end; the largest |value| by default. width: characters a line.
    """
    values = [float(v) for v in values]
    limit = _limit(values) if limit is None else limit
    rows, column = [[]], 0
    for token, value in zip(tokens, values, strict=True):
        text = _drawable(visible(token))
        text = (
            text if len(text) < width - 2 else text[: width - 3] + "\u2026"
        )  # one line holds the longest token
        size = max(len(text), 5) + 1.4
        if column + size > width and rows[-1]:
            rows.append([])
            column = 0
        rows[-1].append((column, size, text, value))
        column += size
    figure = Figure(figsize=(width * 0.105, 0.62 * len(rows) + (0.45 if title else 0.15)), dpi=110)
    axes = figure.add_axes((0.01, 0.0, 0.98, 1 - 0.4 / figure.get_figheight() * bool(title)))
    axes.set(xlim=(0, width), ylim=(len(rows), 0))
    axes.axis("off")
    for y, row in enumerate(rows):
        for x, size, text, value in row:
            axes.add_patch(
                matplotlib.patches.Rectangle(
                    (x, y + 0.06),
                    size - 0.25,
                    0.54,
                    facecolor=strip_colour(value, limit),
                    edgecolor="#999999",
                    linewidth=0.5,
                )
            )
            middle = x + (size - 0.25) / 2
            axes.text(
                middle,
                y + 0.34,
                text,
                ha="center",
                va="center",
                fontsize=10,
                family="monospace",
                parse_math=False,
            )
            axes.text(
                middle,
                y + 0.78,
                f"{value:+z.2f}",
                ha="center",
                va="center",
                fontsize=8,
                color="#444444",
            )
    if title:
        figure.suptitle(
            printable(title),
            fontsize=10.5,
            x=0.015,
            ha="left",
            y=1 - 0.08 / figure.get_figheight(),
            va="top",
            parse_math=False,
        )
    return figure


def token_strip_html(
    tokens: list[str], values, *, title: str = "", limit: float | None = None
) -> str:
    """The same as inline HTML; the number appears on hover. All text is escaped; a line may break after every token."""
    values = [float(v) for v in values]
    limit = _limit(values) if limit is None else limit
    spans = "<wbr>".join(
        f'<span style="background:{strip_colour(v, limit)};{SPAN}" title="{v:+.3f}">{escape(visible(t))}</span>'
        for t, v in zip(tokens, values, strict=True)
    )
    return f'<p style="line-height:1.9;font-family:monospace"><b>{escape(title)}</b><br>{spans}</p>'


def escape(text: str) -> str:
    """Text of models and data made safe for HTML, in an attribute too; only line ends and tabs are kept of what does not print."""
    return html.escape(printable(str(text), keep="\n\t"), quote=True)


def printable(text: str, keep: str = "") -> str:
    """Control characters, lone surrogates and marks that turn the reading direction replaced: none may reach a page or a terminal."""
    return "".join(c if c.isprintable() or c in keep else "\ufffd" for c in text)


def _drawable(text: str) -> str:
    """Characters that the figure's font lacks (Chinese, emoji) become U+FFFD; a browser has fonts for them, the HTML keeps them."""
    font = get_font(findfont("monospace"))
    return "".join(c if font.get_char_index(ord(c)) else "\ufffd" for c in text)


def _limit(values: list[float]) -> float:
    return max((abs(v) for v in values if math.isfinite(v)), default=0.0)
