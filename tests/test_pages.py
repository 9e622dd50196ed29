"""README.md and docs/*.md: their length, links and marks."""

import re
from pathlib import Path

import nbformat
import pytest

from tests.notebooks.budget import words

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
NOTEBOOKS = sorted((ROOT / "notebooks").rglob("*.ipynb"))


def without_code(text: str) -> str:
    return re.sub(r"```.*?```|`[^`\n]+`", "", text, flags=re.S)


def links(page: Path) -> list[str]:
    """The addresses of a page's links and pictures."""
    return re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text(encoding="utf-8")))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    headings = re.findall(r"^#+ +(.+)$", text, flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken(page: Path) -> list[str]:
    """The relative links of a page that lead to no file, or to no heading of it."""
    wrong = []
    for link in dict.fromkeys(links(page)):
        if re.match(r"\w+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page if not path else page.parent / path
        if not target.exists() or (anchor and anchor not in anchors(target)):
            wrong.append(link)
    return wrong


def test_the_readme_is_short():
    text = README.read_text(encoding="utf-8")
    assert words(text) <= 900
    assert len(text.splitlines()) <= 110
    assert len(text.split()) <= 1500  # with its tables, code and links


def test_every_reader_finds_the_way_in_on_the_first_screens():
    before = README.read_text(encoding="utf-8").split("## Where to start")[0]
    assert len(before.splitlines()) <= 40


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_relative_link_leads_to_a_file_and_a_heading(page):
    assert broken(page) == []


def test_every_page_of_docs_is_linked_from_the_readme():
    linked = {link.partition("#")[0] for link in links(README)}
    assert {f"docs/{page.name}" for page in PAGES[1:]} <= linked


def test_every_notebook_is_linked_from_the_readme():
    notebooks = {f"notebooks/{path.name}" for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert notebooks == {link for link in links(README) if link.endswith(".ipynb")}


def test_broken_links_are_found(tmp_path):
    page, other = tmp_path / "page.md", tmp_path / "other.md"
    other.write_text("# Title\n## GRPO's family, and more\n```\n# no heading\n```\n")
    page.write_text(
        "## Here\n[a](other.md) [b](other.md#grpos-family-and-more) [c](#here) [d](https://x.org)\n"
        "[e](gone.md) [f](other.md#gone) [g](#gone) ![h](gone.png) [i](other.md#no-heading)\n"
        "`[j](gone.md)`\n```\n[k](gone.md)\n```\n"
    )
    assert broken(page) == ["gone.md", "other.md#gone", "#gone", "gone.png", "other.md#no-heading"]


def misread(text: str) -> list[str]:
    """Marks that a reader of Markdown takes for something else than the author meant.

    In the summary of a folded text, Markdown and formulas are not rendered. A line of a paragraph
    or of a formula that begins with + or - becomes an item of a list.
    """
    summaries = re.findall(r"<summary>(.*?)</summary>", text, flags=re.S)
    found = [summary for summary in summaries if re.search(r"[*`$]|\]\(", summary)]
    lines = re.sub(r"```.*?```", "", text, flags=re.S).split("\n")
    for before, line in zip(lines, lines[1:], strict=False):
        in_text = re.match(r"[^\s|<#>*+-]", before) and not re.match(r"\d+\.", before)
        if in_text and re.match(r"[+-] ", line) and not before.endswith(":"):
            found.append(line)
    return found


def markdown(path: Path) -> list[str]:
    if path.suffix == ".md":
        return [path.read_text(encoding="utf-8")]
    cells = nbformat.read(path, 4).cells
    return [cell.source for cell in cells if cell.cell_type == "markdown"]


@pytest.mark.parametrize("path", [*PAGES, *NOTEBOOKS], ids=lambda p: str(p.relative_to(ROOT)))
def test_no_mark_is_misread(path):
    assert [found for text in markdown(path) for found in misread(text)] == []


def test_misread_marks_are_found():
    assert misread("the reward (prefix\n+ EOS) is") == ["+ EOS) is"]
    assert misread("$$ a\n- b $$") == ["- b $$"]
    assert misread("<summary>Is *a* equal to $b$?</summary>") == ["Is *a* equal to $b$?"]
    assert misread("<summary>Is <em>a</em> equal to b?</summary>\n\nYes:\n\n- one\n- two") == []
