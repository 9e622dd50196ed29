"""`make stress`: what the tests measured is printed at the end; with --record it goes to README.md."""

from datetime import date
from pathlib import Path

import pytest

from minirlhf.experiments.pages import between_marks
from minirlhf.runtime import commit, write_text

PAGE = Path(__file__).with_name("README.md")


def pytest_addoption(parser):
    parser.addoption(
        "--record", action="store_true", help="write the figures of `make stress` to its README"
    )
    parser.addoption("--kills", type=int, default=100, help="how often each loop's run is killed")


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
        said = f"Recorded on {date.today()} at commit {commit()}."
        table = "\n".join([said, "", "| what | figure | seconds |", "|---|---|---|", *rows, ""])
        write_text(PAGE, between_marks(PAGE.read_text(encoding="utf-8"), "figures", table))
        terminalreporter.write_line(f"recorded in {PAGE}")
