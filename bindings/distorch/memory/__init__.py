# SPDX-License-Identifier: Apache-2.0
"""Who holds the memory: every live model, by name, with its bytes on each device.

    from distorch import memory
    for row in memory.rows():
        print(row.display, row.bytes)

All functions act on the one scanner of the process, `memory.scanner()`.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from distorch.memory.building import Management
from distorch.memory.device_view import device_view
from distorch.memory.names import Note, PendingLoads, Resolver, files_named_by, modules_in
from distorch.memory.row import Row, largest_on, lines_of, profiler_form
from distorch.memory.scanning import Scanner
from distorch.memory.totals import NOTICED_BYTES, memory_changed, memory_used

__all__ = [
    "NOTICED_BYTES",
    "Management",
    "Note",
    "PendingLoads",
    "Resolver",
    "Row",
    "Scanner",
    "clear_loaded_models",
    "device_view",
    "files_named_by",
    "invalidate",
    "largest_on",
    "lines_of",
    "memory_changed",
    "memory_used",
    "modules_in",
    "note_loaded",
    "note_used",
    "profiler_form",
    "rows",
    "scanner",
]

_scanner: Scanner | None = None
_lock = threading.Lock()


def scanner() -> Scanner:
    """Return the scanner of this process; the first call installs torch's hooks."""
    global _scanner
    with _lock:
        if _scanner is None:
            _scanner = Scanner()
            _scanner.install_hooks()
        return _scanner


def rows(*, max_age: float | None = None, deep: bool = False) -> list[Row]:
    """Return the models that hold memory, largest first (see Scanner.rows)."""
    return scanner().rows(max_age=max_age, deep=deep)


def note_loaded(
    model: object,
    *,
    name: str = "",
    file: str = "",
    metadata: Mapping[str, str] | None = None,
    **more: Any,
) -> None:
    """Say what a loader knows of `model` (see Scanner.note_loaded)."""
    scanner().note_loaded(model, name=name, file=file, metadata=metadata, **more)


def note_used(model: object) -> None:
    """Say that `model` is in use now."""
    scanner().note_used(model)


def invalidate() -> None:
    """Have the next rows() scan again; for every load and unload."""
    scanner().invalidate()


def clear_loaded_models() -> None:
    """Forget the answer; the next rows() walks and checks everything."""
    scanner().clear_loaded_models()
