"""Signals that ask a process to stop, and may have to wait."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = [getattr(signal, n) for n in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, n)]


@contextmanager
def signals_wait() -> Iterator[list[int]]:
    """Context manager in which Ctrl-C, SIGTERM and SIGHUP only append their number to a list.

    It gives that list. A second signal by Ctrl-C raises KeyboardInterrupt at once. A signal that is
    ignored stays ignored. Outside the main thread nothing changes: only it may handle signals.
    """
    came: list[int] = []

    def note(number: int, frame: object) -> None:
        if came and number == signal.SIGINT:
            raise KeyboardInterrupt
        came.append(number)

    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):  # nohup ignores SIGHUP
                before[number] = signal.signal(number, note)
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
