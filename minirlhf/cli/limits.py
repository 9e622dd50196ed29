"""Limits of numbers on the command line, checked before a command loads anything."""

from collections.abc import Callable

import typer

MANY = 10**9  # no count of anything is larger
LARGEST_RATE = 1000.0  # of a learning rate


def whole(low: int, high: int = MANY, meaning: str = "") -> Callable:
    """The callback of an option: a whole number from `low` to `high`.

    Args:
        meaning: what the number is, where the option's name does not say it.
    """

    def checked(param: typer.CallbackParam, value: int | None) -> int | None:
        good = value is None or low <= value <= high
        _check(param, value, good, f"at least {low} and at most {high:,}", meaning)
        return value

    return checked


def above_0(high: float) -> Callable:
    """The callback of an option: a number above 0 and at most `high`.

    Below 1e-30 a number is refused, too: float32 would round it, or its square, to 0.
    """

    def checked(param: typer.CallbackParam, value: float | None) -> float | None:
        good = value is None or 1e-30 <= value <= high
        _check(param, value, good, f"above 0, from 1e-30 to {high:g}")
        return value

    return checked


def not_negative(param: typer.CallbackParam, value: float | None) -> float | None:
    """The callback of an option: 0 or more, and at most 1e30."""
    good = value is None or 0 <= value <= 1e30
    _check(param, value, good, "0 or more, and at most 1e30")
    return value


def share(param: typer.CallbackParam, value: float | None) -> float | None:
    """The callback of an option: a share, from 0 to 1."""
    good = value is None or value == 0 or 1e-30 <= value <= 1
    _check(param, value, good, "0, or from 1e-30 to 1")
    return value


def not_empty(context: typer.Context, param: typer.CallbackParam, value: str | None) -> str | None:
    """The callback of an option for a name or path: "" is refused where it was given.

    A script gives it where a variable is not set. It would be read as if the option were left out.
    """
    source = context.get_parameter_source(param.name or "")
    good = value is None or bool(value.strip()) or source is None or source.name == "DEFAULT"
    _check(param, value, good, "a name or a path, or the option must be left out")
    return value


def a_seed(param: typer.CallbackParam, value: int) -> int:
    """The callback of an option: a seed, as `runtime.check_seed` allows it."""
    from minirlhf.runtime import LARGEST_SEED  # imported here, because torch takes seconds

    return whole(0, LARGEST_SEED)(param, value)


def _check(
    param: typer.CallbackParam, value: object, good: bool, allowed: str, meaning: str = ""
) -> None:
    from minirlhf.runtime import check  # imported here, as above

    check(f"--{param.name}: the {meaning}" if meaning else f"{param.name}", value, good, allowed)


def only_with(option: str, value: object, allowed: bool, what: str) -> None:
    """Refuse an option that the command would ignore.

    Args:
        value: what was given; None where the option was left out.
        what: what the option needs, to complete "it works only with ...".

    Raises:
        ValueError: the option was given, and is not `allowed`.
    """
    if value is not None and not allowed:
        raise ValueError(f"{option} is {value!r}, but it works only with {what}: leave it out.")


def count_rows(value: int | None) -> int | None:
    if value is not None and not 1 <= value <= MANY:
        raise ValueError(
            f"--rows is a number n, and n is {value}; it must be at least 1 pair or row and at "
            f"most {MANY:,}."
        )
    return value
