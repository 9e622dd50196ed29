"""A policy by name: this project's own, a local folder, or any causal language model of the hub."""

import copy
from hashlib import sha256
from pathlib import Path

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer

from minirlhf.models.adapters import fused_gelu, merged
from minirlhf.models.heads import ScalarModel, read_whole
from minirlhf.runtime import CACHE, DATA, SMOLLM2, atomic_folder

transformers.utils.logging.disable_progress_bar()  # one line a loaded model is noise in a notebook
CHECKPOINTS = DATA / "checkpoints"
FAULTS = (
    OSError,
    ValueError,
    KeyError,
    AttributeError,
    RuntimeError,
    SafetensorError,
)  # what damaged or foreign files end in


def checkpoint(name: str | Path) -> Path | None:
    """The folder that `name` means here: a committed checkpoint, a fetched model or a local folder; None if there is none."""
    return next(
        (
            p
            for p in (CHECKPOINTS / str(name), CACHE / str(name), Path(name))
            if (p / "config.json").is_file()
        ),
        None,
    )


def load_policy(name: str | Path = "tiny-reviews"):
    """Load (model, tokenizer) in float32, dropout off, left padding.

    Args:
        name: `tiny-reviews`, `tiny-reviews-sft`, a folder with a config.json, or a hub name such as `gpt2`.

    Raises:
        ValueError: nothing of that name, here or on the hub.
    """
    source = checkpoint(name) or str(name)
    if source == SMOLLM2:
        raise ValueError(
            f"{SMOLLM2} is not fetched yet: run `minirlhf data --model {SMOLLM2}` once (93 MB)."
        )
    if isinstance(source, Path) and (source / "scalar.json").is_file():
        raise ValueError(
            f"'{name}' is a reward model, it gives scores and no words; policies here: {', '.join(committed())}."
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, padding_side="left")
        if len(tokenizer) <= 1:
            raise ValueError(
                "its tokenizer knows no words; are tokenizer.json and tokenizer_config.json there?"
            )
        model = read_whole(AutoModelForCausalLM, source)
    except FAULTS as error:
        if isinstance(source, Path):
            raise ValueError(
                f"'{name}' holds no policy that can be read: {_first_line(error)}"
            ) from error
        raise ValueError(
            f"No model '{name}': it is neither one of {', '.join(committed())}, nor a folder with a config.json, "
            f"nor reachable on the hub with safetensors weights ({type(error).__name__}); check the spelling or the network."
        ) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return fused_gelu(model).eval(), tokenizer


def load_scalar(name: str | Path = "tiny-reviews-reward"):
    """Load (ScalarModel, tokenizer): a reward model or gold scorer that this project saved.

    Raises:
        ValueError: no such folder, or one that holds no scalar model.
    """
    folder = checkpoint(name)
    if folder is None or not (folder / "scalar.json").is_file():
        raise ValueError(
            f"No reward model '{name}': give one of {', '.join(committed(scores=True))} or a folder that `reward` wrote."
        )
    try:
        return ScalarModel.load(folder), AutoTokenizer.from_pretrained(folder, padding_side="left")
    except FAULTS as error:
        raise ValueError(
            f"'{name}' holds no reward model that can be read: {_first_line(error)}"
        ) from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def fingerprint(*names: str | Path) -> str:
    """sha256 over the weights of checkpoints: one name may stand for other weights tomorrow. Of a hub name, the name."""
    found = sha256()
    for name in names:
        folder = checkpoint(name)
        for weights in sorted(folder.glob("*.safetensors")) if folder else ():
            found.update(weights.read_bytes())
        found.update(str(name).encode())
    return found.hexdigest()


def committed(*, scores: bool = False) -> list[str]:
    """Names of the committed policies, or of the scalar models."""
    return sorted(
        p.parent.name
        for p in CHECKPOINTS.glob("*/config.json")
        if (p.parent / "scalar.json").is_file() == scores
    )


def save_policy(model, tokenizer, folder: str | Path, *, dtype=torch.float32) -> None:
    """Write an ordinary transformers folder (safetensors), atomically. float16 halves it; it is read back as float32."""
    with atomic_folder(folder) as temporary:
        copied = copy.deepcopy(merged(model)).to(
            dtype
        )  # tied weights stay tied, so they are written once
        copied.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
