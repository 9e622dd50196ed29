"""Every public function of core on random shapes, masks and extreme numbers: an answer without NaN, or a ValueError.

Arguments are drawn from the functions' own annotations, so a function that is added is tried the day it is written. Padding holds NaN.
"""

import importlib
import inspect
import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

MODULES = (
    "masking",
    "logprobs",
    "kl",
    "returns",
    "baselines",
    "policy_gradient",
    "bradley_terry",
    "preference",
    "preference_variants",
    "process_reward",
)
FUNCTIONS = {
    f"{m}.{name}": function
    for m in MODULES
    for name, function in vars(importlib.import_module(f"minirlhf.core.{m}")).items()
    if inspect.isfunction(function)
    and function.__module__ == f"minirlhf.core.{m}"
    and not name.startswith("_")
}
UNDEFINED = {
    "policy_gradient.explained_variance"
}  # NaN by its docstring where returns have no variance
MAGNITUDES = (0.0, 1e-30, 1e-8, 1.0, 88.0, 1e4, 1e8)
NUMBERS = {  # scalar arguments: what is allowed, and what must raise
    "gamma": ((0.0, 0.9, 1.0), (-0.1, 1.5, math.nan)),
    "lam": ((0.0, 0.95, 1.0), (-0.1, 2.0, math.nan)),
    "temperature": ((0.1, 1.0, 10.0), (0.0, -1.0, math.nan)),
    "clip_eps": ((0.0, 0.1, 0.3), (-0.2, math.nan)),
    "beta": ((0.01, 1.0, 100.0), (0.0, -1.0, math.nan)),
    "kl_coef": ((0.0, 0.5, 10.0), (-0.1, math.nan)),
    "target": ((0.1, 6.0), (0.0, -1.0, math.nan)),
    "horizon": ((1.0, 1e4), (0.0, math.nan)),
    "batch_size": ((1, 64), (0,)),
    "kl": ((-1.0, 0.0, 1e4), ()),
    "prompt_length": ((1,), (0, 99)),
    "how": (("token_mean", "sequence_mean", "sequence_sum"), ("mean",)),
    "centering_coef": ((0.0, 0.01), (-1.0, math.nan)),
    "eps": ((1e-8, 1e-4), ()),
    "mean": ((-1.0, 0.0, 2.0), ()),
    "decay": ((0.0, 0.9), (-0.1, 1.0, math.nan)),
    "by_length": ((True, False), ()),
    "hard": ((True, False), ()),
    "min_std": ((0.0, 0.1), (-0.1, math.nan)),
    "max_tokens": ((4, 8), ()),
    "buffer": ((1, 4), (0, 9)),
    "label_smoothing": ((0.0, 0.1, 0.4), (-0.1, 0.5, math.nan)),
    "penalty": ((0.0, 5.0), (-1.0, math.nan)),
    "divergence": (("reverse_kl", "forward_kl", "js", "alpha"), ("kl",)),
    "alpha": ((None, 0.0, 0.25, 0.5, 0.75), (-0.1, math.nan)),
    "nll_coef": ((0.0, 1.0), (-1.0, math.nan)),
    "margin": ((0.0, 1.0), (-1.0, math.nan)),
    "desirable_weight": ((0.0, 1.0), (-1.0, math.nan)),
    "undesirable_weight": ((0.0, 4.0), (-1.0, math.nan)),
}
OWN_NUMBERS = {  # the same, where a name means something else in one function
    ("process_reward_score", "how"): (("last", "min", "product"), ("mean", "token_mean")),
}


def numbers(function, name) -> tuple[tuple, tuple] | None:
    """What is allowed and what must raise for a scalar argument; None if it is not drawn."""
    return OWN_NUMBERS.get((function.__name__, name), NUMBERS.get(name))


def dimensions(annotation) -> tuple[str, str] | None:
    """("Float", "B R") of a tensor's annotation."""
    found = re.search(r"(Float|Bool|Int)\[Tensor, '([^']*)'\]", str(annotation))
    return found and found.groups()


