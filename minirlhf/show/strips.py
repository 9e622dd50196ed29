"""One number a token, drawn over the text: blue is high, orange is low (safe for colour-blind eyes), white is 0."""

import html
import math

import matplotlib
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

LOW, ZERO, HIGH = "#d95f02", "#ffffff", "#3b6fb6"
_MAP = matplotlib.colors.LinearSegmentedColormap.from_list("reward", [LOW, ZERO, HIGH])


def strip_colour(value: float, limit: float) -> str:
    """Hex colour of a value on a scale from -limit to limit; grey for NaN."""
    if math.isnan(value):
        return "#cccccc"
    share = 0.5 if limit <= 0 else min(max(value / limit, -1), 1) / 2 + 0.5
    return to_hex(_MAP(0.1 + 0.8 * share))  # the ends of the scale stay light enough for black text


def visible(token: str) -> str:
    """A token with its leading space, line ends and control characters made visible."""
    shown = token.replace("\n", "\u23ce").replace("\t", "\u21e5")
    shown = "".join(c if c.isprintable() else "\ufffd" for c in shown)
    return ("\u00b7" + shown[1:] if shown.startswith(" ") else shown) or "\u2205"


def token_strip(tokens: list[str], values, *, title: str = "", limit: float | None = None, width: int = 88) -> Figure:
    """The text as coloured boxes with the number under each token, wrapped like text.

    Args:
        values: one number a token. limit: the scale's end; the largest |value| by default. width: characters a line.
    """
    values = [float(v) for v in values]
    limit = _limit(values) if limit is None else limit
    rows, column = [[]], 0
    for token, value in zip(tokens, values, strict=True):
        text = visible(token)
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
            axes.add_patch(matplotlib.patches.Rectangle((x, y + 0.06), size - 0.25, 0.54, facecolor=strip_colour(value, limit),
                                                        edgecolor="#999999", linewidth=0.5))
            middle = x + (size - 0.25) / 2
            axes.text(middle, y + 0.34, text.replace("$", r"\$"), ha="center", va="center", fontsize=10, family="monospace")
            axes.text(middle, y + 0.78, f"{value:+.2f}", ha="center", va="center", fontsize=8, color="#444444")
    if title:
        figure.suptitle(title, fontsize=10.5, x=0.015, ha="left", y=0.99, va="top")
    return figure


def token_strip_html(tokens: list[str], values, *, title: str = "", limit: float | None = None) -> str:
    """The same as inline HTML; the number appears on hover. All text is escaped, lone surrogates replaced."""
    values = [float(v) for v in values]
    limit = _limit(values) if limit is None else limit
    spans = "".join(
        f'<span style="background:{strip_colour(v, limit)};padding:2px 1px;border-radius:3px" title="{v:+.3f}">{escape(visible(t))}</span>'
        for t, v in zip(tokens, values, strict=True))
    return f'<p style="line-height:1.9;font-family:monospace"><b>{escape(title)}</b><br>{spans}</p>'


def escape(text: str) -> str:
    """Text of models and data made safe for HTML, in an attribute too; what UTF-8 cannot hold is replaced."""
    return html.escape(str(text).encode("utf-8", "replace").decode("utf-8"), quote=True)


def _limit(values: list[float]) -> float:
    return max((abs(v) for v in values if not math.isnan(v)), default=0.0)
