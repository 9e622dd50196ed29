"""Commands of the classroom: course."""

from typing import Annotated

import typer

from minirlhf.cli.terminal import say

app = typer.Typer()


@app.command()
def course(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="Numbers or first letters of notebooks, such as 05 or 06_ppo.",
            show_default="all",
        ),
    ] = None,
):
    """Run the course's notebooks and save their outputs.

    With FAST=1 in the environment they read recorded results instead of computing them.

    Example: minirlhf course 05 06
    """
    try:
        from minirlhf.classroom.course import build, notebook_sources
    except ModuleNotFoundError as error:
        raise ValueError(
            f"`course` needs {error.name}: run `python -m pip install -r requirements-dev.txt`."
        ) from None
    for source in notebook_sources(names):
        path, seconds = build(source)
        say(f"{path.name}: {seconds:.0f} s")
