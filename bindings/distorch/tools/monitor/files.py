# SPDX-License-Identifier: Apache-2.0
"""What a log needs of the operating system where POSIX and Windows differ: a lock, a look at a place, renaming."""

from __future__ import annotations

import errno
import importlib
import os
from pathlib import Path
from types import ModuleType

# Windows renames no file that is open, and turns "\n" into "\r\n" unless told not to.
RENAMES_OPEN_FILES = os.name != "nt"
_BINARY = getattr(os, "O_BINARY", 0)
# The byte that Windows locks. Its locks keep others from reading what they cover: this is beyond the end of any log.
_FAR = 2**31 - 2
_HELD = (errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK)


def _module(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


_fcntl, _msvcrt = _module("fcntl"), _module("msvcrt")


def open_to_append(path: Path, flags: int = 0) -> int:
    """Return a descriptor for reading and appending, not inherited by other programs. Raises OSError."""
    return os.open(path, os.O_RDWR | os.O_APPEND | _BINARY | flags, 0o644)


def lock(descriptor: int) -> bool:
    """Lock the file until it is closed; False: another has it.

    True without a lock where there is none to be had (the file system, the platform): better unguarded than no log.
    Raises OSError.
    """
    try:
        if _fcntl is not None:
            _fcntl.flock(descriptor, _fcntl.LOCK_EX | _fcntl.LOCK_NB)
        elif _msvcrt is not None:
            os.lseek(descriptor, _FAR, os.SEEK_SET)
            _msvcrt.locking(descriptor, _msvcrt.LK_NBLCK, 1)
    except OSError as error:
        if error.errno in _HELD:
            return False
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
    return True


def read_at(descriptor: int, size: int, offset: int) -> bytes:
    """Return up to `size` bytes from `offset`; where the next write goes does not change, for it appends."""
    os.lseek(descriptor, offset, os.SEEK_SET)
    return os.read(descriptor, size)
