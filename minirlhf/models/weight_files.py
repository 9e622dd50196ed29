"""The files of weights in a model's folder, and what is in them."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import safe_open
from transformers import PreTrainedModel
from transformers.utils import cached_file

from minirlhf.runtime import check

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
# tables that older versions of transformers saved and newer ones compute
COMPUTED = re.compile(r"(inv_freq|masked_bias|position_ids|\.(attn|attention|self_attn)\.bias)$")


def read_table(file: Path) -> dict[str, Any]:
    """The names and values of a JSON file.

    Raises:
        ValueError: it is not valid JSON, or not a table of names and values.
    """
    try:
        table = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"its {file.name} is not a valid JSON file ({error}).") from error
    if not isinstance(table, dict):
        raise ValueError(f"its {file.name} holds no table of names and values.")
    return table


def file_of(source: str | Path, name: str) -> Path | None:
    """The path of one file of a folder, or of a model on the hub; None if there is no such file."""
    if isinstance(source, Path):
        return source / name if (source / name).is_file() else None
    found = cached_file(source, name, _raise_exceptions_for_missing_entries=False)
    return None if found is None else Path(found)


def check_texts(field: str, values: Iterable) -> None:
    for value in values:
        check(field, value, isinstance(value, str), "a text")


def check_weight_files(source: str | Path) -> None:
    """Check that the weights are in safetensors files, and that those which an index names exist.

    Raises:
        ValueError: they are not.
    """
    if file_of(source, SINGLE):
        return
    if file_of(source, INDEX) is None:
        if isinstance(source, Path) and (why := other_weights(source)):
            raise ValueError(why)
        return  # transformers says which files it looked for
    names = _shards(source)
    if not names:
        raise ValueError(f"its {INDEX} names no file.")
    if foreign := [name for name in names if not name.endswith(".safetensors")]:
        raise ValueError(
            f"its {INDEX} names {foreign[0]}; weights are read from .safetensors files alone, "
            "because other formats can run code."
        )
    if outside := [name for name in names if Path(name).name != name]:
        raise ValueError(
            f"its {INDEX} names {outside[0]!r}; it must name files of the same folder, without a "
            "path."
        )
    lost = [name for name in names if isinstance(source, Path) and not (source / name).is_file()]
    if lost:
        raise ValueError(
            f"{len(lost)} of the {len(names)} files that its {INDEX} names are missing, such as "
            f"{lost[0]}; copy or download the whole folder."
        )


def _weight_map(source: str | Path) -> dict[str, str]:
    """The file of each weight that an index names; empty if there is no index."""
    index = file_of(source, INDEX)
    if index is None:
        return {}
    files = read_table(index).get("weight_map", {})
    check(f"weight_map in its {INDEX}", files, isinstance(files, dict), "a table")
    check_texts(f"A file in the weight_map of its {INDEX}", files.values())
    return files


def _shards(source: str | Path) -> list[str]:
    """The names of the files that an index names, sorted; none if there is no index."""
    return sorted(set(_weight_map(source).values()))


def weight_files(source: str | Path) -> list[Path]:
    """The safetensors files that hold a model's weights."""
    names = [SINGLE] if file_of(source, SINGLE) else _shards(source)
    return [file for name in names if (file := file_of(source, name))]


def check_whole_file(file: Path) -> None:
    """Refuse a file of weights that holds no weights, or only their beginning."""
    with open(file, "rb") as stored:
        first = stored.read(8)
    if first == b"version ":
        raise ValueError(
            f"its {file.name} is a pointer of git-lfs and not the weights; run `git lfs pull`."
        )
    if len(first) < 8 or int.from_bytes(first, "little") + 8 > file.stat().st_size:
        raise ValueError(f"its {file.name} is cut off, or is no safetensors file.")


def check_held_once(source: str | Path, files: list[Path]) -> None:
    """Refuse a weight that two files hold, or none: of two, transformers takes the last one."""
    places: dict[str, Path] = {}
    for file in files:
        with safe_open(file, "pt") as stored:
            for name in stored.keys():  # noqa: SIM118  # no dict
                if name in places:
                    raise ValueError(
                        f"its weight {name} is in {places[name].name} and in {file.name}; remove "
                        "the files that do not belong to this model, or download it again."
                    )
                places[name] = file
    named = set() if file_of(source, SINGLE) else set(_weight_map(source))
    if lost := sorted(named - places.keys()):
        raise ValueError(
            f"its {INDEX} names {lost[0]}, which none of its files holds; copy or download the "
            "whole folder."
        )


def check_as_stored(model: PreTrainedModel, file: Path) -> None:
    """Refuse whole numbers as weights (quantised without a word in the config): they are cast."""
    with safe_open(file, "pt") as stored:
        for name in dict(model.named_parameters()).keys() & set(stored.keys()):
            kind = stored.get_slice(name).get_dtype()
            if kind not in ("F64", "F32", "F16", "BF16"):
                raise ValueError(
                    f"its weight {name} is stored as {kind}, so it is quantised and cannot be "
                    "trained; give the model that it was made from."
                )


def stored_tables(files: list[Path], model: PreTrainedModel) -> set[str]:
    """The names of stored tables that this version of transformers computes."""
    stored: set[str] = set()
    for file in files:
        with safe_open(file, "pt") as opened:
            stored |= set(opened.keys())
    return {name for name in stored - model.state_dict().keys() if COMPUTED.search(name)}


def is_of_a_layer(name: str, model: PreTrainedModel) -> bool:
    """Whether the model has the layer that a table is named after."""
    layer = re.match(r"(.*\.\d+)\.", f".{name}")
    known = (f".{part}" for part, _ in model.named_modules())
    return layer is None or any(part.endswith(layer[1]) for part in known)


def check_masks(tables: set[str], file: Path) -> None:
    """Refuse numbers in the place of a causal mask (attn.bias), which is not read."""
    with safe_open(file, "pt") as stored:
        for name in tables & set(stored.keys()):
            mask = stored.get_tensor(name)
            if name.endswith(".bias") and not ((mask == 0) | (mask == 1)).all():
                raise ValueError(
                    f"its weight {name} has the name of a causal mask, of 0 and 1, and holds other "
                    "numbers; they would be lost: rename the weight."
                )


def other_weights(folder: Path) -> str | None:
    """A sentence about weights in another format than safetensors, if there are only such."""
    if any(folder.glob("*.safetensors")):
        return None
    names = sorted(p.name for p in folder.iterdir() if p.is_file())
    if quantised := [name for name in names if name.endswith(".gguf")]:
        return (
            f"it holds a GGUF file ({quantised[0]}), whose weights are quantised and cannot be "
            "trained; give the folder with safetensors that it was made from."
        )
    if pickled := [name for name in names if name.endswith(PICKLED)]:
        return (
            f"its weights are in {pickled[0]}, a format that can run code when it is read; convert "
            "them to model.safetensors."
        )
    return None
