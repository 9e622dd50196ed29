"""What a user's own function is, says and raises: names, lines, texts, and what it awaits.

An object of the user's may raise anything where its name or its text is asked for.
"""

import asyncio
import functools
import inspect
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parents[1]  # the folder of the code that calls the user's function


def awaited(values: Any) -> Any:
    """What an async function returns, from the event loop that all of them share."""
    done = asyncio.run_coroutine_threadsafe(_outcome(values), _event_loop())
    found, error = done.result()
    if isinstance(error, KeyboardInterrupt):  # no Ctrl-C: that reaches the main thread alone
        raise RuntimeError("KeyboardInterrupt").with_traceback(error.__traceback__)
    if error is not None:
        raise error
    return found


async def _outcome(values: Any) -> tuple[Any, BaseException | None]:
    # (what was awaited, None), or (None, the error): some errors would end the event loop
    try:
        return await values, None
    except BaseException as error:
        return None, error


@functools.cache
def _event_loop() -> asyncio.AbstractEventLoop:
    """The event loop of async functions, in a thread of its own: a notebook's is busy already."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=_run_for_ever, args=(loop,), daemon=True).start()
    return loop


def _run_for_ever(loop: asyncio.AbstractEventLoop) -> None:
    """Run the loop, also after a task that the function began has raised what ends a loop.

    Otherwise who awaits the task would wait for ever. The task keeps its error for them.
    """
    while True:
        with suppress(KeyboardInterrupt, SystemExit):
            loop.run_forever()


def name_of(function: Any) -> str:
    """The name of a function, else of its type."""
    try:
        return str(getattr(function, "__name__", type(function).__name__))
    except Exception:  # __getattr__ of the user's object
        return type(function).__name__


def line_of(error: BaseException, function: Callable) -> str:
    """The file and the line of the user's code where an error arose, such as mine.py, line 3.

    Empty where the error arose in no line of Python but ours, as in a builtin.
    """
    try:
        own = inspect.unwrap(function)
        code = getattr(own, "__code__", None) or getattr(type(own).__call__, "__code__", None)
    except Exception:  # __getattr__ of the user's object
        code = None
    frames = traceback.extract_tb(error.__traceback__)
    inside = [frame for frame in frames if code and frame.filename == code.co_filename]
    called = [i for i, frame in enumerate(frames) if PACKAGE in Path(frame.filename).parents]
    for frame in (inside or frames[max(called, default=-1) + 1 :])[-1:]:
        return f"{Path(frame.filename).name}, line {frame.lineno}"
    return ""


def on_one_line(value: object, most: int = 80, write: Callable[[object], str] = str) -> str:
    """The text of a value or of an error, shortened; `write` makes the text."""
    try:
        said = " ".join(write(value).split())
    except Exception:  # __str__ of the user's object
        return f"(a {type(value).__name__} that cannot be shown)"
    return said if len(said) <= most else f"{said[:most]} ..."


def told(error: BaseException) -> str:
    """The kind of an error and what it says, such as KeyError: 'x'."""
    return ": ".join(filter(None, [type(error).__name__, on_one_line(error, 300)]))


def raised(error: BaseException, function: Callable) -> str:
    """What a user's function raised, and where: raised KeyError: 'x' (mine.py, line 3)."""
    where = line_of(error, function)
    return f"raised {told(error)} ({where})" if where else f"raised {told(error)}"
