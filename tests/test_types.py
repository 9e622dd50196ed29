"""The types of the package hold: mypy with the settings of pyproject.toml."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def mypy(*arguments: str) -> subprocess.CompletedProcess:
    """mypy in a process of its own. Its cache is .mypy_cache: the first run takes the longest."""
    command = [sys.executable, "-m", "mypy", "--no-color-output", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_mypy_finds_no_error_in_the_package():
    done = mypy()
    assert done.returncode == 0, done.stdout + done.stderr


def test_mypy_finds_a_wrong_call(tmp_path):
    copied = tmp_path / "copied.py"
    source = (ROOT / "minirlhf" / "core" / "rejection.py").read_text(encoding="utf-8")
    copied.write_text(
        source + '\n\nrejection_sample("no tensor", beta=1.0, count=2)\n', encoding="utf-8"
    )
    done = mypy("--cache-dir", str(tmp_path / "cache"), str(copied))
    assert done.returncode == 1, done.stdout + done.stderr
    assert "copied.py" in done.stdout and 'incompatible type "str"' in done.stdout
