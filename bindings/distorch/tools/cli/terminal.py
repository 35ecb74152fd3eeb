# SPDX-License-Identifier: Apache-2.0
"""What commands that go on for hours say: nobody who reads it slowly, or not at all, holds them up or ends them."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
import threading
import time
from collections import deque
from typing import Any, TextIO

_MOST = 10_000  # pieces that wait


def say(words: str) -> None:
    """Write to standard output and wait until it is taken. A reader that went away is no error."""
    try:
        sys.stdout.write(words)
        sys.stdout.flush()
    except OSError:
        turn_away()


def reader_is_gone(error: OSError) -> bool:
    """Whether a write failed since nobody reads any more, as by `| head`. Windows has no name of its own for that."""
    if os.name == "nt" and error.errno == errno.EINVAL:
        return error.filename is None  # a file that cannot be opened has one
    return isinstance(error, BrokenPipeError)


def turn_away() -> None:
    """Have standard output go nowhere, with what it still holds, of which Python would complain at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


class Speaker:
    """Writes to a stream from a thread of its own. Takes the stream's place for those who only write to it.

    A terminal whose output is paused (Ctrl-S, a selection on Windows, `| less`) blocks whoever writes to it. Here the
    text waits; beyond `most` pieces it is left out, which is told when the output goes on. A reader that went away
    takes no more.
    """

    def __init__(self, out: TextIO, most: int = _MOST) -> None:
        self._out, self._most = out, most
        self._waiting: deque[str] = deque()
        self._left_out = 0
        self._ended = False
        self._changed = threading.Condition()
        # Buffered streams have a lock, which a thread that is blocked would keep to the end of the program and beyond.
        buffer: Any = getattr(out, "buffer", None)
        self._raw: Any = (
            buffer if isinstance(buffer, io.RawIOBase) else getattr(buffer, "raw", None)
        )
        self._thread = threading.Thread(target=self._run, name="distorch-speaker", daemon=True)
        self._thread.start()

    def write(self, words: str) -> None:
        """Have this written; returns at once. Thread safe."""
        with self._changed:
            if len(self._waiting) >= self._most:
                self._left_out += 1
            else:
                self._waiting.append(words)
                self._changed.notify()

    def flush(self) -> None:
        """Nothing: what was written is on its way."""

    def close(self) -> None:
        """Wait until all of it is written, however long the reader takes; a signal may end the program meanwhile.

        Calling it again does nothing.
        """
        with self._changed:
            if self._ended:
                return
            self._ended = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        with contextlib.suppress(
            OSError, ValueError
        ):  # the reader went away; the stream was closed
            while words := self._next():
                self._write(words)
        with self._changed:
            self._most = 0  # nothing waits any more
            self._waiting.clear()

    def _next(self) -> str:
        """Return what waits; "" at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._ended)
            words = "".join(self._waiting)
            self._waiting.clear()
            if self._left_out:
                words += f"({self._left_out} lines were left out: nobody took them)\n"
                self._left_out = 0
        return words

    def _write(self, words: str) -> None:
        if self._raw is None:
            self._out.write(words)
            self._out.flush()
            return
        encoding = getattr(self._out, "encoding", None) or "utf-8"
        left = memoryview(words.replace("\n", os.linesep).encode(encoding, "replace"))
        while left:
            done = self._raw.write(left)
            if done is None:  # a stream that does not block
                time.sleep(0.05)
            left = left[done or 0 :]
