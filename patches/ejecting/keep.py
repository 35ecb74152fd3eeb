# SPDX-License-Identifier: Apache-2.0
"""Which managed models stay through "free": their flags, and the outputs that are held.

`keep_loaded` (default on): the outputs of the loader are held here, so that the model outlives the executor's caches;
the core itself holds weak references only. Off: the inner model carries `_mgpu_unload_distorch_model == True` and
nothing here holds it. A kept model is let go of when it is ejected, when a node asks for the same file with
`keep_loaded` off or with other settings, or when the host runs out of memory (`pressure`). Running the same loader
again with the same files and settings gives the kept outputs: no byte is read.

What leaves a device, and when, is `managed`'s business.

Used by ComfyUI's one worker thread; `kept()` may be called from any.
"""

from __future__ import annotations

import gc
import logging
import pathlib
import threading
import weakref
from typing import Any

import comfy.model_management as mm
import folder_paths

from distorch import hostmemory

from ..placing.adopt import find_patcher
from ..placing.donors import FLAG, DonorPart
from ..seams import lifecycle

log = logging.getLogger("DisTorch")

#: Share of the host's memory in use above which kept models are let go of, oldest first (0 to 1).
pressure = 0.92

# What a widget may change without the loaded model being another one.
_NOT_ITS_IDENTITY = ("keep_loaded", "eject_models")


class Kept:
    """The outputs of one loader that are held, and what they were loaded from.

    `whole` is False when a part of them was let go of: they cannot be given to the loader again.
    """

    def __init__(self, outputs: tuple[Any, ...], request: Any, signature: tuple[Any, ...]) -> None:
        self.outputs, self.request, self.signature = outputs, request, signature
        self.whole = True

    def is_of(self, node: str, file: str) -> bool:
        """Whether this kind of node loaded it from files of these names."""
        return (self.signature[0], self.request.file) == (node, file)

    @property
    def models(self) -> list[Any]:
        """The inner models."""
        return models_of(self.outputs)

    def without(self, model: Any) -> Kept | None:
        """What is left when a model is let go of; None if no managed one is."""
        outputs = tuple(o for o in self.outputs if _model_of(o) is not model)
        rest = Kept(outputs, self.request, self.signature)
        rest.whole = False
        return rest if any(m in _managed for m in rest.models) else None


def _model_of(output: Any) -> Any | None:
    patcher = find_patcher(output)
    return None if patcher is None else patcher.model


def models_of(outputs: tuple[Any, ...]) -> list[Any]:
    """The inner models in a node's outputs."""
    return [model for model in map(_model_of, outputs) if model is not None]


_lock = threading.Lock()
_kept: list[Kept] = []
_managed: weakref.WeakSet[Any] = weakref.WeakSet()


def managed() -> list[Any]:
    """The inner models of ours that are alive."""
    return list(_managed)


def is_managed(model: Any) -> bool:
    """Whether an inner model is one of ours."""
    return any(model is other for other in managed())


def kept() -> list[Kept]:
    """What is held now, oldest first."""
    with _lock:
        return list(_kept)


def owner_of(model: Any) -> Any:
    """The inner model that a donor's donor_patcher belongs to; any other model itself."""
    return model.owner() if isinstance(model, DonorPart) else model


def title(model: Any) -> str:
    """What reports call an inner model: its class, and the file of one of ours."""
    placed = getattr(model, "_distorch_placed", None)
    file = placed.request.file if placed is not None else ""
    return f"{type(model).__name__} ({file})" if file else type(model).__name__


def is_kept(model: Any) -> bool:
    """Whether an inner model is held here, or the one whose donor_patcher it is."""
    model = owner_of(model)
    return any(model is other for entry in kept() for other in entry.models)


def is_flagged(model: Any) -> bool:
    """Whether a "free" unloads this inner model."""
    return bool(getattr(model, FLAG, False))


def release(model: Any) -> bool:
    """Let go of an inner model, and flag it; says whether it was held. What was loaded with it stays kept."""
    setattr(model, FLAG, True)
    with _lock:
        holding = [entry for entry in _kept if any(model is m for m in entry.models)]
        rests = [rest for entry in holding if (rest := entry.without(model)) is not None]
        _kept[:] = [entry for entry in _kept if entry not in holding] + rests
        return bool(holding)


