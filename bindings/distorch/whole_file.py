# SPDX-License-Identifier: Apache-2.0
"""Files that are replaced at once, so that a reader sees the old one or the new one."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

# Windows neither replaces a file that is being read nor reads one that is being replaced: both take moments.
_PATIENCE_SECONDS = 2.0 if os.name == "nt" else 0.0


def read_whole(path: str | os.PathLike[str]) -> str:
    """Return the text of a file that others replace by `write_whole`. Raises OSError."""
    return _patiently(lambda: Path(path).read_text(encoding="utf-8"))


def write_whole(path: str | os.PathLike[str], text: str) -> None:
    """Replace a file, or make it; the text is on the disk when this returns. Raises OSError, and leaves nothing then.

    For any thread and process: of several that write, one wins.
    """
    target = Path(path)
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=target.stem + "-", suffix=".tmp")
    part = Path(name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        _patiently(lambda: part.replace(target))
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _patiently(action: Callable[[], T]) -> T:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            return action()
        except PermissionError:
            if time.monotonic() >= deadline:
                raise
        time.sleep(0.01)
