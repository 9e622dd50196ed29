"""Load policies and reward models by name, and save policies.

A name is one of this project's models, a local folder or, for a policy, a causal language model on
the hub.
"""

import copy
import os
from collections.abc import Iterable, Sequence
from hashlib import sha256
from pathlib import Path

import torch
import transformers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from minirlhf.models.adapters import Policy, fused_gelu, merged
from minirlhf.models.chat import NOTE, looks_written, read_note, write_note
from minirlhf.models.fit import check_fit, end_ids
from minirlhf.models.folders import check_tables, read_whole, why_not_a_model
from minirlhf.models.heads import ScalarModel
from minirlhf.models.trial import check_writes
from minirlhf.runtime import CACHE, DATA, OLD, SMOLLM2, check, device_named, save_folder

transformers.utils.logging.disable_progress_bar()  # a bar per model clutters notebooks
TOKENIZER_FILES = (
    "tokenizer_config.json",
    "tokenizer.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
CHECKPOINTS = DATA / "checkpoints"


def checkpoint(name: str | Path) -> Path | None:
    """The folder that a name stands for; None if there is none.

    It is a committed checkpoint, a downloaded model or a local folder, looked for in this order.

    Raises:
        ValueError: a save was killed while it moved the files of this folder (`atomic_folder`).
    """
    for place in (CHECKPOINTS / str(name), CACHE / str(name), Path(name)):
        if os.path.isfile(place / "config.json"):  # False for what is no name, such as a long one
            return place
    if os.path.isdir(os.path.join(name, OLD)):
        raise ValueError(
            f"A save of '{name}' was interrupted or still goes on. Wait or, if no run writes "
            "there, save it again: give the same command with --resume."
        )
    return None


def load_policy(
    name: str | Path = "tiny-reviews", *, device: str | torch.device | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a policy and its tokenizer: float32, evaluation mode, left padding.

    Args:
        name: `tiny-reviews`, `tiny-reviews-sft`, a folder with a config.json, or a hub name such as
            `gpt2`. Weights are read from safetensors files alone, and no Python of the folder runs.
        device: cpu, cuda, mps or auto; by default the command's --device, else the CPU.

    Returns:
        (model, tokenizer).

    Raises:
        ValueError: there is no such model, it is not a causal language model with all its weights,
            or the tokenizer does not fit it.
    """
    place, source = device_named(device), checkpoint(name) or str(name)
    if isinstance(source, str) and os.path.exists(name):
        raise ValueError(f"'{name}' {why_not_a_model(Path(name))}")
    if source == SMOLLM2:
        raise ValueError(
            f"{SMOLLM2} is not downloaded yet; run `minirlhf data --model {SMOLLM2}` once (93 MB)."
        )
    if isinstance(source, Path) and (source / "scalar.json").is_file():
        raise ValueError(
            f"'{name}' is a reward model, which cannot write responses; "
            f"give a policy, such as {', '.join(committed())}."
        )
    try:
        model = read_whole(AutoModelForCausalLM, source)
        tokenizer = _read_tokenizer(source, model)
        check_writes(model)
        end_ids(model, tokenizer)  # refuses what is no id
    except Exception as error:  # foreign and damaged files raise many types
        if isinstance(source, Path) or isinstance(error, ValueError):
            raise ValueError(
                f"'{name}' holds no policy that can be read: {_first_line(error)}"
            ) from error
        raise ValueError(
            f"No model '{name}': it is neither one of {', '.join(committed())}, nor a folder "
            f"with a config.json, nor reachable on the hub with safetensors weights "
            f"({type(error).__name__}); check the spelling or the network."
        ) from error
    return fused_gelu(model).eval().to(place), tokenizer


def _read_tokenizer(source: str | Path, model: torch.nn.Module) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, with left padding and a padding token.

    Raises:
        ValueError: it has no vocabulary, or does not fit the model (`check_fit`).
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            source, padding_side="left", trust_remote_code=False
        )
    except Exception as error:  # foreign and damaged files raise many types
        check_tables(source, TOKENIZER_FILES)
        raise ValueError(
            f"its tokenizer cannot be read ({_first_line(error).rstrip('.')}); give the tokenizer "
            "files that were saved with the model."
        ) from error
    template = tokenizer.chat_template
    check(
        "chat_template in its tokenizer_config.json",
        template,
        template is None or isinstance(template, str) or _is_table_of_texts(template),
        "a text, or a table of texts",
    )
    if len(tokenizer) <= 1:
        raise ValueError(
            f"its tokenizer has no vocabulary (its number of tokens is {len(tokenizer)}); add the "
            "model's tokenizer.json and tokenizer_config.json to the folder."
        )
    check_fit(model, tokenizer)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _is_table_of_texts(x: object) -> bool:
    return isinstance(x, dict) and all(isinstance(value, str) for value in x.values())


def load_scalar(
    name: str | Path = "tiny-reviews-reward", *, device: str | torch.device | None = None
) -> tuple[ScalarModel, PreTrainedTokenizerBase]:
    """Load a reward model of this project and its tokenizer.

    Args:
        name: a committed reward model, or a folder that `ScalarModel.save` wrote.
        device: cpu, cuda, mps or auto; by default the command's --device, else the CPU.

    Returns:
        (ScalarModel, tokenizer), in float32 and evaluation mode, with left padding.

    Raises:
        ValueError: there is no such folder, or it holds no reward model, or its files are damaged.
    """
    place, folder = device_named(device), checkpoint(name)
    if folder is None or not (folder / "scalar.json").is_file():
        raise ValueError(
            f"No reward model '{name}': give one of {', '.join(committed(scores=True))}, "
            "or a folder that `minirlhf reward` wrote."
        )
    try:
        model = ScalarModel.load(folder)
        return model.to(place), _read_tokenizer(folder, model.backbone)
    except Exception as error:  # foreign and damaged files raise many types
        raise ValueError(
            f"'{name}' holds no reward model that can be read: {_first_line(error)}"
        ) from error


def trained_with_chat(name: str | Path) -> bool:
    """Whether a model learned from texts that its chat template wrote, as its folder says.

    A folder says so in `minirlhf.json`, if the texts were conversations or `chat` (--chat) was
    given. A folder without this file, and a name on the hub, say nothing: False.

    Raises:
        ValueError: minirlhf.json is damaged.
    """
    folder = checkpoint(name)
    try:
        return folder is not None and read_note(folder)
    except (OSError, ValueError) as error:
        raise ValueError(f"'{name}': {_first_line(error)} Correct it or remove {NOTE}.") from error


def unlike_training(
    names: Iterable[str | Path],
    prompts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    chat: bool = False,
    advice: str = "Give --chat.",
) -> list[str]:
    """A sentence on each model that learned from texts of its chat template and gets plain ones.

        for sentence in unlike_training(["out/sft", "out/reward"], prompts, tokenizer): print(...)

    Args:
        names: of the models, as for `load_policy` and `load_scalar`.
        prompts: as the models will read them.
        chat: the chat template wrote them. Prompts with its special tokens are taken for such, too.
        advice: the end of each sentence.

    Raises:
        ValueError: a minirlhf.json is damaged.
    """
    learned = [name for name in dict.fromkeys(names) if trained_with_chat(name)]
    if chat or not learned or all(looks_written(tokenizer, prompt) for prompt in prompts):
        return []
    return [
        f"{name} was trained on texts written with its chat template (--chat); these prompts are "
        f"plain. {advice}"
        for name in learned
    ]


def _first_line(error: Exception) -> str:
    """The first line of an error's message, with its type where the message alone says little.

    A line that ends in a colon says nothing without the next one.
    """
    lines, kind = str(error).splitlines() or [""], type(error).__name__
    line = " ".join(part.strip() for part in lines[: 2 if lines[0].endswith(":") else 1])
    bare = not line or isinstance(error, LookupError | TypeError | AttributeError | AssertionError)
    return f"{kind} {line}".strip() if bare else line


def fingerprint(*names: str | Path) -> str:
    """SHA-256 over the names and weights of checkpoints.

    A name may stand for other weights later; the fingerprint then differs. Of a model on the hub
    only the name is used.
    """
    found = sha256()
    for name in names:
        folder = checkpoint(name)
        for weights in sorted(folder.glob("*.safetensors")) if folder else ():
            found.update(weights.read_bytes())
        found.update(str(name).encode())
    return found.hexdigest()


def same_weights(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    """Whether all parameters of two models are equal, bit for bit.

    Names, shapes and types must be equal too. Unlike ==, it takes NaN as equal to the same NaN, and
    0 and -0 as different. Buffers are not compared, nor are the shift and scale of a ScalarModel.
    """
    ours, theirs = dict(a.named_parameters()), dict(b.named_parameters())
    return ours.keys() == theirs.keys() and all(
        p.dtype == theirs[name].dtype
        and p.shape == theirs[name].shape
        and torch.equal(_bits(p), _bits(theirs[name]))
        for name, p in ours.items()
    )


def _bits(x: torch.Tensor) -> torch.Tensor:
    """The bytes of a tensor, as a vector."""
    return x.detach().contiguous().view(-1).view(torch.uint8)


def committed(*, scores: bool = False) -> list[str]:
    """Names of the committed policies; with `scores`, of the committed reward models."""
    return sorted(
        p.parent.name
        for p in CHECKPOINTS.glob("*/config.json")
        if (p.parent / "scalar.json").is_file() == scores
    )


def save_policy(
    model: Policy,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    chat: bool = False,
) -> None:
    """Write a policy as an ordinary transformers folder (safetensors), replaced atomically.

    Adapters are added to the weights (`merged`).

    Args:
        dtype: of the saved weights. float16 halves the file; `load_policy` reads it as float32.
        chat: the model learned from texts that the tokenizer's chat template wrote. The folder says
            so, and `trained_with_chat` reads it.

    Raises:
        ValueError: the folder holds files that do not belong to a model, or is in use.
        Kept: it cannot be written; the model is in the folder that the message names.
    """
    # tied weights stay tied, so they are written once
    copied = copy.deepcopy(merged(model))
    copied.to(dtype)  # type: ignore[arg-type]  # transformers' decorator takes dtype for self

    def write(place: Path) -> None:
        copied.save_pretrained(str(place))
        tokenizer.save_pretrained(place)
        write_note(place, chat=chat)

    save_folder(folder, write)
