"""What a model's folder holds, checked before its weights are read.

Nothing here runs a model's own Python, and nothing unpickles: weights come from safetensors alone.
A name on the hub is checked like a folder, file by file.
"""

import json
import math
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers import (
    initialization as init,
)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)
from transformers.utils import cached_file

from minirlhf.runtime import check

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
TYPES = {"model_type": str, "architectures": list, "quantization_config": dict}  # in config.json
MANY = 10_000  # layers, heads, experts or labels; no model has more
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
# tables that older versions of transformers saved and newer ones compute
COMPUTED = re.compile(r"(inv_freq|masked_bias|position_ids|\.(attn|attention|self_attn)\.bias)$")


def read_whole(
    auto: type[AutoModelForCausalLM] | type[AutoModelForSequenceClassification], source: str | Path
) -> PreTrainedModel:
    """`auto.from_pretrained(source)` on the CPU in float32: all weights, and only these.

    transformers itself fills missing weights with random numbers and leaves out weights that the
    config does not ask for.

    Raises:
        ValueError: the weights are adapters; or the config asks for what this package does not run
            (`read_config`); or generation_config.json is damaged; or the weights do not fit the
            config: missing, too many, of another shape, not finite, quantised, not safetensors.
    """
    if adapters := _file(source, "adapter_config.json"):
        raise ValueError(_adapters(adapters))
    config = read_config(source, policy=auto is AutoModelForCausalLM)
    if generation := _file(source, "generation_config.json"):
        read_table(generation)  # transformers itself leaves a damaged one out
    check_weight_files(source)
    for file in _weight_files(source):
        _check_whole_file(file)
    _check_held_once(source, _weight_files(source))
    _check_size(auto, config, _weight_files(source))
    with _described(), torch.device("cpu"):  # transformers reads into the default device
        model, found = auto.from_pretrained(
            source,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    wrong = sorted([*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])])
    if wrong:
        raise ValueError(
            f"{len(wrong)} weights that its config.json asks for are missing or of another shape, "
            f"such as {wrong[0]}."
        )
    files = _weight_files(source)
    tables = _tables(files, model)
    strange = {name for name in tables if not _is_of_a_layer(name, model)}
    extra = sorted(set(found["unexpected_keys"]) - tables | strange)
    if extra:
        raise ValueError(
            f"{len(extra)} of its weights have no place in the model that its config.json "
            f"describes, such as {extra[0]}; they would be lost: correct the config.json."
        )
    for name, weight in model.named_parameters():
        if not weight.isfinite().all():
            raise ValueError(f"its weight {name} holds NaN or infinity.")
    for file in files:
        _check_as_stored(model, file)
        _check_masks(tables, file)
    return model


def _tables(files: list[Path], model: PreTrainedModel) -> set[str]:
    """The names of stored tables that this version of transformers computes."""
    stored: set[str] = set()
    for file in files:
        with safe_open(file, "pt") as opened:
            stored |= set(opened.keys())
    return {name for name in stored - model.state_dict().keys() if COMPUTED.search(name)}


def _is_of_a_layer(name: str, model: PreTrainedModel) -> bool:
    """Whether the model has the layer that a table is named after."""
    layer = re.match(r"(.*\.\d+)\.", f".{name}")
    known = (f".{part}" for part, _ in model.named_modules())
    return layer is None or any(part.endswith(layer[1]) for part in known)


def _check_masks(tables: set[str], file: Path) -> None:
    """Refuse numbers in the place of a causal mask (attn.bias), which is not read."""
    with safe_open(file, "pt") as stored:
        for name in tables & set(stored.keys()):
            mask = stored.get_tensor(name)
            if name.endswith(".bias") and not ((mask == 0) | (mask == 1)).all():
                raise ValueError(
                    f"its weight {name} has the name of a causal mask, of 0 and 1, and holds other "
                    "numbers; they would be lost: rename the weight."
                )


@contextmanager
def _described() -> Iterator[None]:
    """Say that a config is wrong where transformers raises what says nothing to a user."""
    try:
        yield
    except (LookupError, TypeError, AttributeError, ArithmeticError, AssertionError) as error:
        raise ValueError(
            "transformers cannot build the model that its config.json and generation_config.json "
            f"describe ({type(error).__name__}: {' '.join(str(error).split())}); correct them."
        ) from error


def _check_whole_file(file: Path) -> None:
    """Refuse a file of weights that holds no weights, or only their beginning."""
    with open(file, "rb") as stored:
        first = stored.read(8)
    if first == b"version ":
        raise ValueError(
            f"its {file.name} is a pointer of git-lfs and not the weights; run `git lfs pull`."
        )
    if len(first) < 8 or int.from_bytes(first, "little") + 8 > file.stat().st_size:
        raise ValueError(f"its {file.name} is cut off, or is no safetensors file.")


