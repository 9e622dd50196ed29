"""Checks of what the functions of core are given, so that no formula has to spell them out.

`@checked` above a function compares each argument with its annotation before the function runs:

    Float[Tensor, "B R"]    a tensor of floating-point numbers with two axes; the same letter is the
                            same size in all arguments, and no axis is empty
    Bool[Tensor, "B R"]     the same with True and False: a mask of integers is refused
    float, int, bool, str   one number, one whole number, True or False, text

A tensor is a dense one with data: not sparse, nested or quantised, and not on the device meta. The
range of a number stands in the function itself, with `check_above_0` and its like. NaN at an entry
that counts shows in the result of a loss. Infinity may not: where a formula levels off, it gives
the limit, a finite number (DPO's loss is 0 for a chosen response of infinite log-probability).

The formulas take squares and sums, which overflow long before the numbers do: the largest float32
is 3e38, and the square of 1e20 is infinite. So where an argument holds a number above 3e15, or only
numbers below 1e-19, the function computes in float64, and its result gets the dtype of the
arguments (`_widened`). All other results are those of the plain formula, bit for bit.
"""

import functools
from collections.abc import Callable
from functools import wraps
from itertools import chain

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

# A float32 ends at 3e38. With these limits its product or quotient with a usual number is finite.
SMALLEST, LARGEST = 1e-30, 1e30
LARGEST_WHOLE = 2**53  # float64 holds every whole number up to here
HELD = {Float: "floating-point numbers", Int: "integers", Bool: "bools"}
PLAIN = {
    float: "one number (a whole one at most 2^53)",
    int: "one whole number, at most 2^53",
    bool: "True or False",
    str: "text",
    torch.Generator: "a torch.Generator",
}
FORMATS = {  # float8 and unsigned integers of 16 bits and more lack most operations
    Float: (torch.float16, torch.bfloat16, torch.float32, torch.float64),
    Int: (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    Bool: (torch.bool,),
}
Sizes = dict[str, tuple[int, str]]  # letter of an axis -> its size, and the argument that has it


def checked(function: Callable) -> Callable:
    """Check the arguments of a function against its annotations before it runs.

    The object of a checked method has the property `axes`: the sizes of the letters.

    Returns:
        The function with the checks. It raises a ValueError that names the argument, what was given
        and what is allowed.
    """
    hints = {name: hint for name, hint in function.__annotations__.items() if name != "return"}
    checks = {name: check for name, hint in hints.items() if (check := _check_of(name, hint))}
    is_method = "." in function.__qualname__.rpartition("<locals>.")[2]
    widens = not is_method and _takes_sums(hints)
    names = ["self", *hints] if is_method else [*hints]

    @wraps(function)
    def with_checks(*given, **settings):  # type: ignore[no-untyped-def]  # checks.pyi has the types
        sizes: Sizes = dict(given[0].axes) if is_method else {}
        for name, value in chain(zip(names, given, strict=False), settings.items()):
            if name in checks:
                checks[name](value, sizes)
        if widens and (dtype := _widened_dtype(names, given, settings)):
            answer = function(
                *map(_widened, given), **{name: _widened(x) for name, x in settings.items()}
            )
            return _narrowed(answer, dtype)
        return function(*given, **settings)

    return with_checks


def _takes_sums(hints: dict[str, object]) -> bool:
    """Whether numbers of the arguments are multiplied or added: all functions but two kinds.

    Those of logits (V words) use log_softmax, which subtracts the largest logit first, and a
    forbidden word often has the logit -3e38. Those of whole sequences (T positions) only pick.
    """
    letters = {axis for hint in hints.values() for axis in getattr(hint, "dim_str", "").split()}
    return not letters & {"V", "T"}


# not list[str]: the tests' type check would draw an item from Python's random generator
def _widened_dtype(names: list, given: tuple, settings: dict) -> torch.dtype | None:
    """The dtype of the arguments if float64 is needed to compute with them, else None.

    Raises:
        ValueError: float64 is not enough, or the device has no float64 (Apple's GPUs).
    """
    floats = {
        name: x
        for name, x in chain(zip(names, given, strict=False), settings.items())
        if isinstance(x, Tensor) and x.is_floating_point()
    }
    extreme = [name for name, x in floats.items() if _is_extreme(x)]
    if not extreme:
        return None
    dtype = functools.reduce(torch.promote_types, (x.dtype for x in floats.values()))
    x = floats[extreme[0]]
    if x.dtype == torch.float64 or x.device.type == "mps":
        if x.detach().abs().nan_to_num(0.0, 0.0).max() < 1:
            return None  # squares of tiny numbers are 0, which is as near as this dtype comes
        most = torch.finfo(x.dtype).max ** 0.4
        raise ValueError(
            f"{extreme[0]} holds numbers whose squares do not fit into {x.dtype} on this device; "
            f"its largest must be at most {most:.0e} in size: multiply it by a constant."
        )
    return dtype


def _is_extreme(x: Tensor) -> bool:
    """Whether squares or sums of these numbers may overflow, or all squares vanish."""
    most = x.detach().abs().max()
    if not most.isfinite():
        most = x.detach().abs().nan_to_num(0.0, 0.0).max()
    finfo, size = torch.finfo(x.dtype), most.item()
    return size > finfo.max**0.4 or 0 < size < finfo.tiny**0.5


def _widened(x: object) -> object:
    return x.double() if isinstance(x, Tensor) and x.is_floating_point() else x


def _narrowed(answer: object, dtype: torch.dtype) -> object:
    """The answer of a function in the dtype of its arguments."""
    if isinstance(answer, tuple):
        return tuple(_narrowed(part, dtype) for part in answer)
    if isinstance(answer, Tensor) and answer.is_floating_point():
        return answer.to(dtype)
    return answer


def check_tensor(name: str, value: object, hint: object, sizes: Sizes) -> None:
    """Check one tensor against its annotation, such as Float[Tensor, "B R"].

    Args:
        sizes: the sizes of the axes so far. Those of this tensor are added.

    Raises:
        ValueError: it is no tensor, or its dtype or shape is another.
    """
    kind, axes = hint.dtype, hint.dim_str.split()  # type: ignore[attr-defined]
    wanted = f"a tensor of {HELD[kind]}" + (f" of shape ({', '.join(axes)})" if axes else "")
    if not isinstance(value, Tensor):
        raise ValueError(f"{name} is {shown(value)}; it must be {wanted}.")
    check_dense(name, value)
    if value.dtype not in FORMATS[kind]:
        formats = f" ({', '.join(str(x) for x in FORMATS[kind])})"
        known = _kind_of(value.dtype) is kind
        raise ValueError(f"{name} holds {value.dtype}; it must be {wanted}{formats * known}.")
    shape = tuple(value.shape)
    named = [axis for axis in axes if axis != "..."]
    if len(shape) < len(named) or (len(shape) > len(named) and len(named) == len(axes)):
        one = "" if axes else ", one number without an axis: shape ()"
        raise ValueError(f"{name} has shape {shape}; it must be {wanted}{one}.")
    if 0 in shape:
        sizes_of_axes = ", ".join(f"{axis} >= 1" for axis in named) or "no empty axis"
        raise ValueError(f"{name} has shape {shape}; it must be {wanted} with {sizes_of_axes}.")
    for axis, size in zip(named, shape, strict=False):
        letter = axis.removeprefix("#")
        known, where = sizes.setdefault(letter, (size, f"{name} {shape}"))
        if letter.isdigit():
            known, where = int(letter), f"{wanted}"
        if size != known and not (axis != letter and size == 1):
            raise ValueError(
                f"Shapes must fit; got {where} and {name} {shape}, which differ in {letter}."
            )


def check_dense(name: str, value: Tensor) -> None:
    """Raise a ValueError unless this is an ordinary tensor: dense, and with data."""
    if value.is_nested:
        kind = "is nested"
    elif value.is_quantized:
        kind = "is quantised"
    elif value.layout != torch.strided:
        kind = f"is sparse or packed ({value.layout})"
    elif value.device.type == "meta":
        kind = "is on the device meta and has no data"
    else:
        return
    raise ValueError(f"{name} {kind}; it must be a dense tensor with data.")


def _check_of(name: str, hint: object) -> Callable | None:
    """The check of one argument; None for an annotation that is not checked."""
    options = hint.__args__ if type(hint).__name__ == "UnionType" else (hint,)  # type: ignore[attr-defined]
    kinds = [option for option in options if option is not type(None)]
    kind, may_be_none = kinds[0], len(kinds) < len(options)
    is_tensor = hasattr(kind, "dim_str") or kind is Tensor
    if len(kinds) > 1 or not (is_tensor or kind in PLAIN):
        return None

    def check(value: object, sizes: Sizes) -> None:
        if value is None and may_be_none:
            return
        if kind is Tensor:
            if isinstance(value, Tensor):  # otherwise the function says so
                check_dense(name, value)
        elif is_tensor:
            check_tensor(name, value, kind, sizes)
        elif not _is_plain(value, kind):
            allowed = PLAIN[kind] + " or None" * may_be_none
            raise ValueError(f"{name} is {shown(value)}; it must be {allowed}.")

    return check


def _kind_of(dtype: torch.dtype) -> object:
    if dtype.is_floating_point:
        return Float
    return Bool if dtype == torch.bool else None if dtype.is_complex else Int


def _is_plain(value: object, kind: object) -> bool:
    """Whether this is a number (also one of numpy or a tensor without axes), a bool or a text."""
    if kind not in (float, int):
        return isinstance(value, kind)  # type: ignore[arg-type]
    single = isinstance(value, (int, float)) or getattr(value, "shape", None) == ()
    if isinstance(value, (bool, complex)) or not single:
        return False
    if isinstance(value, float):
        return kind is float
    return abs(value) <= LARGEST_WHOLE  # type: ignore[arg-type]


def shown(value: object) -> str:
    """A value in a message: its text, shortened, and its type; of a tensor the shape."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    text = repr(value)
    text = text if len(text) <= 40 else text[:37] + "..."
    return f"{text} (of type {type(value).__name__})"


def check_finite(**values: float) -> None:
    """Raise a ValueError unless every value is a number of size at most 1e30."""
    for name, value in values.items():
        if not abs(value) <= LARGEST:  # refuses NaN as well
            raise ValueError(f"{name} is {value}; it must be a number from -1e30 to 1e30.")


def check_above_0(**values: float) -> None:
    """Raise a ValueError unless every value is above 0, from 1e-30 to 1e30."""
    for name, value in values.items():
        if not SMALLEST <= value <= LARGEST:
            raise ValueError(f"{name} is {value}; it must be above 0, from 1e-30 to 1e30.")


def check_not_negative(**values: float) -> None:
    """Raise a ValueError unless every value is 0 or more, up to 1e30."""
    for name, value in values.items():
        if not 0 <= value <= LARGEST:
            raise ValueError(f"{name} is {value}; it must be 0 or more, up to 1e30.")
