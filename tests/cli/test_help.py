"""The help pages: content, layout, and a list of commands that loads without torch."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer import rich_utils
from typer.testing import CliRunner

from minirlhf import cli
from minirlhf.cli.commands import (
    CLASS,
    COMMANDS,
    EXPERIMENTS,
    GROUP,
    LISTED,
    START,
    TRAIN,
    TURNS,
    loaded,
)
from minirlhf.cli.options import DATA, LOSS, MODEL, OPTIMISER, RUN, SAMPLING
from minirlhf.experiments.practice import TASKS
from minirlhf.loops.family import FAMILY
from minirlhf.loops.online import ONLINE
from minirlhf.loops.preference import LOSSES
from minirlhf.runtime import SMOLLM2
from minirlhf.tasks.hub import DATASETS

WIDTH = 80


@pytest.fixture(scope="module")
def pages():
    """Every help page, by command, at 80 columns; "" is the list of commands."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rich_utils, "MAX_WIDTH", WIDTH)
        return {name: page(name) for name in ("", *COMMANDS)}


def page(name: str) -> str:
    result = CliRunner().invoke(cli.app, [name, "--help"] if name else ["--help"])
    assert result.exit_code == 0, name
    return result.output


def words(text: str) -> str:
    """A page without its borders and line ends."""
    return " ".join(re.sub("[│╭╮╰╯─]", " ", text).split())


def panels(text: str) -> list[str]:
    return re.findall("╭─ (.*?) ─", text)


def test_the_list_has_panels_and_a_line_for_each_command(pages):
    assert panels(pages[""]) == ["Options", START, TRAIN, GROUP, TURNS, EXPERIMENTS, CLASS]
    for name, row in COMMANDS.items():
        line = rf"│ {re.escape(name)} +{re.escape(row.summary)} +│"
        assert bool(re.search(line, pages[""])) == (not row.hidden), name


def test_every_method_is_a_command():
    assert {*FAMILY} == {*LISTED[GROUP, "group"]}
    assert {*ONLINE} == {*LISTED[TRAIN, "online"]}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_page_begins_with_the_summary_and_has_an_example(name, pages):
    said, row = words(pages[name]), COMMANDS[name]
    assert loaded(name).help.split("\n\n")[0] == row.summary
    assert row.summary in said and row.summary.endswith(".")
    own = "experiment" if name == "grid" else name
    assert f"Example: minirlhf {own}" in said


@pytest.mark.parametrize("name", COMMANDS)
def test_options_are_grouped_and_every_option_has_help(name, pages):
    allowed = ["Arguments", MODEL, DATA, OPTIMISER, LOSS, SAMPLING, RUN]
    shown = panels(pages[name])
    assert shown == [panel for panel in allowed if panel in shown] and shown[-1] == RUN
    for parameter in loaded(name).params:
        assert parameter.help and parameter.help.endswith("."), (name, parameter.name)


def test_no_line_is_truncated_at_eighty_columns(pages):
    for name, text in pages.items():
        assert "\u2026" not in text, name  # rich ends truncated text with an ellipsis
        assert max(map(len, text.splitlines())) <= WIDTH, name


def test_examples_use_existing_commands_and_options(pages):
    for name in COMMANDS:
        example = loaded(name).help.split("Example: minirlhf ")[1].split()
        known = {option for p in loaded(example[0]).params for option in p.opts}
        assert {word for word in example if word.startswith("--")} <= known, name


def test_the_help_lists_every_loss_dataset_and_task(pages):
    said = {name: words(text) for name, text in pages.items()}
    assert all(name in said["dpo"] for name in (*LOSSES, *DATASETS, SMOLLM2))
    assert all(f"{name}:" in said[page] for name in TASKS for page in ("grpo", "pretrain"))
    assert "kto" not in said["rso"] and "hinge" in said["rso"]


def test_defaults_are_shown_with_units(pages):
    for shown in (
        "KL coefficient: reward units per nat, 0 or more. Larger keeps the policy nearer to "
        "--model. [default: 0.5]",
        "Peak learning rate, above 0. [default: 0.0001]",
        "Training steps, 1 or more. [default: 24]",
    ):
        assert shown in words(pages["ppo"])
    assert "[default: (24; 400 for arithmetic)]" in words(pages["grpo"])
    assert "[default: (tiny-reviews-sft for reviews; tiny-steps for arithmetic)]" in words(
        pages["grpo"]
    )


def test_grid_is_a_hidden_alias_of_experiment(pages):
    assert COMMANDS["grid"].hidden and "grid" not in words(pages[""])
    assert loaded("grid").callback.__wrapped__ is loaded("experiment").callback.__wrapped__
    same = words(pages["grid"]).replace("root grid", "root experiment")
    assert same == words(pages["experiment"])


def test_an_unknown_command_suggests_the_nearest_command():
    result = CliRunner().invoke(cli.app, ["tuor"])
    assert result.exit_code == 2 and "Did you mean 'tour'?" in words(result.output)


def test_help_and_completion_do_not_import_torch():
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom minirlhf import cli\n"
        "assert CliRunner().invoke(cli.app, ['--help']).exit_code == 0\n"
        "assert not {'torch', 'transformers', 'datasets', 'matplotlib'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    typed = {"_MINIRLHF_COMPLETE": "complete_bash", "COMP_WORDS": "minirlhf dr", "COMP_CWORD": "1"}
    code = "import sys; sys.argv = ['minirlhf']; from minirlhf import cli; cli.main()"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | typed, capture_output=True, text=True
    )
    assert done.stdout.split() == ["dr-grpo"], done.stderr


def test_shell_completion_can_be_installed(pages):
    assert "--install-completion" in pages[""]


@pytest.mark.parametrize(
    "path", sorted(Path(cli.__file__).parent.glob("*.py")), ids=lambda p: p.name
)
def test_a_module_of_the_command_line_has_at_most_200_lines(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 200
