"""Build the site: README, docs, the executed notebooks, and the source with its comments beside it.

    python docs/site/build.py [OUT]

The pages go to OUT, out/site by default. Open OUT/index.html in a browser; no server is needed.
Nothing is loaded from outside: the script for formulas comes from a pinned package
(requirements-site.txt).
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from annotate import page  # noqa: E402  (a file beside this one)

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
LINK = re.compile(r"(\]\()([^)\s#:]+)(#[^)\s]*)?(\))")
DOCS = (
    "install your_own command_line algorithms losses metrics notation results speed code teaching "
    "troubleshooting"
).split()
MARK = "_static/minirlhf.css"  # a folder with this file is a site of ours
ROOMS = (
    "core runtime models tasks rewards loops search evaluate show experiments classroom cli"
).split()


def build(out: Path) -> None:
    """Build the site in a temporary folder, and replace `out` after it is complete.

    Raises:
        ValueError: `out` holds something that is no site.
        subprocess.CalledProcessError: Sphinx found an error, such as a link to nowhere.
    """
    strangers = out.exists() and any(out.iterdir()) and not (out / MARK).exists()
    if strangers:
        raise ValueError(f"{out} is not a site of this command; give another folder.")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".site.") as folder:
        source, pages = Path(folder) / "source", Path(folder) / "pages"
        assemble(source)
        command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-j", "2"]
        doctrees = Path(folder) / "doctrees"
        subprocess.run([*command, "-d", str(doctrees), str(source), str(pages)], check=True)
        if out.exists():
            shutil.rmtree(out)
        os.replace(pages, out)


def assemble(source: Path) -> None:
    """Write the pages that Sphinx reads into a folder, at their places in the repository."""
    waiting = [Path("README.md"), Path("LICENSE")]
    waiting += [Path("docs") / f"{name}.md" for name in DOCS]
    waiting += [path.relative_to(ROOT) for path in (ROOT / "notebooks").glob("*.ipynb")]
    waiting += [path.relative_to(ROOT) for path in (ROOT / "notebooks/solutions").glob("*.ipynb")]
    waiting += [path.relative_to(ROOT) for path in (ROOT / "minirlhf").rglob("*.py")]
    done: set[Path] = set()
    while waiting:
        path = waiting.pop()
        if path not in done:
            done.add(path)
            waiting += copy(path, source)
    index = source / "index.md"
    index.write_text(index.read_text("utf-8") + "\n" + contents(done), "utf-8")
    static = source / "_static"
    static.mkdir()
    shutil.copy(HERE / "site.css", source / MARK)
    (package,) = find_spec("sphinx-mathjax-offline").submodule_search_locations
    shutil.copy(Path(package) / "static" / "mathjax" / "tex-svg.js", static / "mathjax.js")
    shutil.copy(HERE / "conf.py", source)


def copy(path: Path, source: Path) -> list[Path]:
    """Write one file as a page, or copy it. Returns the files that it links to."""
    linked: list[Path] = []

    def relinked(text: str) -> str:
        return LINK.sub(lambda match: _link(match, path, linked.append), text)

    target = source / page_of(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".md":
        target.write_text(relinked((ROOT / path).read_text("utf-8")), "utf-8")
    elif path.suffix == ".py":
        target.write_text(page((ROOT / path).read_text("utf-8"), path.as_posix()), "utf-8")
    elif path.suffix == ".ipynb":
        notebook = json.loads((ROOT / path).read_text("utf-8"))
        notebook["metadata"].pop("widgets", None)  # a widget needs a running kernel
        for cell in notebook["cells"]:
            if cell["cell_type"] == "markdown":
                text = cell["source"]
                cell["source"] = relinked(text if isinstance(text, str) else "".join(text))
        target.write_text(json.dumps(notebook), "utf-8")
    else:
        shutil.copy(ROOT / path, target)
    return linked


def page_of(path: Path) -> Path:
    """Where a file of the repository stands in the site's source."""
    if path == Path("README.md"):
        return Path("index.md")
    return path.with_name(path.name + ".md") if path.suffix == ".py" else path


def _link(match: re.Match, path: Path, linked: Callable[[Path], None]) -> str:
    """A link with its target in the site.

    Raises:
        ValueError: the target is not a file of the repository.
    """
    start, given, anchor, end = match.groups()
    target = Path(os.path.normpath(path.parent / given))
    if not (ROOT / target).is_file():
        raise ValueError(f"{path} links to {given}, which is not a file of the repository.")
    linked(target)
    there = os.path.relpath(page_of(target), page_of(path).parent)
    return f"{start}{there}{anchor or ''}{end}"


def contents(pages: set[Path]) -> str:
    """The site's table of contents."""
    lessons = sorted(p for p in pages if p.match("notebooks/*.ipynb"))
    solutions = sorted(p for p in pages if p.match("notebooks/solutions/*.ipynb"))
    code = sorted(p for p in pages if p.suffix == ".py")
    parts = [
        ("Lessons", lessons),
        ("Solutions", solutions),
        ("Reference", [Path("docs") / f"{name}.md" for name in DOCS]),
        ("Source", [p for p in code if len(p.parts) == 2 or p.parts[0] != "minirlhf"]),
        *(
            (f"Source: {room}", [p for p in code if p.parts[:2] == ("minirlhf", room)])
            for room in ROOMS
        ),
    ]
    shown = {page for _, group in parts for page in group} | {Path("README.md")}
    rest = sorted(p for p in pages - shown if p.suffix in (".md", ".ipynb"))
    parts.append(("More", rest))
    return "\n".join(
        "\n".join(
            [
                "```{toctree}",
                ":hidden:",
                ":maxdepth: 1",
                f":caption: {caption}",
                "",
                *(str(page_of(p).with_suffix("").as_posix()) for p in group),
                "```",
                "",
            ]
        )
        for caption, group in parts
        if group
    )


if __name__ == "__main__":
    build(Path(sys.argv[1] if len(sys.argv) > 1 else "out/site").resolve())
