# SPDX-License-Identifier: Apache-2.0
"""Models that share a device settle: what one has taken the other does not take back at every prompt.

Reason: each time a model loads, ComfyUI makes room for the whole of it, also where it could stream. Two that do not fit
side by side would put each other out at every prompt. Here a model that comes for the first time gets its room from
the others, as ComfyUI makes it. One that comes back leaves alone what was used since its own last prompt: it takes
what is free and streams the rest. What it needs in order to run at all (memory to compute in, what always stays on the
device, slots) is made free in any case. A model that lay idle for a prompt gives way again.

That holds between models that stream well, of which one at least is ours: placed ones, their parts on donors, and those
of DynamicVRAM. For all others both functions are the core's; of dynamic ones it is noted when they come, as a text
encoder often does before the first of ours is there.
"""

from __future__ import annotations

import contextvars
import dataclasses
import inspect
import sys
import weakref
from collections.abc import Callable
from typing import Any

import comfy.model_management as mm
import torch

from ..seams import headroom
from ..seams.seam import FunctionSeam
from .donors import DonorPatcher
from .patcher import DisTorchMixin


@dataclasses.dataclass(frozen=True)
class _Load:
    """One call of `load_models_gpu`: its patchers, and what the core wants to be free beside their weights."""

    patchers: tuple[Any, ...]
    working: float


@dataclasses.dataclass
class _Uses:
    """The two latest prompts, by number, in which a model came to a device; equal after the first."""

    device: torch.device
    before: int
    latest: int


_load: contextvars.ContextVar[_Load | None] = contextvars.ContextVar("distorch_load", default=None)
_uses: weakref.WeakKeyDictionary[Any, _Uses] = weakref.WeakKeyDictionary()
_prompt: tuple[Any, int] = (None, 0)


def _is_ours(patcher: Any) -> bool:
    return isinstance(patcher, (DisTorchMixin, DonorPatcher))


def _is_dynamic(patcher: Any) -> bool:
    return bool(getattr(patcher, "is_dynamic", bool)())


def _shares(patcher: Any) -> bool:
    return _is_ours(patcher) or _is_dynamic(patcher)


def _number() -> int:
    """A number for the prompt that runs; the same one always where nobody tells."""
    global _prompt
    server = getattr(sys.modules.get("server"), "PromptServer", None)
    known = getattr(getattr(server, "instance", None), "last_prompt_id", None)
    if known != _prompt[0]:
        _prompt = (known, _prompt[1] + 1)
    return _prompt[1]


def _loaded_on(device: torch.device) -> list[Any]:
    entries = [entry for entry in mm.current_loaded_models if entry.model is not None]
    return [entry for entry in entries if entry.device == device]


def _around_load(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    asked = inspect.signature(original).bind(*args, **kwargs).arguments
    patchers = [p for p in asked["models"] if p is not None]
    patchers += [more for p in patchers for more in p.model_patches_models()]
    in_parts = not asked.get("force_full_load") and mm.vram_state.name not in (
        "HIGH_VRAM",
        "SHARED",
    )
    least = asked.get("minimum_memory_required")
    least = asked.get("memory_required", 0) if least is None else least
    working = max(mm.minimum_inference_memory(), least + mm.extra_reserved_memory())
    token = _load.set(_Load(tuple(patchers), working) if in_parts else None)
    try:
        answer = original(*args, **kwargs)
    finally:
        _load.reset(token)
    for patcher in filter(_shares, patchers):
        _note(patcher)
        # Its parts on donors are asked for no room when all is there.
        if isinstance(patcher, DisTorchMixin):
            for part in patcher.distorch_placed().donor_patchers.values():
                _note(part)
    return answer


def _note(patcher: Any) -> None:
    """The model came to its device in this prompt. Where it is alone, the others begin anew when they come."""
    device, number, model = patcher.load_device, _number(), patcher.model
    others = [e.model.model for e in _loaded_on(device) if _shares(e.model)]
    if not any(other is not model for other in others):
        for other in [m for m, uses in _uses.items() if uses.device == device and m is not model]:
            del _uses[other]
    known = _uses.get(model)
    if known is None or known.device != device:
        _uses[model] = _Uses(device, number, number)
    elif known.latest != number:
        _uses[model] = _Uses(device, known.latest, number)


def _stays(entry: Any, patcher: Any) -> bool:
    """Whether `patcher`, which comes to the entry's device, leaves its memory alone."""
    other = entry.model
    if not (_shares(patcher) and _shares(other) and (_is_ours(patcher) or _is_ours(other))):
        return False
    mine, its = _uses.get(patcher.model), _uses.get(other.model)
    if mine is None or its is None or mine.device != entry.device:
        return False
    return its.latest >= (mine.before if mine.latest == _number() else mine.latest)


def _around_free(
    original: Callable[..., Any], memory_required: float, device: Any, *args: Any, **kwargs: Any
) -> Any:
    load = _load.get()
    if load is None or device is None or args or "keep_loaded" in kwargs or mm.DISABLE_SMART_MEMORY:
        return original(memory_required, device, *args, **kwargs)
    coming = [p for p in load.patchers if p.load_device == device]
    models = [p.model for p in coming]
    there = [e for e in _loaded_on(device) if all(e.model.model is not m for m in models)]
    stay = [e for e in there if coming and all(_stays(e, p) for p in coming)]
    least = load.working + sum(map(_least, coming))
    wanted = least if stay else memory_required
    if any(map(_is_ours, coming)) and any(_is_dynamic(e.model) for e in there):
        headroom.make_room(device, wanted)
    if not stay:
        return original(memory_required, device, **kwargs)
    unloaded = original(memory_required, device, keep_loaded=stay, **kwargs)
    if mm.get_free_memory(device) < least:
        unloaded = unloaded + original(least, device, **kwargs)
    return unloaded


def _least(patcher: Any) -> int:
    """Bytes that a model of ours must have beyond what it has, to run at all."""
    return patcher.distorch_least() if isinstance(patcher, DisTorchMixin) else 0


SEAMS = (
    FunctionSeam(mm, "load_models_gpu", _around_load, "which models ask for room"),
    FunctionSeam(mm, "free_memory", _around_free, "models that share a device settle"),
)


def install() -> None:
    """Wrap both functions."""
    for seam in SEAMS:
        seam.install()


def uninstall() -> None:
    """Put the core's functions back, and forget who came when."""
    for seam in SEAMS:
        seam.uninstall()
    _uses.clear()
