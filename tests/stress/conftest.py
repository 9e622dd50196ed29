"""`make stress`: what the tests measured is printed at the end; with --record it goes to README.md."""

from datetime import date
from pathlib import Path

import pytest

from minirlhf.experiments.pages import between_marks
from minirlhf.runtime import commit, write_text

PAGE = Path(__file__).with_name("README.md")
BEGUN = pytest.StashKey[str]()  # the commit at which the tests began
CELL = "architecture and loop"  # a test's property: [architecture, loop], a cell of the table


def pytest_addoption(parser):
    parser.addoption(
        "--record", action="store_true", help="write the figures of `make stress` to its README"
    )
    parser.addoption("--kills", type=int, default=100, help="how often each loop's run is killed")


def pytest_configure(config):
    """The commit is that of the begin: pages may be edited while the tests run, for an hour."""
    config.stash[BEGUN] = commit(PAGE)


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.stress)


def pytest_terminal_summary(terminalreporter, config):
    """The figures of the tests that passed, and the table of architectures and loops."""
    reports = terminalreporter.stats.get("passed", [])
    said = f"Recorded on {date.today()} at commit {config.stash[BEGUN]}."
    table = cells({"holds": reports, "fails": terminalreporter.stats.get("failed", [])})
    if table:
        terminalreporter.write_sep("-", "architecture and loop")
        terminalreporter.write_line(table)
        if config.getoption("record"):
            record("architectures", said, table)
    rows = [
        f"| {name} | {figure} | {report.duration:.0f} |"
        for report in sorted(reports, key=lambda report: report.nodeid)
        if report.when == "call" and "/stress/" in report.nodeid
        for name, figure in report.user_properties
        if name != CELL
    ]
    if not rows:
        return
    terminalreporter.write_sep("-", "figures")
    terminalreporter.write_line("\n".join(rows))
    if config.getoption("record"):
        record("figures", said, "\n".join(["| what | figure | seconds |", "|---|---|---|", *rows]))
        terminalreporter.write_line(f"recorded in {PAGE}")


def cells(reports):
    """A table of the tests that have a CELL: a row an architecture, a column a loop."""
    found = {
        tuple(cell): word
        for word, made in reports.items()
        for report in made
        if report.when == "call"
        for name, cell in report.user_properties
        if name == CELL
    }
    if not found:
        return ""
    architectures, loops = (list(dict.fromkeys(names)) for names in zip(*found, strict=True))
    rows = [
        f"| {a} | {' | '.join(found.get((a, loop), 'not run') for loop in loops)} |"
        for a in sorted(architectures)
    ]
    return "\n".join(
        [f"| architecture | {' | '.join(loops)} |", "|---" * (len(loops) + 1) + "|", *rows]
    )


def record(mark, said, table):
    """Write a table between two marks of the page, below the day and the commit."""
    page = between_marks(PAGE.read_text(encoding="utf-8"), mark, f"{said}\n\n{table}\n")
    write_text(PAGE, page)