def retain(model: Any) -> None:
    """Take the flag off again: a "free" leaves the model alone while somebody holds it."""
    setattr(model, FLAG, False)


def _stat(value: object) -> tuple[Any, ...]:
    """Path, size and time of every file that an input may name: several folders can hold one of that name."""
    if not isinstance(value, str) or not value:
        return ()
    found = []
    for folder in folder_paths.folder_names_and_paths:
        try:
            path = folder_paths.get_full_path(folder, value)
            if path:
                status = pathlib.Path(path).stat()
                found.append((path, status.st_size, status.st_mtime_ns))
        except (ValueError, OSError, KeyError):
            continue
    return tuple(found)


def _comparable(value: object) -> object:
    """What is equal for equal inputs; an object by itself, as long as it lives."""
    if value is None or isinstance(value, (str, int, float, tuple, list, dict)):
        return repr(value)
    try:
        return weakref.ref(value)
    except TypeError:
        return repr(value)


def _signature(request: Any, node: str, inputs: dict[str, Any]) -> tuple[Any, ...]:
    settings = {k: v for k, v in sorted(inputs.items()) if k not in _NOT_ITS_IDENTITY}
    files = tuple(_stat(value) for value in settings.values())
    values = tuple((k, _comparable(v)) for k, v in settings.items())
    return (node, *request.identity, values, files)


def _on_adopted(patcher: Any, _request: Any) -> None:
    _managed.add(patcher.model)


def _on_loaded(request: Any, node: str, inputs: dict[str, Any], outputs: tuple[Any, ...]) -> None:
    new = Kept(outputs, request, _signature(request, node, inputs))
    for model in new.models:  # also those that came with the placed one: the widget is the node's
        setattr(model, FLAG, not request.keep_loaded)
    if request.keep_loaded:
        with _lock:
            _kept.append(new)


def _reuse(request: Any, node: str, inputs: dict[str, Any]) -> tuple[Any, ...] | None:
    signature = _signature(request, node, inputs)
    for entry in kept():
        if not entry.whole or entry.signature != signature:
            continue
        if request.keep_loaded:
            for model in entry.models:
                retain(model)
        else:
            _drop(entry)
        log.info("%s: the kept model is used again, nothing is read", node)
        return entry.outputs
    return None


def _before_load(request: Any, node: str, _inputs: dict[str, Any]) -> None:
    _replace(node, request.file)
    relieve()


def _replace(node: str, file: str) -> None:
    """Let go of what this node kept of a file before it reads it anew: both may not fit into the host's memory."""
    for entry in kept():
        if entry.is_of(node, file):
            log.info("%s: %s is loaded anew; what was kept of it is let go of", node, file)
            _drop(entry)


def _drop(entry: Kept) -> None:
    with _lock:
        _kept[:] = [other for other in _kept if other is not entry]
    for model in entry.models:
        setattr(model, FLAG, True)


def relieve() -> list[str]:
    """Let go of kept models while the host has too little memory, those that are not loaded first; returns names."""
    let_go: list[str] = []
    while (entries := kept()) and _host_is_full():
        names = _let_go_of_one(entries)
        let_go += names
        gc.collect()  # so that the next look sees what this one gave back
        log.warning(
            "the host's memory is more than %.0f %% full: %s is no longer kept",
            100 * pressure,
            ", ".join(names),
        )
    return let_go


def _host_is_full() -> bool:
    return hostmemory.available_bytes() < (1 - pressure) * hostmemory.total_bytes()


def _let_go_of_one(entries: list[Kept]) -> list[str]:
    loaded = {id(e.model.model) for e in mm.current_loaded_models if e.model is not None}
    entry = min(entries, key=lambda entry: any(id(m) in loaded for m in entry.models))
    names = [title(model) for model in entry.models]
    _drop(entry)
    return names


_LISTENERS = (
    (lifecycle.adopted, _on_adopted),
    (lifecycle.loaded, _on_loaded),
    (lifecycle.reuse, _reuse),
    (lifecycle.before_load, _before_load),
)


def install() -> None:
    """Listen to the life of managed models; a second call does nothing."""
    lifecycle.follow(_LISTENERS)


def uninstall() -> None:
    """Stop listening and let go of everything."""
    lifecycle.leave(_LISTENERS)
    with _lock:
        _kept.clear()
