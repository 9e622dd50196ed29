"""`make stress`: what the tests measured is printed at the end; with --record it goes to README.md."""

import subprocess
from datetime import date
from pathlib import Path

import pytest

PAGE = Path(__file__).with_name("README.md")
START, END = "<!-- figures -->", "<!-- /figures -->"


def pytest_addoption(parser):
    parser.addoption(
        "--record", action="store_true", help="write the figures of `make stress` to its README"
    )


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.stress)


def pytest_terminal_summary(terminalreporter, config):
    """The figures of the tests that passed, as the rows of a table."""
    reports = terminalreporter.stats.get("passed", [])
    rows = [
        f"| {name} | {figure} | {report.duration:.0f} |"
        for report in sorted(reports, key=lambda report: report.nodeid)
        if report.when == "call" and "/stress/" in report.nodeid
        for name, figure in report.user_properties
    ]
    if not rows:
        return
    terminalreporter.write_sep("-", "figures")
    terminalreporter.write_line("\n".join(rows))
    if config.getoption("record"):
        PAGE.write_text(with_figures(PAGE.read_text(), rows, commit()))
        terminalreporter.write_line(f"recorded in {PAGE}")


def with_figures(page: str, rows: list[str], made_by: str) -> str:
    """The page with these rows between its two marks."""
    before, after = page.split(START)[0], page.split(END)[1]
    table = ["| what | figure | seconds |", "|---|---|---|", *rows]
    said = f"Recorded on {date.today()} at commit {made_by}."
    return before + "\n".join([START, said, "", *table, END]) + after


def commit() -> str:
    """The short name of the commit, with a plus where files were changed after it."""
    git = ["git", "-C", str(PAGE.parent), "describe", "--always", "--dirty=+", "--exclude=*"]
    return subprocess.run(git, capture_output=True, text=True).stdout.strip() or "unknown"