def _check_held_once(source: str | Path, files: list[Path]) -> None:
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
    named = set() if _file(source, SINGLE) else set(_weight_map(source))
    if lost := sorted(named - places.keys()):
        raise ValueError(
            f"its {INDEX} names {lost[0]}, which none of its files holds; copy or download the "
            "whole folder."
        )


def _check_size(auto: Any, config: PreTrainedConfig, files: list[Path]) -> None:
    """Refuse a config of a model more than twice as large as the files, before memory is taken.

    transformers would fill the difference with random numbers. Names and shapes are compared after
    reading, because it renames weights of older versions. Twice: the files hold tied weights once.
    """
    stored = 0
    for file in files:
        with safe_open(file, "pt") as opened:
            shapes = (opened.get_slice(name).get_shape() for name in opened.keys())  # noqa: SIM118
            stored += sum(math.prod(shape) for shape in shapes)
    with _described(), torch.device("meta"), init.meta_device_safe_creation_ops():
        model = auto.from_config(config, dtype=torch.float32, trust_remote_code=False)
    size = sum(p.numel() for p in model.parameters())
    if files and size > 2 * stored:
        raise ValueError(
            f"its config.json describes a model of type {config.model_type!r} with {size:,} "
            f"weights, but its files hold {stored:,}; correct the model_type and the sizes in "
            "config.json, or copy the whole folder again."
        )


def _check_as_stored(model: PreTrainedModel, file: Path) -> None:
    """Refuse whole numbers as weights (quantised without a word in the config): they are cast."""
    with safe_open(file, "pt") as stored:
        for name in dict(model.named_parameters()).keys() & set(stored.keys()):
            kind = stored.get_slice(name).get_dtype()
            if kind not in ("F64", "F32", "F16", "BF16"):
                raise ValueError(
                    f"its weight {name} is stored as {kind}, so it is quantised and cannot be "
                    "trained; give the model that it was made from."
                )


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


def check_tables(source: str | Path, names: Iterable[str]) -> None:
    """Raise a ValueError for the first of these files that is there and holds no table."""
    for name in names:
        if file := _file(source, name):
            read_table(file)


def check_weight_files(source: str | Path) -> None:
    """Check that the weights are in safetensors files, and that those which an index names exist.

    Raises:
        ValueError: they are not.
    """
    if _file(source, SINGLE):
        return
    if _file(source, INDEX) is None:
        if isinstance(source, Path) and (why := _other_weights(source)):
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
    index = _file(source, INDEX)
    if index is None:
        return {}
    files = read_table(index).get("weight_map", {})
    check(f"weight_map in its {INDEX}", files, isinstance(files, dict), "a table")
    _check_texts(f"A file in the weight_map of its {INDEX}", files.values())
    return files


def _shards(source: str | Path) -> list[str]:
    """The names of the files that an index names, sorted; none if there is no index."""
    return sorted(set(_weight_map(source).values()))


def _check_texts(field: str, values: Iterable) -> None:
    for value in values:
        check(field, value, isinstance(value, str), "a text")


def _weight_files(source: str | Path) -> list[Path]:
    """The safetensors files that hold a model's weights."""
    names = [SINGLE] if _file(source, SINGLE) else _shards(source)
    return [file for name in names if (file := _file(source, name))]


def read_config(source: str | Path, *, policy: bool) -> PreTrainedConfig:
    """The config of a model; a padding id beyond the vocabulary is taken out.

    Masks say what is padding, so its id is of no account. transformers would refuse to build such
    a model.

    Args:
        policy: whether the model is to write responses.

    Raises:
        ValueError: config.json describes a model that this package does not run. The message says
            what it is and what is allowed.
    """
    file = _file(source, "config.json")
    raw = read_table(file) if file else {}
    _check_origin(raw)
    pad, size = raw.get("pad_token_id"), raw.get("vocab_size")
    beyond = isinstance(pad, int) and (pad < 0 or (isinstance(size, int) and pad >= size))
    mended: dict[str, Any] = {"pad_token_id": None} if beyond else {}
    with _described():
        config = AutoConfig.from_pretrained(source, trust_remote_code=False, **mended)
    if config._attn_implementation not in (None, "eager", "sdpa"):
        raise ValueError(
            f"its config.json asks for the attention {config._attn_implementation!r}; it must be "
            "sdpa or eager."
        )
    _check_positions(config)
    if why := _why_not_run(config, policy=policy):
        raise ValueError(
            f"{why}; give a causal language model of text alone, such as GPT-2, Llama, Qwen or "
            "Mistral."
        )
    return config


