"""A policy by name: this project's own, a local folder, or any causal language model of the hub."""

import copy
from hashlib import sha256
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from minirlhf.models.heads import ScalarModel
from minirlhf.runtime import DATA, atomic_folder

transformers.utils.logging.disable_progress_bar()  # one line a loaded model is noise in a notebook
CHECKPOINTS = DATA / "checkpoints"


def checkpoint(name: str | Path) -> Path | None:
    """The folder that `name` means here: a committed checkpoint or a local folder; None if neither exists."""
    return next((p for p in (CHECKPOINTS / str(name), Path(name)) if (p / "config.json").is_file()), None)


def load_policy(name: str | Path = "tiny-reviews"):
    """Load (model, tokenizer) in float32, dropout off, left padding.

    Args:
        name: `tiny-reviews`, `tiny-reviews-sft`, a folder with a config.json, or a hub name such as `gpt2`.

    Raises:
        ValueError: nothing of that name, here or on the hub.
    """
    source = checkpoint(name) or str(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, padding_side="left")
        model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, use_safetensors=True)  # no pickle, ever
    except (OSError, ValueError) as error:
        raise ValueError(
            f"No model '{name}': it is neither one of {committed('model.safetensors')}, nor a folder with a config.json, "
            f"nor reachable on the hub with safetensors weights ({type(error).__name__}); check the spelling or the network."
        ) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model.eval(), tokenizer


def load_scalar(name: str | Path = "tiny-reviews-reward"):
    """Load (ScalarModel, tokenizer): a reward model or gold scorer that this project saved.

    Raises:
        ValueError: no such folder, or one that holds no scalar model.
    """
    folder = checkpoint(name)
    if folder is None or not (folder / "scalar.safetensors").is_file():
        raise ValueError(f"No reward model '{name}': give one of {committed('scalar.json')} or a folder that `reward` wrote.")
    if not (folder / "scalar.json").is_file():
        raise ValueError(f"{folder} has no scalar.json, so the scale of its scores is unknown; train the reward model again.")
    return ScalarModel.load(folder), AutoTokenizer.from_pretrained(folder, padding_side="left")


def fingerprint(*names: str | Path) -> str:
    """sha256 over the weights of checkpoints: one name may stand for other weights tomorrow. Of a hub name, the name."""
    found = sha256()
    for name in names:
        folder = checkpoint(name)
        for weights in sorted(folder.glob("*.safetensors")) if folder else ():
            found.update(weights.read_bytes())
        found.update(str(name).encode())
    return found.hexdigest()


def committed(file: str = "config.json") -> list[str]:
    """Names of the committed checkpoints that hold `file`."""
    return sorted(p.parent.name for p in CHECKPOINTS.glob(f"*/{file}"))


def save_policy(model, tokenizer, folder: str | Path, *, dtype=torch.float32) -> None:
    """Write an ordinary transformers folder (safetensors), atomically. float16 halves it; it is read back as float32."""
    with atomic_folder(folder) as temporary:
        copied = copy.deepcopy(model).to(dtype)  # tied weights stay tied, so they are written once
        copied.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
