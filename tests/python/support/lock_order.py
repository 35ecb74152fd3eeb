# SPDX-License-Identifier: Apache-2.0
"""Tells of two locks of ours that are taken in both orders, also where nobody has waited.

`install()` before DisTorch is imported: each lock that a file of it makes is known by that place, and taking one inside
of another is noted. Locks of one place are one: two instances of a class inside of each other are told too, as nothing
says which comes first.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
OURS = tuple(str(ROOT / name) for name in ("bindings", "patches", "nodes", "build"))

_make, _make_again = threading.Lock, threading.RLock
_guard = _make()
_held = threading.local()
#: What was taken inside of what, by place, and where that was seen first.
edges: dict[tuple[str, str], str] = {}
_found: list[str] = []


class Tracked:
    """A lock that notes which others its thread holds."""

    def __init__(self, lock: Any, place: str) -> None:
        self._lock, self.place = lock, place

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        _note(self)
        taken: bool = self._lock.acquire(blocking, timeout)
        if taken:
            _mine().append(self)
        return taken

    def release(self) -> None:
        mine = _mine()
        for position in reversed(range(len(mine))):
            if mine[position] is self:
                del mine[position]
                break
        self._lock.release()

    __enter__ = acquire

    def __exit__(self, *_: object) -> None:
        self.release()

    def __getattr__(self, name: str) -> Any:  # what a Condition asks of its lock
        return getattr(self._lock, name)


def _mine() -> list[Tracked]:
    if not hasattr(_held, "locks"):
        _held.locks = []
    return _held.locks  # type: ignore[no-any-return]


def _note(lock: Tracked) -> None:
    mine = _mine()
    if any(other is lock for other in mine):
        return  # once more, by who has it
    for other in mine:
        pair = other.place, lock.place
        if pair in edges:
            continue
        with _guard:
            edges[pair] = _where()
            if _reaches(pair[1], pair[0]):
                _found.append(f"{pair[1]} is taken inside of {pair[0]}, and the other way round")


def _reaches(begin: str, end: str) -> bool:
    seen, ahead = set(), [begin]
    while ahead:
        place = ahead.pop()
        if place == end:
            return True
        if place not in seen:
            seen.add(place)
            ahead += [inner for outer, inner in edges if outer == place]
    return False


def _where() -> str:
    frame = sys._getframe(2)
    while frame.f_back is not None and frame.f_code.co_filename == __file__:
        frame = frame.f_back
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"


def _tracked(make: Any) -> Any:
    def made() -> Any:
        frame = sys._getframe(1)
        while frame.f_back is not None and frame.f_code.co_filename == threading.__file__:
            frame = frame.f_back
        file = frame.f_code.co_filename
        if not file.startswith(OURS):
            return make()
        return Tracked(make(), f"{'/'.join(Path(file).parts[-2:])}:{frame.f_lineno}")

    return made


def install() -> None:
    """Know the locks that are made from now on."""
    threading.Lock, threading.RLock = _tracked(_make), _tracked(_make_again)  # type: ignore[misc]


def inversions() -> list[str]:
    """Return what was found since it was asked last."""
    with _guard:
        told, _found[:] = list(_found), []
    return told
