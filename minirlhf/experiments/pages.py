"""Generated tables in README.md and docs/*.md, each written between two marks.

A mark is a comment on a line of its own: `<!-- tour -->` before the table, `<!-- /tour -->` after
it. Each table of TABLES stands once, on any page.
"""

import re
from collections.abc import Callable
from pathlib import Path

from minirlhf.experiments.records import RESULTS, load_results
from minirlhf.loops.family import markdown
from minirlhf.loops.losses import LOSSES
from minirlhf.runtime import ROOT, write_text

METHODS = {  # column of the page's table -> column of the record
    "gold": "gold",
    "proxy": "proxy",
    "ensemble": "ensemble",
    "lexicon": "lexicon",
    "KL, nats": "kl",
    "tokens": "length",
    "distinct-2": "distinct_2",
    "commonest opening": "opening_share",
}
ACCURACY = ("reward model", "bag of words", "human ceiling", "mean probability")
IN_SUMMARY = ("SFT", "best-of-16", "PPO", "DPO", "GRPO")
MARK = re.compile(r"^<!-- (/?)([\w-]+) -->$", re.MULTILINE)


def methods_table(folder: Path = RESULTS) -> str:
    """Every method of the tour under every judge: means over seeds."""
    return _means(load_results("tour", folder=folder), "method", "method", METHODS)


def summary_table(folder: Path = RESULTS) -> str:
    """The tour in two rows, gold score and KL: means over seeds."""
    rows = load_results("tour", folder=folder)
    lines = [["", *IN_SUMMARY], ["---"] * (1 + len(IN_SUMMARY))]
    for title, column in (
        ("gold score: predicted human rating, -4 to 4", "gold"),
        ("KL from SFT, nats", "kl"),
    ):
        means = (_mean([r for r in rows if r["method"] == name], column) for name in IN_SUMMARY)
        lines.append([title, *(f"{mean:.2f}" for mean in means)])
    return _table(lines)


def reward_table(folder: Path = RESULTS) -> str:
    """The reward model against people, by band of the rating gap: means over seeds."""
    rows = load_results("reward_model", folder=folder)
    rows = [row | {"band": f"{row['low']:g} to {row['high']:g}"} for row in rows]
    columns = {name: name for name in ACCURACY}
    return _means(rows, "band", "rating gap (mean of the other raters)", columns)


def algorithms_table(folder: Path = RESULTS) -> str:
    """GRPO and its family: the choices of each row."""
    return markdown()


def losses_table(folder: Path = RESULTS) -> str:
    """The preference losses: what each reads, and its settings."""
    lines = [["name", "reads", "log-probability of a response", "reference", "settings"]]
    lines.append(["---"] * len(lines[0]))
    for name, row in LOSSES.items():
        settings = ", ".join(f"{key} {value}" for key, value in row.settings.items())
        reads = "labelled responses" if row.single else "pairs"
        how = "mean over tokens" if row.mean else "sum over tokens"
        reference = "with the KL of each position" if row.kl else "yes" if row.reference else "no"
        lines.append([f"`{name}`", reads, how, reference, settings])
    return _table(lines)


TABLES: dict[str, Callable[[Path], str]] = {
    "tour": methods_table,
    "summary": summary_table,
    "reward": reward_table,
    "algorithms": algorithms_table,
    "losses": losses_table,
}


def fill_pages(root: Path = ROOT, folder: Path = RESULTS) -> list[Path]:
    """Write each table between its marks. Returns the pages that changed.

    Args:
        root: the folder with README.md and docs.
        folder: where the records are.
    """
    pages = pages_to_fill(root)
    tables = {name: table(folder) for name, table in TABLES.items()}
    changed = []
    for path, text in pages.items():
        filled = text
        for name, table in tables.items():
            filled = between_marks(filled, name, table)
        if filled != text:
            write_text(path, filled)
            changed.append(path)
    return changed


def between_marks(page: str, name: str, table: str) -> str:
    """The page with this table between the marks of this name."""
    between = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
    return re.sub(between, lambda marks: marks[1] + table + marks[2], page, flags=re.DOTALL)


def pages_to_fill(root: Path = ROOT) -> dict[Path, str]:
    """The text of each page, after a check of its marks.

    A long command calls this first, so that a wrong mark stops it before it trains.

    Raises:
        ValueError: a mark is unknown or has no partner, or a table stands on no page or twice.
    """
    paths = [root / "README.md", *sorted(root.glob("docs/*.md"))]
    pages = {path: path.read_text(encoding="utf-8") for path in paths if path.is_file()}
    places: dict[str, list[str]] = {name: [] for name in TABLES}
    for path, text in pages.items():
        for name in _marked(text, path.relative_to(root).as_posix()):
            places[name].append(path.relative_to(root).as_posix())
    for name, found in places.items():
        if not found:
            raise ValueError(
                f"The table '{name}' stands on no page: put '<!-- {name} -->' and "
                f"'<!-- /{name} -->', each on a line of its own, into README.md or a page of docs."
            )
        if len(found) > 1:
            raise ValueError(f"The table '{name}' stands on {' and '.join(found)}; keep one.")
    return pages


def _marked(text: str, page: str) -> list[str]:
    """The names of the tables of a page. Each opening mark is followed by its closing mark."""
    names, opened = [], ""
    for close, name in [*MARK.findall(text), ("end", "")]:
        if name and name not in TABLES:
            raise ValueError(
                f"The mark '<!-- {close}{name} -->' in {page} names no table; it must be one of "
                f"{', '.join(TABLES)}."
            )
        if opened and (close, name) != ("/", opened):
            raise ValueError(f"'<!-- {opened} -->' in {page} is not followed by its closing mark.")
        if close == "/" and not opened:
            raise ValueError(f"'<!-- /{name} -->' in {page} does not follow its opening mark.")
        opened = "" if close else name
        names += [opened] if opened else []
    return names


def _means(rows: list[dict], key: str, title: str, columns: dict[str, str]) -> str:
    lines = [[title, *columns], ["---"] * (1 + len(columns))]
    for value in dict.fromkeys(row[key] for row in rows):
        same = [row for row in rows if row[key] == value]
        lines.append([value, *(f"{_mean(same, column):.2f}" for column in columns.values())])
    return _table(lines)


def _mean(rows: list[dict], column: str) -> float:
    return sum(row[column] for row in rows) / len(rows)


def _table(lines: list[list[str]]) -> str:
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)
