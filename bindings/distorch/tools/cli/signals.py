# SPDX-License-Identifier: Apache-2.0
"""The signals that end a long command in order: Ctrl-C, SIGTERM, a terminal that was closed; on Windows Ctrl-Break."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator

# Seconds: a terminal that is closed sends SIGHUP twice, by the kernel and by the shell.
_TOGETHER = 0.3


def ending() -> list[signal.Signals]:
    """Return those of this platform. A SIGHUP that nohup had ignored stays so."""
    named = (getattr(signal, n, None) for n in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK"))
    return [
        number
        for number in named
        if number is not None
        and (
            number in (signal.SIGINT, signal.SIGTERM) or signal.getsignal(number) != signal.SIG_IGN
        )
    ]


@contextlib.contextmanager
def first_signal(stop: Callable[[int], object]) -> Iterator[None]:
    """Have `stop` called with the number of the first of the signals; a later one ends the process at once.

    `stop` is called between two steps of the main thread, and must return soon. Elsewhere than in the main thread
    nothing is done: whoever called has the signals.
    """
    came: list[float] = []

    def handle(number: int, _frame: object) -> None:
        if not came:
            came.append(time.monotonic())
            stop(number)
        elif time.monotonic() - came[0] > _TOGETHER:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    main = threading.current_thread() is threading.main_thread()
    before = {each: signal.signal(each, handle) for each in ending()} if main else {}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


@contextlib.contextmanager
def stop_event() -> Iterator[threading.Event]:
    """Turn the first of the signals into an event; as `first_signal` otherwise."""
    stopped = threading.Event()
    with first_signal(lambda _: stopped.set()):
        yield stopped
