"""What a model's folder holds, checked before its weights are read.

Nothing here runs a model's own Python, and nothing unpickles: weights come from safetensors alone.
A name on the hub is checked like a folder, file by file.
"""

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

from minirlhf.models.weight_files import (
    check_as_stored,
    check_held_once,
    check_masks,
    check_texts,
    check_weight_files,
    check_whole_file,
    file_of,
    is_of_a_layer,
    other_weights,
    read_table,
    stored_tables,
    weight_files,
)
from minirlhf.runtime import check

TYPES = {"model_type": str, "architectures": list, "quantization_config": dict}  # in config.json
MANY = 10_000  # layers, heads, experts or labels; no model has more


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
    if adapters := file_of(source, "adapter_config.json"):
        raise ValueError(_adapters(adapters))
    config = read_config(source, policy=auto is AutoModelForCausalLM)
    if generation := file_of(source, "generation_config.json"):
        read_table(generation)  # transformers itself leaves a damaged one out
    check_weight_files(source)
    files = weight_files(source)
    for file in files:
        check_whole_file(file)
    check_held_once(source, files)
    _check_size(auto, config, files)
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
    tables = stored_tables(files, model)
    strange = {name for name in tables if not is_of_a_layer(name, model)}
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
        check_as_stored(model, file)
        check_masks(tables, file)
    return model


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


def check_tables(source: str | Path, names: Iterable[str]) -> None:
    """Raise a ValueError for the first of these files that is there and holds no table."""
    for name in names:
        if file := file_of(source, name):
            read_table(file)


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
    file = file_of(source, "config.json")
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
    check_texts("A name in the architectures of its config.json", raw.get("architectures") or [])
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
    if why := other_weights(folder):
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