def _check_positions(config: PreTrainedConfig) -> None:
    """Refuse rotary positions of a kind that transformers does not have."""
    rope = getattr(config, "rope_parameters", None)
    rope = rope if isinstance(rope, dict) else {}
    known = ("default", *sorted(ROPE_INIT_FUNCTIONS))
    for table in (rope, *rope.values()):  # some models have one for each kind of layer
        kind = table.get("rope_type", "default") if isinstance(table, dict) else "default"
        check("rope_type in its config.json", kind, kind in known, f"one of {', '.join(known)}")


def _check_origin(raw: dict[str, Any]) -> None:
    """Refuse a config.json that needs Python from elsewhere, quantised or pickled weights."""
    for name, allowed in TYPES.items():
        value = raw.get(name)
        fits = value is None or isinstance(value, allowed)
        check(f"{name} in its config.json", value, fits, f"of type {allowed.__name__}")
    for name in ("dtype", "torch_dtype"):
        value = raw.get(name)
        known = isinstance(getattr(torch, str(value), None), torch.dtype) or value == "auto"
        fits = value is None or isinstance(value, dict) or known
        check(f"{name} in its config.json", value, fits, "the name of a torch dtype, as float32")
    _check_numbers(raw)
    _check_texts("A name in the architectures of its config.json", raw.get("architectures") or [])
    kind = raw.get("model_type")
    if kind not in CONFIG_MAPPING_NAMES and "auto_map" in raw:
        raise ValueError(
            f"its type {kind!r} is not part of transformers and would run Python from the model's "
            "own files (auto_map), which we never do; give a model of a type that transformers has."
        )
    quantised = raw.get("quantization_config")
    if quantised is not None:
        method = quantised.get("quant_method", "an unknown method")
        raise ValueError(
            f"its weights are quantised ({method}), and such weights cannot be trained; give the "
            "model that it was made from, in float32, bfloat16 or float16."
        )
    weights = raw.get("transformers_weights")
    if weights is not None and not str(weights).endswith(".safetensors"):
        raise ValueError(
            f"its config.json names the weights {weights!r}; only .safetensors files are read."
        )


def _check_numbers(raw: dict[str, Any]) -> None:
    """Refuse numbers that no model has, before transformers builds a list of that length."""
    for name, value in raw.items():
        if not isinstance(value, int | float):
            continue
        if re.match("num_|n_layer", name):
            check(f"{name} in its config.json", value, value <= MANY, f"at most {MANY:,}")
        if "eps" in name:
            small = 0 <= value <= 1
            check(f"{name} in its config.json", value, small, "a small number, from 0 to 1")


def _why_not_run(config: PreTrainedConfig, *, policy: bool) -> str | None:
    """What a model is that this package does not run; None if it may be one that it runs."""
    kind, name = config.model_type, next(iter(config.architectures or []), "")
    if config.is_encoder_decoder:
        return f"it is an encoder-decoder model (type {kind!r})"
    if config.get_text_config() is not config:
        return f"it reads pictures or sound as well (type {kind!r})"
    if not policy:
        return None
    if re.search("Classification|QuestionAnswering|Reward", name):
        return f"it is a classifier ({name}), which writes no text"
    # False: unless its config says so, it does not read from left to right alone
    masked = getattr(config, "is_decoder", None) is False
    if masked and kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return f"it is a masked language model (type {kind!r}), which reads later words too"
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return f"a model of type {kind!r} does not write text"
    return None


def why_not_a_model(folder: Path) -> str:
    """What a folder without config.json, or a file, holds: the end of a sentence about it."""
    if folder.is_file():
        return "is a file; give the folder that holds it, with config.json and model.safetensors."
    if not os.access(folder, os.R_OK | os.X_OK):
        return "is a folder that you may not open: its permissions lack r or x."
    if (folder / "adapter_config.json").is_file():
        return f"is no model: {_adapters(folder / 'adapter_config.json')}"
    if why := _other_weights(folder):
        return f"is no model: {why}"
    if any(folder.glob("*.safetensors")):
        return "holds weights, but no config.json that describes them; add it."
    if any(folder.glob("tokenizer*")):
        return "holds a tokenizer, but no model: config.json and model.safetensors are missing."
    return "is a folder without config.json, so it is no model."


def _adapters(file: Path) -> str:
    base = read_table(file).get("base_model_name_or_path")
    of = f"the model {base!r}" if isinstance(base, str) and base else "another model"
    return (
        f"its weights are adapters (adapter_config.json) of {of}; add them to that model with "
        "peft's merge_and_unload(), save the result and give its folder."
    )


def _other_weights(folder: Path) -> str | None:
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


def _file(source: str | Path, name: str) -> Path | None:
    """The path of one file of a folder, or of a model on the hub; None if there is no such file."""
    if isinstance(source, Path):
        return source / name if (source / name).is_file() else None
    found = cached_file(source, name, _raise_exceptions_for_missing_entries=False)
    return None if found is None else Path(found)
