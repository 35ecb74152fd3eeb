# SPDX-License-Identifier: Apache-2.0
"""What the memory view says of placements and models, in the form that docs/openapi.json gives it."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

from torch import nn

from distorch import devices, memory
from distorch.memory import names, placements
from distorch.memory.recorder import Held
from distorch.memory.step_times import StepTimes

from ..ejecting import keep


def placement_json(placement: placements.Placement, steps: StepTimes) -> dict[str, Any]:
    """Return one placement; step times are null where they are not known."""
    predicted = placement.predicted_step_s
    measured = steps.seconds(placement.key)
    modes = placement.modes()
    return {
        "key": placement.key,
        "name": placement.name,
        "file": placement.file,
        "compute": placement.compute,
        "requested": placement.requested,
        "state": placement.state,
        "blocks": [
            {
                "name": name,
                "device": device,
                "how": modes[name],
                "bytes": placement.sizes.get(name, 0),
                "reason": placement.reasons.get(name, ""),
                "waits": placement.waiting.get(name, ""),
            }
            for name, device in placement.blocks.items()
        ],
        "bytes": dict(placement.bytes_per_device),
        "streaming": placement.streaming,
        "streamed_bytes": placement.streamed_bytes,
        "staging_bytes": placement.staging_bytes,
        "slots": placement.slots,
        "pinned_bytes": placement.pinned,
        "caps": dict(placement.caps),
        "notes": list(placement.notes),
        "predicted_step_ms": None if predicted is None else round(predicted * 1000, 3),
        "measured_step_ms": None if measured is None else round(measured * 1000, 3),
    }


class Loaders:
    """Which node gave a model last, the first of its prompt: others pass it on. Holds no model alive."""

    def __init__(self) -> None:
        self._nodes: weakref.WeakKeyDictionary[nn.Module, tuple[str, str]] = (
            weakref.WeakKeyDictionary()
        )

    def returned(self, prompt: str, node: str, outputs: object) -> None:
        """A node has returned `outputs`."""
        for module in names.modules_in(outputs):
            if self._nodes.get(module, ("", ""))[0] != prompt:
                self._nodes[module] = (prompt, node)

    def of(self, module: nn.Module | None) -> str:
        """The id of the node; "" where it is not known."""
        return "" if module is None else self._nodes.get(module, ("", ""))[1]


def management_of(module: nn.Module) -> memory.Management | None:
    """Return how DisTorch manages `module`, None where it does not."""
    placement = placements.find(id(module))
    if placement is None:
        return None
    away = sum(placement.bytes_per_device.values()) - placement.bytes_per_device.get(
        placement.compute, 0
    )
    flagged = keep.is_flagged(module)
    if placement.state != "placed":
        return memory.Management(flagged, placement.compute, 0, 0)
    migrated = _migrated_bytes(module, placement)
    return memory.Management(flagged, placement.compute, max(0, away - migrated), migrated)


def _migrated_bytes(module: nn.Module, placement: placements.Placement) -> int:
    """Return the bytes of the groups that run on a donor, by their modules' tensors."""
    sizes = {}
    for name, mode in placement.groups.items():
        if mode == "migrated":
            group = module.get_submodule(name)
            for tensor in (*group.parameters(), *group.buffers()):
                if devices.name_of(tensor.device) != placement.compute:
                    sizes[id(tensor)] = tensor.nbytes
    return sum(sizes.values())


def staging_bytes(module: nn.Module) -> dict[str, int]:
    """Return the memory through which the blocks of a placed model are streamed."""
    placement = placements.find(id(module))
    if placement is None or placement.state != "placed" or not placement.staging_bytes:
        return {}
    return {placement.compute: placement.staging_bytes}


def dynamic_bytes(module: nn.Module) -> dict[str, int]:
    """Return the bytes of ComfyUI's DynamicVRAM pages that hold weights of `module`, by device.

    The module's own parameters stay in RAM; the pages are no tensor's storage. Whole pages are
    counted, as the device gives them. Buffers of single casts belong to no model and are not here.
    """
    found: dict[str, int] = {}
    for device, pages in dict(vars(module).get("dynamic_vbars") or {}).items():
        size = int(pages.loaded_size()) if pages is not None else 0
        if size:
            found[devices.name_of(device)] = size
    return found


def inventory(rows: Iterable[memory.Row]) -> dict[int, Held]:
    """Return the rows in the form that the recorder compares."""
    return {row.id: Held(row.name, row.type, row.bytes) for row in rows}


def resolve(folder: str, name: str) -> str | None:
    """Return the path of `name` in a model folder of ComfyUI; with "" the folder that has it. None where there is none."""
    import folder_paths

    known = folder_paths.folder_names_and_paths
    if folder:
        found: str | None = folder_paths.get_full_path(folder, name) if folder in known else None
        return found
    return next((one for one in known if folder_paths.get_full_path(one, name)), None)


def _does(device: dict[str, Any]) -> tuple[Any, ...]:
    """What the tab shows of a GPU's activity, as coarsely as it does."""
    found = device.get("activity")
    if not found:
        return ()
    power, sent, received = found["power"], found["pcie_sent"], found["pcie_received"]
    traffic = [None if one is None else round(one / (64 * 2**20)) for one in (sent, received)]
    processes = [(p["pid"], (p["bytes"] or 0) >> 24) for p in found["processes"] or ()]
    return (found["load"], found["temperature"], power and round(power / 5), traffic, processes)


def differs(old: dict[str, Any], new: dict[str, Any], least: int) -> bool:
    """Whether a page must hear of `new`: models, placements, or `least` bytes on a device."""
    if old.get("models") != new["models"] or old.get("placements") != new["placements"]:
        return True
    before, after = old.get("devices", []), new["devices"]
    if len(before) != len(after):
        return True
    if any(_does(a) != _does(b) for a, b in zip(before, after, strict=True)):
        return True
    return any(
        abs(a[key] - b[key]) >= least
        for a, b in zip(before, after, strict=True)
        for key in ("models", "tensors", "unused", "free" if a["device"] != "cpu" else "models")
    )