@st.composite
def arguments(draw, function):
    size = {
        "B": draw(st.integers(1, 3)),
        "R": draw(st.integers(1, 4)),
        "T": 5,
        "S": draw(st.integers(1, 3)),
        "K": 2,
        "V": draw(st.integers(2, 4)),
        "N": draw(st.integers(1, 3)),
        "G": draw(st.integers(2, 4)),
    }
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    lengths = {
        name: torch.tensor(
            draw(st.lists(st.integers(0, size[name]), min_size=size["B"], max_size=size["B"]))
        )
        for name in "RTS"
    }
    masks = {name: torch.arange(size[name]) < length[:, None] for name, length in lengths.items()}
    given, wrong = {}, False
    for name, parameter in inspect.signature(function).parameters.items():
        found = dimensions(parameter.annotation)
        if found:
            kind, letters = found
            letters = "B R" if letters.startswith("...") else letters.removesuffix(" ...")
            shape = tuple(size[letter] for letter in letters.split())
            mask = (
                masks[letters.split()[1]]
                if letters.split()[:1] == ["B"] and len(shape) > 1
                else None
            )
            if kind == "Bool":
                fits = mask is not None and mask.shape == shape
                given[name] = mask if fits else torch.rand(shape, generator=generator) < 0.5
            elif kind == "Int":
                given[name] = torch.randint(0, size["V"], shape, generator=generator)
            else:
                x = torch.randn(shape, generator=generator) * draw(st.sampled_from(MAGNITUDES))
                x = -x.abs() if "logprobs" in name else x.sigmoid() if name == "labels" else x
                padded = mask is not None and any(
                    "mask" in p for p in inspect.signature(function).parameters
                )
                given[name] = (
                    torch.where(mask[(...,) + (None,) * (x.dim() - 2)], x, torch.nan)
                    if padded
                    else x
                )
        elif found := numbers(function, name):
            good, bad = found
            good = tuple(x for x in good if x is not None or "None" in str(parameter.annotation))
            given[name] = draw(st.sampled_from(good + bad))
            wrong |= given[name] not in good
    return given, wrong


CALLED = sorted(FUNCTIONS.keys() - {"masking.check_same_shape", "masking.zero_masked"})


def check_function(name, *, examples, derandomize):
    """Call a function with drawn arguments: an answer without NaN, or a ValueError where it must."""
    function, answered = FUNCTIONS[name], []

    @settings(max_examples=examples, deadline=None, derandomize=derandomize)
    @given(arguments(function))
    def holds(drawn):
        given, wrong = drawn
        given = {
            key: x.requires_grad_(True)
            if isinstance(x, torch.Tensor) and x.is_floating_point()
            else x
            for key, x in given.items()
        }
        try:
            answer = function(**given)
        except ValueError:
            return
        answered.append(not wrong)
        assert not wrong, f"{given} should have been refused"
        for part in answer if isinstance(answer, tuple) else (answer,):
            part = torch.as_tensor(part)
            assert name in UNDEFINED or not part.isnan().any(), (given, part)
            if part.requires_grad and part.isfinite().all() and name not in UNDEFINED:
                leaves = [
                    x for x in given.values() if isinstance(x, torch.Tensor) and x.requires_grad
                ]
                for gradient in torch.autograd.grad(
                    part.sum(), leaves, allow_unused=True, retain_graph=True
                ):
                    assert gradient is None or not gradient.isnan().any(), (given, gradient)

    holds()
    assert sum(answered) >= 5  # a function that refuses everything would pass


@pytest.mark.parametrize("name", CALLED)
def test_a_function_returns_no_nan_or_raises_a_value_error(name):
    check_function(name, examples=150, derandomize=True)


def test_every_function_of_core_was_found():
    assert len(FUNCTIONS) >= 30
