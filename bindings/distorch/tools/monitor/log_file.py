# SPDX-License-Identifier: Apache-2.0
"""A file of lines that is only ever appended to, a whole event in one write, by one monitor at a time.

What was written survives kill -9; the line under way is the most that is lost, and the next monitor ends it before it
goes on. (Power loss is another matter: nothing is synced.) At a size limit the file becomes `name.1`, and `name.1`
becomes `name.2`; the path itself is never without a file (on Windows: but for a moment). A file that was moved or removed
by others is made anew, also when its folder was away for a while.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path

from distorch.tools.monitor import files

_TRIES = 5  # to open a file that is being rotated


class LogBusyError(OSError):
    """Another monitor writes this log."""


class LogFile:
    """Not thread safe: a monitor gives its events one at a time."""

    def __init__(
        self, path: str | os.PathLike[str], *, header: str = "", limit: int = 0, keep: int = 5
    ) -> None:
        """Open for appending.

        Args:
            path: the file; made when it is not there.
            header: a line that each file begins with, without its end; "" for none.
            limit: bytes at which the file is rotated; 0: never.
            keep: rotated files that are kept.

        Raises:
            LogBusyError: another monitor has it.
            OSError: it cannot be opened.
        """
        if limit < 0 or keep < 1:
            raise ValueError("the size limit must not be negative, and one rotated file be kept")
        self.path = Path(path)
        self._header = header + "\n" if header else ""
        self._limit, self._keep = limit, keep
        self._closed = False
        self._torn = False  # the file ends inside a line
        self._next_try = 0  # size at which rotating is tried again after it failed
        self._descriptor = -1
        self._open()

    def write(self, lines: str) -> None:
        """Append whole lines. Raises OSError (disk full); the next call starts on a new line."""
        if self._closed:
            raise ValueError("this log was closed")
        if not self._is_current():
            self._let_go()
            self._open()
        data = lines.encode("utf-8", "replace")
        size = os.fstat(self._descriptor).st_size
        if self._limit and size > len(self._header) and size + len(data) > self._limit:
            self._rotate(size)
        self._append(data)

    def close(self) -> None:
        """Let the file go; calling it again does nothing."""
        self._closed = True
        self._let_go()

    def _let_go(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _append(self, data: bytes) -> None:
        if self._torn:
            data = b"\n" + data
        done = 0
        try:
            while done < len(data):
                done += os.write(self._descriptor, data[done:])
        finally:
            if done:
                self._torn = data[done - 1 : done] != b"\n"

    def _open(self) -> None:
        for _ in range(_TRIES):
            self._descriptor = _open_locked(self.path, os.O_CREAT)
            if self._is_current():  # and was not rotated by its owner in between
                self._begin()
                return
            self._let_go()
        raise LogBusyError(errno.EBUSY, "another monitor is rotating this log", str(self.path))

    def _begin(self) -> None:
        """Write the header, and find out whether the last line has its end."""
        found = os.fstat(self._descriptor)
        self._torn = False
        if not stat.S_ISREG(found.st_mode):
            self._limit = 0
            self._append(self._header.encode())
            return
        if found.st_size:
            self._torn = files.read_at(self._descriptor, 1, found.st_size - 1) != b"\n"
        head = self._header.encode()
        if head and files.read_at(self._descriptor, len(head), 0) != head:
            self._append(head)

    def _is_current(self) -> bool:
        if self._descriptor < 0:
            return False
        try:
            at_path, mine = self.path.stat(), os.fstat(self._descriptor)
        except OSError:
            return False
        return (at_path.st_dev, at_path.st_ino) == (mine.st_dev, mine.st_ino)

    def _rotate(self, size: int) -> None:
        """Move the files one place on. A failure leaves this one in use: samples matter more than sizes."""
        if size < self._next_try:
            return
        self._next_try = size + self._limit
        moved = self._move_open() if files.RENAMES_OPEN_FILES else self._move_closed()
        if moved:
            self._next_try = 0

    def _move_open(self) -> bool:
        fresh = -1
        waiting = self.path.with_name(self.path.name + ".new")
        try:
            fresh = _open_locked(waiting, os.O_CREAT | os.O_TRUNC)
            self._make_room()
            try:
                self._numbered(1).unlink(missing_ok=True)
                os.link(self.path, self._numbered(1))
            except OSError:  # a file system without hard links
                self.path.replace(self._numbered(1))
            waiting.replace(self.path)
        except OSError:
            if fresh >= 0:
                os.close(fresh)
            return False
        self._let_go()
        self._descriptor, self._torn = fresh, False
        self._append(self._header.encode())
        return True

    def _move_closed(self) -> bool:
        """For a moment the path has no file. Raises OSError when it cannot be opened again."""
        self._let_go()
        try:
            self._make_room()
            self.path.replace(self._numbered(1))
            return True
        except OSError:  # somebody reads one of them
            return False
        finally:
            self._open()

    def _make_room(self) -> None:
        for number in range(self._keep - 1, 0, -1):
            with contextlib.suppress(FileNotFoundError):
                self._numbered(number).replace(self._numbered(number + 1))

    def _numbered(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}")


def _open_locked(path: Path, flags: int) -> int:
    descriptor = files.open_to_append(path, flags)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode) or files.lock(descriptor):
            return descriptor
        words = "another monitor writes this log; give it another name with --log"
        raise LogBusyError(errno.EBUSY, words, str(path))
    except BaseException:
        os.close(descriptor)
        raise
