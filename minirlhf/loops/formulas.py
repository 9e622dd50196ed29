"""Formulas as arguments, and how a run with other formulas is recognised.

A loop takes the functions that you may replace as one argument. It is a frozen dataclass with a
default for each function: PPOFormulas, GroupFormulas, DPOFormulas, RewardFormulas or SFTFormulas. A
field has the name of the package's function that it replaces, and takes the same arguments:

    train_ppo(..., formulas=PPOFormulas(gae=my_gae))

`train_gold`, `train_verifier` and `train_base` take no formulas. Some functions are not fields, for
example `aggregate` and metrics such as `is_clipped`.
"""

import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import fields
from hashlib import sha256
from types import CodeType


def identity(formulas) -> dict[str, str | None]:
    """The replaced functions: field -> "module.name SHA-256". Defaults are left out.

    The hash covers the source of the function, its default arguments and its closure. It also
    covers the functions and constants of its own module that it uses. The value is None if there is
    no source to read: for a function typed at a prompt, or for an object with a state. A run with
    such a formula cannot be recognised later.
    """
    replaced = {
        field.name: getattr(formulas, field.name)
        for field in fields(formulas)
        if getattr(formulas, field.name) is not field.default
    }
    return {name: _signature(function) for name, function in replaced.items()}


def _signature(function: Callable) -> str | None:
    try:
        source = "\n".join(_sources(function, set()))
    except (OSError, TypeError, ValueError):  # what inspect raises where there is no source
        return None
    named = inspect.unwrap(getattr(function, "func", function))
    where = f"{named.__module__}.{named.__qualname__}"
    return f"{where} {sha256(source.encode()).hexdigest()}"


def _sources(thing, seen: set[int]) -> Iterator[str]:
    """The source of a function and of what it uses, each once; a TypeError if there is none."""
    if thing is None or isinstance(thing, (bool, int, float, str)):
        yield repr(thing)
    elif isinstance(thing, (tuple, list)):
        for part in thing:
            yield from _sources(part, seen)
    elif isinstance(thing, dict):
        yield from _sources([part for item in thing.items() for part in item], seen)
    elif isinstance(thing, functools.partial):
        yield from _sources([thing.func, thing.args, thing.keywords], seen)
    elif inspect.isbuiltin(thing) or inspect.ismodule(thing) or inspect.isclass(thing):
        yield thing.__name__
    elif not inspect.isfunction(thing):
        raise TypeError(f"no source of {type(thing).__name__}")
    elif id(inspect.unwrap(thing)) not in seen:
        yield from _function_sources(inspect.unwrap(thing), seen)


def _function_sources(function: Callable, seen: set[int]) -> Iterator[str]:
    seen.add(id(function))
    yield inspect.getsource(function)
    held = [cell.cell_contents for cell in function.__closure__ or ()]
    yield from _sources([*held, function.__defaults__, function.__kwdefaults__], seen)
    for name in sorted(_names(function.__code__)):  # what it uses of its own module
        used = function.__globals__.get(name)
        own_function = inspect.isfunction(used) and used.__module__ == function.__module__
        if own_function or isinstance(used, (bool, int, float, str)):
            yield from _sources(used, seen)


def _names(code: CodeType) -> set[str]:
    """Global names and attributes that some code mentions, inner functions included."""
    inner = [_names(part) for part in code.co_consts if isinstance(part, CodeType)]
    return set(code.co_names).union(*inner)
