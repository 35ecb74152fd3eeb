# SPDX-License-Identifier: Apache-2.0
"""ComfyUI's loaded models for `distorch/unload`, by which everything here unloads.

C++ decides which models an unload concerns and in which order they go, and makes the report; here it learns what each
is and holds, and what "unload" means: the core's own steps, for each of the model's entries on the core's list. A model
is one even where parts of it lie on donors (`DonorPart`). C++ knows every model weakly.

`eject_models`: before a model of ours is loaded, every other one leaves its compute device, kept ones too: these stay
in host memory, and come back without a file being read.

Used by ComfyUI's one worker thread.
"""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import comfy.model_management as mm

from distorch import _load, caches
from distorch.devices import name_of

from ..placing import donors
from ..seams import lifecycle
from . import keep

if TYPE_CHECKING:
    from distorch._C import UnloadReport

log = logging.getLogger("DisTorch")


class _Answers:
    """What C++ asks of a model (ManagedModel in managed_models.h)."""

    def __init__(self, model: Any) -> None:
        self._model = weakref.ref(model)

    def name(self) -> str:
        return keep.title(self._model())

    def loaded(self) -> bool:
        return bool(entries_of(self._model()))

    def flagged(self) -> bool:
        return keep.is_flagged(self._model())

    def kept(self) -> bool:
        return keep.is_kept(self._model())

    def holds(self) -> dict[str, int]:
        """Bytes on each device that the core knows it on."""
        sizes: dict[str, int] = {}
        for entry in entries_of(self._model()):
            device = name_of(entry.device)
            sizes[device] = sizes.get(device, 0) + int(entry.model.loaded_size())
        return sizes

    def unload(self, device: str) -> None:
        entries = entries_of(self._model())
        leave = [entry for entry in entries if device in ("", name_of(entry.device))]
        # What lies on donors goes with the model itself, and a donor's part alone without it.
        whole = any(not isinstance(e.model.model, donors.DonorPart) for e in leave)
        for entry in entries if whole else leave:
            donors.unload(entry)

    def let_go(self) -> None:
        model = self._model()
        if keep.is_managed(model) or keep.is_kept(model):
            keep.release(model)


def _clear(devices: list[str]) -> None:
    gc.collect()
    mm.soft_empty_cache()
    caches.clear_caches(
        devices, collect=False
    )  # the core's function clears the current device only


_core = _load.core().ManagedModels(caches.taken_bytes, _clear)
_handles: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()


def _handle(model: Any) -> int:
    handle = _handles.get(model)
    if handle is None:
        handle = _handles[model] = _core.add(_Answers(model))
        weakref.finalize(model, _core.remove, handle).atexit = False
    return handle


def _entries() -> list[tuple[Any, Any]]:
    """The core's entries with the model that each belongs to; a donor's donor_patcher after its model."""
    alive = [e for e in mm.current_loaded_models if e.model is not None]
    alive.sort(key=lambda entry: isinstance(entry.model.model, donors.DonorPart))
    owned = [(entry, keep.owner_of(entry.model.model)) for entry in alive]
    return [(entry, owner) for entry, owner in owned if owner is not None]


def entries_of(model: Any) -> list[Any]:
    """The core's entries of one model; none for one that is dead."""
    return [entry for entry, owner in _entries() if owner is model]


def loaded() -> list[Any]:
    """The models on the core's list, the last loaded first."""
    return list({id(owner): owner for _, owner in _entries()}.values())


def unload(
    of: str, models: Iterable[Any] = (), *, device: str = "", let_go: bool = False
) -> UnloadReport:
    """Unload "flagged", "these" or "all but" of `models` from `device`, or everywhere; see `Selection` in C++.

    The models stay in host memory for whoever holds them; `let_go` also ends the keeping of those of ours.
    """
    for model in (*loaded(), *keep.managed()):
        _handle(model)
    handles = [_handle(model) for model in models]
    return _core.unload(of, handles, device, let_go)  # type: ignore[arg-type]


def make_room(device: str, models: Iterable[Any] = ()) -> list[str]:
    """Unload every model from a device but `models`; returns their names."""
    report = unload("all but", models, device=device)
    gone = [model.name for model in report.unloaded]
    if gone:
        log.info("unloaded from %s to make room: %s", device, ", ".join(gone))
    for failure in report.failures:
        log.error("%s could not be unloaded to make room", failure)
    return gone


def _before_load(request: Any, _node: str, _inputs: dict[str, Any]) -> None:
    if request.eject_models:
        make_room(request.compute)


def _reused(request: Any, outputs: tuple[Any, ...]) -> None:
    """A kept model that is still on its device needs no room; one in host memory is about to be loaded."""
    own = keep.models_of(outputs)
    there = [name_of(entry.device) for model in own[:1] for entry in entries_of(model)]
    if request.eject_models and request.compute not in there:
        make_room(request.compute, own)


_LISTENERS = ((lifecycle.before_load, _before_load), (lifecycle.reused, _reused))


def install() -> None:
    """Listen to the life of models of ours; a second call does nothing."""
    keep.install()
    lifecycle.follow(_LISTENERS)


def uninstall() -> None:
    """Stop listening, and let go of everything."""
    lifecycle.leave(_LISTENERS)
    keep.uninstall()
