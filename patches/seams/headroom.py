# SPDX-License-Identifier: Apache-2.0
"""Room on a device is asked of DynamicVRAM's models by the headroom of the library below it.

Reason: ComfyUI's own way takes what is asked for from one model after the other, and detaches each that holds less.
comfy-aimdo 0.6.0 and later can be told at run time how much is to stay free; it then takes single pages, those of the
models used longest ago first, and all models stay loaded. The figure holds for all devices of the process, so it is
raised only while the library acts upon it, which is at the next allocation on the device. Where it cannot be told, or
that does not suffice, ComfyUI's own way follows.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

import comfy.model_management as mm
import torch

log = logging.getLogger("DisTorch")

_TRIES = 3  # what others than this process hold is not in the library's own count
_ALLOCATION = (
    32 * 2**20
)  # bytes; a page, more than an allocator gives out of what it has for small ones


def _control() -> Any | None:
    control = sys.modules.get("comfy_aimdo.control")
    can = all(
        hasattr(control, name) for name in ("get_simple_vram_headroom", "set_simple_vram_headroom")
    )
    return control if can and getattr(control, "lib", None) is not None else None


def make_room(device: torch.device, wanted: float) -> None:
    """Has pages leave the device until `wanted` bytes are free there, as far as they do; the figure is as before then."""
    control = _control()
    if control is None or mm.get_free_memory(device) >= wanted:
        return
    before = control.get_simple_vram_headroom()
    raised = max(before, int(wanted))
    try:
        for _ in range(_TRIES):
            control.set_simple_vram_headroom(raised)
            _act(device)
            missing = int(wanted - mm.get_free_memory(device))
            if missing <= 0:
                break
            raised += missing
    finally:
        control.set_simple_vram_headroom(before)


def _act(device: torch.device) -> None:
    try:
        torch.empty(_ALLOCATION, dtype=torch.uint8, device=device)
    except torch.OutOfMemoryError as error:  # ComfyUI's own way makes the room
        log.debug("DynamicVRAM was asked for room on %s: %s", device, error)
