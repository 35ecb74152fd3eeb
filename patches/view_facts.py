# SPDX-License-Identifier: Apache-2.0
"""What the memory view says of placements and models, in the form that docs/openapi.json gives it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from distorch import devices, placements, scan
from distorch.recorder import Held
from distorch.step_times import StepTimes


def placement_json(placement: placements.Placement, steps: StepTimes) -> dict[str, Any]:
    """Return one placement; step times are null where they are not known."""
    predicted = getattr(placement, "predicted_step_s", None)
    measured = steps.seconds(placement.key)
    how = getattr(placement, "how", None) or {}
    return {
        "key": placement.key,
        "name": placement.name,
        "file": placement.file,
        "compute": placement.compute,
        "requested": placement.requested,
        "state": placement.state,
        "blocks": [
            {"name": name, "device": device, **({"how": how[name]} if name in how else {})}
            for name, device in placement.blocks.items()
        ],
        "bytes": dict(placement.bytes_per_device),
        "streaming": placement.streaming,
        "notes": list(placement.notes),
        "predicted_step_ms": None if predicted is None else round(predicted * 1000, 3),
        "measured_step_ms": None if measured is None else round(measured * 1000, 3),
    }


def management_of(module: nn.Module) -> scan.Management | None:
    """Return how DisTorch manages `module`, None where it does not."""
    for placement in placements.placements():
        if placement.key == id(module):
            away = sum(
                size
                for device, size in placement.bytes_per_device.items()
                if device != placement.compute
            )
            streamed = away if placement.state == "placed" else 0
            return scan.Management(False, placement.compute, streamed, 0)
    return None


def dynamic_bytes(module: nn.Module) -> dict[str, int]:
    """Return the bytes of ComfyUI's DynamicVRAM pages that hold weights of `module`, by device.

    The module's own parameters stay in RAM; the pages are no tensor's storage. Whole pages are
    counted, as the device gives them. Buffers of single casts belong to no model and are not here.
    """
    found: dict[str, int] = {}
    for device, pages in dict(vars(module).get("dynamic_vbars") or {}).items():
        size = int(pages.loaded_size()) if pages is not None else 0
        if size:
            found[devices.canonical_name(device.type, device.index or 0)] = size
    return found


def inventory(rows: Iterable[scan.Row]) -> dict[int, Held]:
    """Return the rows in the form that the recorder compares."""
    return {row.id: Held(row.name, row.type, row.bytes) for row in rows}


def resolve(folder: str, name: str) -> str | None:
    """Return the path of `name` in a model folder of ComfyUI, None where there is none."""
    import folder_paths

    if folder not in folder_paths.folder_names_and_paths:
        return None
    found: str | None = folder_paths.get_full_path(folder, name)
    return found


def differs(old: dict[str, Any], new: dict[str, Any], least: int) -> bool:
    """Whether a page must hear of `new`: models, placements, or `least` bytes on a device."""
    if old.get("models") != new["models"] or old.get("placements") != new["placements"]:
        return True
    before, after = old.get("devices", []), new["devices"]
    if len(before) != len(after):
        return True
    return any(
        abs(a[key] - b[key]) >= least
        for a, b in zip(before, after, strict=True)
        for key in ("models", "tensors", "unused", "free" if a["device"] != "cpu" else "models")
    )
