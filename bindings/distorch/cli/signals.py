# SPDX-License-Identifier: Apache-2.0
"""The signals that end a long command in order: Ctrl-C, SIGTERM, a terminal that was closed; on Windows Ctrl-Break."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import Callable, Iterator


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
def stop_event() -> Iterator[threading.Event]:
    """Turn the first of the signals into an event; a second one ends the process at once. In the main thread only."""
    stopped = threading.Event()

    def handle(number: int, _frame: object) -> None:
        if stopped.is_set():
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        stopped.set()

    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, handle) for number in ending()}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def first_signal(loop: asyncio.AbstractEventLoop, stop: Callable[[int], None]) -> Iterator[None]:
    """Have `stop` called in the loop with the first of the signals; a second one ends the process at once.

    Elsewhere than in the main thread it does nothing: whoever called has the signals.
    """
    numbers = ending() if threading.current_thread() is threading.main_thread() else []

    def once(number: int) -> None:
        for each in numbers:
            signal.signal(each, signal.SIG_DFL)
        stop(number)

    # Not loop.add_signal_handler, which Windows does not have. The call from the handler wakes the loop.
    before = {
        each: signal.signal(each, lambda number, _: loop.call_soon_threadsafe(once, number))
        for each in numbers
    }
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
