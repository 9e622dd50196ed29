"""Formulas as arguments, and how a run with other formulas is recognised.

A loop takes the functions that you may replace as one argument. It is a frozen dataclass with a
default for each function: PPOFormulas, GroupFormulas, DPOFormulas, RewardFormulas or SFTFormulas. A
field has the name of the package's function that it replaces, and takes the same arguments:

    train_ppo(..., formulas=PPOFormulas(gae=my_gae))

`train_gold`, `train_verifier` and `train_base` take no formulas. Some functions are not fields, for
example `aggregate` and metrics such as `is_clipped`.
"""

import dis
import functools
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields, is_dataclass
from hashlib import sha256
from types import CodeType
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from _typeshed import DataclassInstance  # any dataclass

LIBRARIES = ("minirlhf", "torch", "einops", "math", "numpy")  # their functions count by name
LARGEST = 10_000  # numbers of a tensor that are compared one by one


def identity(formulas: "DataclassInstance") -> dict[str, str | None]:
    """The replaced functions: field -> "module.name SHA-256". Defaults are left out.

    The hash covers the source of the function and all that it uses: what it wraps, its closure, its
    default arguments and the global functions, classes and values that it reads. Functions of the
    package and of libraries count by their name. The value is None if something has no source to
    read: a function typed at a prompt, or a model. A run with such a formula cannot be recognised
    later. A tool that `sample` is given is left out: it may be mended, as a score may (`tool_of`).
    """
    replaced = {
        field.name: _without_tool(getattr(formulas, field.name))
        for field in fields(formulas)
        if getattr(formulas, field.name) is not field.default
    }
    return {name: _signature(function) for name, function in replaced.items()}


def tool_of(formulas: "DataclassInstance | None") -> Any:
    """The tool in `sample=partial(sample, tool=...)`; None without one."""
    return getattr(getattr(formulas, "sample", None), "keywords", {}).get("tool")


def _without_tool(function: Callable) -> Callable:
    if not isinstance(function, functools.partial) or "tool" not in function.keywords:
        return function
    others = {name: value for name, value in function.keywords.items() if name != "tool"}
    return functools.partial(function.func, *function.args, **others)


def function_signature(function: Callable) -> str:
    """A SHA-256 that tells two functions apart as far as their source can be read.

    Like `identity`, but what has no source (a model in a closure, say) counts by its type only. So
    equal signatures do not prove that two functions are the same.
    """
    source = "\n".join(_sources(function, set(), strict=False))
    return sha256(source.encode()).hexdigest()


def _signature(function: Callable) -> str | None:
    try:
        source = "\n".join(_sources(function, set()))
    except (OSError, TypeError, ValueError):  # what inspect raises where there is no source
        return None
    named = getattr(function, "func", function)  # of a partial
    named = named if hasattr(named, "__qualname__") else type(named)  # of an object: its class
    where = f"{named.__module__}.{named.__qualname__}"
    return f"{where} {sha256(source.encode()).hexdigest()}"


def _sources(thing: Any, seen: set[int], *, strict: bool = True) -> Iterator[str]:
    """The source of a function and of what it uses, each once.

    Raises:
        TypeError or OSError: something has no source; with strict=False its type stands for it.
    """
    parts = functools.partial(_all_sources, seen=seen, strict=strict)
    if thing is None or isinstance(thing, (bool, int, float, str, bytes)):
        yield repr(thing)
    elif isinstance(thing, torch.Tensor) and thing.numel() <= LARGEST:
        yield f"{thing.dtype} {thing.tolist()}"
    elif isinstance(thing, (tuple, list)):
        yield from parts(thing)
    elif isinstance(thing, dict):
        yield from parts([part for item in thing.items() for part in item])
    elif isinstance(thing, functools.partial):
        yield from parts([thing.func, thing.args, thing.keywords])
    elif inspect.ismethod(thing):
        yield from parts([thing.__func__, thing.__self__])
    elif inspect.isbuiltin(thing) or inspect.ismodule(thing) or _is_of_a_library(thing):
        yield f"{getattr(thing, '__module__', '')}.{thing.__name__}"
    elif inspect.isclass(thing):
        yield _class_source(thing, strict)
    elif inspect.isfunction(thing):
        if id(thing) not in seen:
            yield from _function_sources(thing, seen, strict)
    elif hasattr(thing, "__wrapped__"):  # functools.lru_cache
        yield from parts([type(thing).__name__, thing.__wrapped__])
    elif is_dataclass(thing):
        yield repr(thing)
    elif _is_plain_object(thing):  # its class and its attributes
        yield _class_source(type(thing), strict)
        yield from parts([vars(thing)])
    elif strict:
        raise TypeError(f"no source of {type(thing).__name__}")
    else:
        yield type(thing).__qualname__


def _all_sources(things: Iterable[object], seen: set[int], strict: bool) -> Iterator[str]:
    for thing in things:
        yield from _sources(thing, seen, strict=strict)


def _is_of_a_library(thing: object) -> bool:
    """Whether this is a function or class of the package or a library, found under its own name.

    A user's wrapper made with functools.wraps carries the name of what it wraps, but is not found
    under it.
    """
    module, name = getattr(thing, "__module__", None), getattr(thing, "__qualname__", "")
    if not (inspect.isfunction(thing) or inspect.isclass(thing)) or not module:
        return False
    library = module.split(".")[0] in LIBRARIES
    return library and getattr(sys.modules.get(module), name, None) is thing


def _is_plain_object(thing: object) -> bool:
    """Whether an object can be called, or is a tool, and its class is written in Python."""
    called = "run" if hasattr(thing, "call_end") else "__call__"
    written = inspect.isfunction(getattr(type(thing), called, None))
    return written and not isinstance(thing, torch.nn.Module)


def _class_source(thing: type, strict: bool) -> str:
    """The source of a class; its name stands for it where it has none and not `strict`."""
    try:
        return inspect.getsource(thing)
    except (OSError, TypeError):
        if strict:
            raise
        return thing.__qualname__


def _function_sources(function: Callable, seen: set[int], strict: bool) -> Iterator[str]:
    seen.add(id(function))
    code = function.__code__  # of the function itself: a wrapper is not what it wraps
    try:
        yield inspect.getsource(code)
    except (OSError, TypeError):
        if strict:
            raise
        yield function.__qualname__
    if function.__name__ == "<lambda>":  # two of them may stand on one line
        yield code.co_code.hex()
        yield repr([c for c in code.co_consts if not isinstance(c, CodeType)])
    held = [cell.cell_contents for cell in function.__closure__ or ()]
    used = [function.__globals__.get(name) for name in sorted(_global_names(code))]
    defaults = [function.__defaults__, function.__kwdefaults__]
    yield from _all_sources([*held, *defaults, *used], seen, strict)


def _global_names(code: CodeType) -> set[str]:
    """The global names that some code reads, inner functions included."""
    read = {i.argval for i in dis.get_instructions(code) if i.opname == "LOAD_GLOBAL"}
    inner = [_global_names(part) for part in code.co_consts if isinstance(part, CodeType)]
    return read.union(*inner)
