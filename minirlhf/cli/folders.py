"""Callbacks of the options that name a folder or a file: what is read, and what is written.

They import what they need when they are called, because torch is slow to import.
"""

from collections.abc import Callable
from pathlib import Path

import typer


def a_model(context: typer.Context, name: str | None) -> str | None:
    """The callback of an option for a model: refuse the folder of a run that was stopped."""
    from minirlhf.loops.checkpoint_file import unfinished
    from minirlhf.models.load import checkpoint
    from minirlhf.runtime.paths import resolved

    if name and (said := unfinished(Path(name))):
        raise ValueError(said)
    if name and (folder := checkpoint(name)):
        _check_apart(context, "read", resolved(folder), folder)
    return name


def _check_apart(context: typer.Context, use: str, folder: Path, given: Path) -> None:
    """Refuse a folder that the command both reads a model from and writes one to.

    Options are checked in the order in which they are given, so each is compared with those before.

    Args:
        use: "read" or "written".
        folder: without links. given: as the user wrote it.
    """
    seen = context.meta.setdefault("minirlhf.folders", {"read": {}, "written": {}})
    seen[use][folder] = given
    for same in seen["read"].keys() & seen["written"].keys():
        raise ValueError(
            f"--out is '{seen['written'][same]}', the folder of a model that this command reads, "
            "and the result would replace it; give another folder."
        )


def hold(folder: bool, model: bool = False, endings: tuple[str, ...] = ()) -> Callable:
    """The callback of an option for output: refuse at once what cannot be written or is in use.

    Args:
        folder: the option is a folder, else a file. model: the folder may hold only a model.
        endings: of the file's name; empty: any.
    """

    def callback(
        context: typer.Context, param: typer.CallbackParam, path: Path | None
    ) -> Path | None:
        from minirlhf.runtime import check, output_file, output_folder, straight
        from minirlhf.runtime.paths import of_a_model

        if path is None or context.resilient_parsing:
            return path
        fits = not endings or path.suffix in endings
        check(f"--{param.name}", str(path), fits, f"a file that ends in {' or '.join(endings)}")
        path = straight(path)
        held = output_folder(path, model=model) if folder else output_file(path)
        place = context.with_resource(held)  # until the command ends
        if model:
            _check_apart(context, "written", place, path)
        belongs = not folder and of_a_model(place)
        check("file", str(path), not belongs, "of another name: this one belongs to a model")
        return path

    return callback
