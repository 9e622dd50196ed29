"""The package without its repository: a wheel, installed into an empty environment elsewhere."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile

import pytest

from minirlhf.runtime import CACHE, ROOT

MEGABYTE = 1_000_000


def test_every_folder_of_the_package_is_packed():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {path.parent for path in (ROOT / "minirlhf").rglob("*.py")}
    found = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert set(listed) == found | {"minirlhf.data"}


def test_every_requirement_is_pinned_at_or_above_its_lower_bound():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    bounds = [*project["dependencies"], *(line for lines in extras.values() for line in lines)]
    pins = {}
    for name in ("requirements.txt", "requirements-dev.txt"):
        for line in (ROOT / name).read_text().split():
            package, version = line.split("==")
            pins[package] = numbers(version)
    assert {bound.split(">=")[0] for bound in bounds} == set(pins)
    for bound in bounds:
        package, version = bound.split(">=")
        assert numbers(version) <= pins[package], bound


def numbers(version):
    return tuple(int(part) for part in re.findall(r"\d+", version))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel of the committed and changed files. The copy keeps the repository free of build/."""
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "copy"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for name in ("minirlhf", "data"):
        shutil.copytree(
            ROOT / name, copy / name, ignore=shutil.ignore_patterns("cache", "__pycache__")
        )
    run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, copy], folder)
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The commands' folder of an environment that holds the wheel and what it declares, no more."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    pinned = ROOT / "requirements.txt"  # so that the machine's own torch is taken
    run([python, "-m", "pip", "install", "-q", "-c", pinned, wheel], folder)
    return folder / "bin"


def run(command, folder, **environment):
    """What a command prints when it runs in `folder` without this repository's settings."""
    done = finished(command, folder, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def finished(command, folder, **environment):
    """The finished process of `run`, whether it failed or not."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "MINIRLHF"))}
    return subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env=inherited | environment | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )


pytestmark = pytest.mark.wheel


def test_the_wheel_holds_models_and_records_and_nothing_fetched(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert "minirlhf/py.typed" in names and "minirlhf/show/microscope.js" in names
    for folder in (ROOT / "data" / "checkpoints").iterdir():
        if folder.is_dir():
            assert f"minirlhf/data/checkpoints/{folder.name}/model.safetensors" in names
    for record in (ROOT / "data" / "results").glob("*.jsonl"):
        assert f"minirlhf/data/results/{record.name}" in names
    assert not [name for name in names if "cache" in name or name.startswith(("tests", "docs"))]
    assert wheel.stat().st_size < 60 * MEGABYTE


def test_the_commands_work_in_an_empty_folder(installed, tmp_path):
    printed = run([installed / "minirlhf", "score", "A warm, funny film."], tmp_path)
    assert "prefix + EOS" in printed
    assert run([installed / "minirlhf", "sample", "a film"], tmp_path).strip()
    assert not list(tmp_path.iterdir())


LINES = """
from minirlhf import experiments, loops, models, rewards, runtime
from datasets import Dataset

def short(prompts, completions, **columns):
    return [-len(text) for text in completions]

model, tokenizer = models.load_policy("tiny-reviews-sft")
pairs = Dataset.from_list([{"prompt": "A film\\n", "chosen": "Good.", "rejected": "Bad."}])
model, history = loops.train_dpo(model, tokenizer, pairs, loops.DPOConfig(steps=2))
score = rewards.reward_function(short, tokenizer)
config = loops.GroupConfig(steps=1, prompts_per_step=1, group_size=2, minibatch_size=2)
model, history = loops.train_group(model, tokenizer, ["A film\\n"], score, config)
assert len(experiments.results("tour")) > 3
print(runtime.commit(), runtime.CACHE)
"""


def test_the_package_is_imported_from_someone_elses_code(installed, tmp_path):
    subprocess.run(["git", "init", "-q", tmp_path], check=True)  # another project's repository
    (tmp_path / "mine.py").write_text(LINES)
    home = tmp_path / "home"
    printed = run([installed / "python", "mine.py"], tmp_path, HOME=str(home), XDG_CACHE_HOME="")
    commit, cache = printed.split()[-2:]
    assert commit == "unknown" and cache == str(home / ".cache" / "minirlhf")


def test_the_tour_writes_its_report(installed, tmp_path):
    cache = tmp_path / "cache"
    shutil.copytree(CACHE, cache)  # as `minirlhf data` leaves it
    run([installed / "minirlhf", "tour", "--reduced"], tmp_path, MINIRLHF_CACHE=str(cache))
    assert (tmp_path / "out" / "tour" / "report.html").is_file()


@pytest.mark.parametrize("command", ["grade .", "experiment leash", "smollm2"])
def test_what_needs_the_repository_says_so(installed, tmp_path, command):
    (tmp_path / "anna.py").write_text("def ppo_loss(): ...\n")
    done = finished([installed / "minirlhf", *command.split()], tmp_path)
    words = " ".join((done.stdout + done.stderr).split())
    assert done.returncode != 0
    assert "needs the repository of minirlhf" in words and "Traceback" not in words
