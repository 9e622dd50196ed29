"""Paths of results: what may be written there, and which files belong to a model."""

import os
import stat
from pathlib import Path

from minirlhf.runtime.checks import check

PARTIAL = "training.safetensors"  # the checkpoint in a model's folder
LABELS = f"{PARTIAL}.labels.json"  # the labels that `prm` has sampled for it
MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-?????-of-?????.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "chat_template.jinja",
    "additional_chat_templates",
    "scalar.json",
    "minirlhf.json",
    "metrics.jsonl",
    PARTIAL,
    LABELS,
)  # what transformers and this package write into a model's folder; a save replaces these alone
SYSTEM_FILES = ("lost+found", ".DS_Store", "Thumbs.db", "desktop.ini", ".nfs*", ".Trash*")
OURS = ".minirlhf."  # how the names of our temporary files and locks begin


def of_a_model(path: Path) -> bool:
    """Whether a file in a folder belongs to a model."""
    is_file = not path.is_dir() or path.name == "additional_chat_templates"
    return is_file and any(path.match(name) for name in MODEL_FILES)


def reason(error: BaseException) -> str:
    """The cause of an error in a few words, without the names of temporary files."""
    first: BaseException | None = error
    while first is not None:
        if said := getattr(first, "strerror", None):  # what the system said
            return said
        first = first.__cause__
    return next(iter(str(error).splitlines()), repr(error)).rstrip(".")


def resolved(path: str | Path) -> Path:
    """The absolute path without links."""
    return Path(os.path.realpath(path))


def straight(path: Path) -> Path:
    """The path without "..", where it has one: the folder before it need not exist."""
    return resolved(path) if ".." in path.parts else path


def folder_of(path: str | Path) -> Path:
    """The folder that a path leads to, which need not exist yet.

    Raises:
        ValueError: the path leads to something else.
    """
    try:
        folder = resolved(path)
        is_there, is_link = folder.exists(), os.path.islink(path)
    except (OSError, ValueError) as error:  # a name that is too long or holds a null
        raise ValueError(f"{str(path)[:60]!r} is no folder's name: {reason(error)}.") from error
    _check_utf8("folder", folder)
    check("folder", str(path), not is_there or folder.is_dir(), "a folder, and this is a file")
    check("folder", str(path), folder != Path(folder.anchor), "below the root of the file system")
    end = "itself" if folder.is_symlink() else f"{folder}, which does not exist"
    allowed = f"a folder or a link to one, and this link leads to {end}"
    check("folder", str(path), is_there or not is_link, allowed)
    return folder


def check_file(path: str | Path) -> Path:
    """Check that a file may be written or replaced, and return its path without links.

    Raises:
        ValueError: the path is a folder, a device, a pipe or a write-protected file.
    """
    try:
        file = resolved(path)
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        _check_utf8("file", file)
        return file
    except NotADirectoryError:
        above = next(each for each in file.parents if each.exists())
        raise ValueError(f"{file} cannot be written: {above} is a file, not a folder.") from None
    except (OSError, ValueError) as error:  # too long
        raise ValueError(f"{str(path)[:60]!r} is no file's name: {reason(error)}.") from error
    _check_utf8("file", file)
    check("file", str(path), not stat.S_ISDIR(mode), "a file, and this is a folder")
    check("file", str(path), stat.S_ISREG(mode), "a file, and this is a device or a pipe")
    allowed = os.access(path, os.R_OK | os.W_OK)
    check("file", str(path), allowed, "a file that you may read and write")
    return file


def _check_utf8(kind: str, path: Path) -> None:
    """Check that a path is text: safetensors and tokenizers write no other.

    Raises:
        ValueError: it holds bytes that are not UTF-8.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        name = ascii(str(path)[:60])
        raise ValueError(
            f"The name of the {kind} {name} is not UTF-8; give another name."
        ) from None


def check_folder(path: str | Path) -> None:
    """Check that a model may be written to `path`.

    Files of the operating system, such as lost+found, are left alone.

    Raises:
        ValueError: it is no folder, or it holds files that do not belong to a model or that may not
            be replaced.
    """
    check_strangers(path, folder_of(path))


def check_strangers(path: str | Path, folder: Path) -> None:
    """Check that `folder`, which `path` leads to, holds only a model that may be replaced."""
    known = (*SYSTEM_FILES, f"{OURS}*")
    try:
        inside = list(folder.iterdir()) if folder.exists() else []
    except OSError as error:
        raise ValueError(f"The folder {path} cannot be read: {reason(error)}.") from error
    strangers = [
        p.name for p in inside if not (of_a_model(p) or any(p.match(name) for name in known))
    ]
    check(
        "folder",
        str(path),
        not strangers,
        f"new or hold only a model, but it also holds {', '.join(sorted(strangers)[:3])}; "
        "give another folder",
    )
    for each in inside:
        if of_a_model(each) and not each.is_dir():
            check_file(each)
