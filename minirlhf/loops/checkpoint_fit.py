"""By what a run is recognised, and whether the file of a checkpoint fits it.

Settings that differ make it another run, but for those that MAY_CHANGE. A field or tensor that
does not fit is named.
"""

import hashlib
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

MICRO_BATCH = "the micro-batch, which rounds differently"
MAY_CHANGE = {  # mending these is a reason to resume: setting -> what is said
    "score": "the score (the reward function or the judge, or what it reads)",
    "tool": "the tool (its function, or what it reads)",
    "optimiser.micro_batch": MICRO_BATCH,
    "actor.micro_batch": MICRO_BATCH,
    "dpo.optimiser.micro_batch": MICRO_BATCH,
}
HASHED = ("data", "start", "reference", "formula")  # settings whose values say nothing to people


def digest(data: Dataset | torch.Tensor | list) -> str:
    """SHA-256 of all rows of the data, shortened."""
    whole = data.tolist() if isinstance(data, torch.Tensor) else data[:]
    return hashlib.sha256(repr(whole).encode("utf-8", "backslashreplace")).hexdigest()[:16]


def fingerprint(models: list) -> str:
    """SHA-256 of the weights that a run starts from, without adapters, shortened.

    Adapters are drawn at random, so they differ when a run is started again.
    """
    digest = hashlib.sha256()
    for model in models:
        for name, p in model.named_parameters():
            if "lora_" not in name:
                digest.update(p.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def fits(path: Path, name: str, value: object, good: bool, allowed: str) -> None:
    """Check a field of a checkpoint.

    Args:
        name: of the field. value: what the file holds. good: the condition.
        allowed: what is allowed, to complete "it must be ...".

    Raises:
        ValueError: not `good`.
    """
    if not good:
        raise ValueError(
            f"{path} does not fit the run that it names: its {name} is {value}; it must be "
            f"{allowed}. Remove the file to start anew."
        )


def flat(settings: dict[str, Any], before: str = "") -> dict[str, Any]:
    """{"kl": {"target": 1}} -> {"kl.target": 1}: each setting by a name of its own."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        inner = flat(value, f"{before}{name}.") if isinstance(value, dict) else None
        found |= inner or {f"{before}{name}": value}
    return found


def check_settings(path: Path, header: dict[str, Any], now: dict[str, Any]) -> None:
    """Check that the settings `now` are those of the file. Those that MAY_CHANGE are only said.

    Raises:
        ValueError: others differ. The message names them, with both values.
    """
    then = header["config"]
    other = [key for key in sorted({*then, *now}) if then.get(key) != now.get(key)]
    wrong = [
        key
        if key.split(" ")[0] in HASHED
        else f"{key} ({then.get(key)!r} in the file, {now.get(key)!r} now)"
        for key in other
        if key not in MAY_CHANGE
    ]
    if wrong:
        command = f" `{header['command']}` began it." if header["command"] else ""
        raise ValueError(
            f"{path} belongs to another run, which differs in: {', '.join(wrong)}.{command} "
            "Give the same settings, or remove the file to start anew."
        )
    for words in dict.fromkeys(MAY_CHANGE[key] for key in other):
        print(f"Changed since step {header['step']}: {words}. The run goes on with the new one.")


def check_run(path: Path, header: dict[str, Any], state: dict[str, Any], earlier: int) -> None:
    """Check the history and the loop's numbers.

    Args:
        state: those of the loop. earlier: rows of the history from before the run.

    Raises:
        ValueError: a field does not fit.
    """
    rows, step = header["history"], header["step"]
    steps = [row["step"] for row in rows[earlier:]]
    good = len(steps) == step and steps == list(range(len(steps)))
    allowed = f"one row for each of the {step} steps, in their order"
    fits(path, "history", f"a list of {len(rows)} rows", good, allowed)
    good = header["state"].keys() == state.keys()
    names = ", ".join(state) or "nothing"
    fits(path, "state", f"of {', '.join(header['state']) or 'nothing'}", good, f"of {names}")


def check_tensors(
    path: Path,
    tensors: dict[str, torch.Tensor],
    live: dict[str, torch.Tensor],
    optimizers: list[torch.optim.Optimizer],
) -> None:
    """Check each tensor by its name, shape and dtype.

    Args:
        live: the weights and the states of generators as they are now, by their names in the file.

    Raises:
        ValueError: a tensor is missing, unknown or of another form.
    """
    for name in live:
        fits(path, f"tensor {name}", "missing", name in tensors, "there")
    parameters = {
        f"optimizer.{o}.{i}": p
        for o, optimizer in enumerate(optimizers)
        for i, p in enumerate(p for group in optimizer.param_groups for p in group["params"])
    }
    kept: dict[str, set[str]] = {}  # parameter -> names of what its optimiser keeps of it
    for name, saved in tensors.items():
        parameter, _, number = name.rpartition(".")
        if name in live:
            like = live[name]
        else:
            known = parameter in parameters and number != ""
            fits(path, f"tensor {name}", "unknown", known, "left out")
            kept.setdefault(parameter, set()).add(number)
            # "step": how often the optimiser has updated this parameter
            like = torch.zeros((), device="cpu") if number == "step" else parameters[parameter]
        form, wanted = (f"{[*tensor.shape]} of {tensor.dtype}" for tensor in (saved, like))
        fits(path, f"tensor {name}", form, form == wanted, wanted)
        if name.startswith("generator."):
            fits(path, f"tensor {name}", "damaged", _is_state(saved), "a state of a generator")
        elif name not in live and number == "step":
            fits(path, f"tensor {name}", saved.item(), bool(saved >= 0), "0 or more")
    for parameter, names in kept.items():
        same = parameter.rpartition(".")[0]
        every = {n for other in kept if other.startswith(f"{same}.") for n in kept[other]}
        allowed = f"of {', '.join(sorted(every))}"
        fits(path, parameter, f"of {', '.join(sorted(names))}", names == every, allowed)


def _is_state(saved: torch.Tensor) -> bool:
    """Whether a tensor is a state of torch's generator."""
    try:
        torch.Generator().set_state(saved)
    except (RuntimeError, TypeError):
        return False
    return True
