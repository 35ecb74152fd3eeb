# SPDX-License-Identifier: Apache-2.0
"""A walk over all objects beside a thread that is at work: the worker must not notice."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable

from distorch import memory


def errors_beside(look: Callable[[], object], seconds: float) -> list[Exception]:
    """What a thread meets that builds tuples from generators while `look` is called again and again."""
    errors: list[Exception] = []
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            try:
                tuple(n for n in range(50))
            except SystemError as error:
                errors.append(error)
                return

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    thread = threading.Thread(target=work)
    thread.start()
    try:
        end = time.monotonic() + seconds
        while time.monotonic() < end and not errors:
            look()
    finally:
        stop.set()
        thread.join()
        sys.setswitchinterval(interval)
    return errors


def test_a_walk_does_not_break_tuples_that_are_being_built() -> None:
    assert errors_beside(memory.scanner().walk, 3.0) == []
