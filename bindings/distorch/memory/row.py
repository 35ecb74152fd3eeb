# SPDX-License-Identifier: Apache-2.0
"""One line of the answer to "who holds the memory": a model, its name, its bytes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from distorch import _C

MEGABYTE = 1024 * 1024
TOP = 10  # models of a device that are listed


@dataclass(frozen=True)
class Row:
    """A model that is alive. Sizes in bytes, times in seconds since 1970."""

    id: int  # stays the same while the model lives; never given twice
    name: str
    type: str  # checkpoint, lora, vae, clip, controlnet, upscaler, depth, model
    class_name: str
    bytes: dict[str, int]  # device -> bytes that count for this model
    layers: int  # modules that own a tensor
    modules: int
    parameters: int
    dtype: str  # the one with the most elements, "" without tensors
    file: str = ""  # relative to ComfyUI's model folders
    architecture: str = ""
    base_model: str = ""
    metadata: dict[str, str] = field(default_factory=dict)  # modelspec.* of the file
    loaded_since: float = 0.0
    last_used: float = 0.0  # 0: not known
    managed: bool = False  # placed by DisTorch
    eject: bool | None = None  # flagged for the next eject; None: not managed
    compute: str = ""  # where a managed model runs
    offloaded: int = 0  # bytes in RAM of a model that also, or usually, runs on an accelerator
    streamed: int = 0  # bytes copied to the compute device ahead of use
    migrated: int = 0  # bytes whose blocks run where they are stored
    owned: dict[str, int] = field(default_factory=dict)  # the part of `bytes` in tensors
    outside: dict[str, int] = field(default_factory=dict)  # the part that no tensor owns
    shared_bytes: dict[str, int] = field(default_factory=dict)  # counted for an older model
    shares_with: tuple[str, ...] = ()  # names

    @property
    def total(self) -> int:
        """All bytes of the model, on every device."""
        return sum(self.bytes.values())

    @property
    def display(self) -> str:
        """`Wan2_2-T2V-A14B-HIGH (checkpoint, 2.1 GB, 145 layers)`, with " (offloaded)"."""
        text: str = _C.display_model(self.name, self.type, self.total, self.layers)
        return f"{text} (offloaded)" if self.offloaded else text

    def display_on(self, device: str) -> str:
        """Return the display text with the part on `device` only."""
        text: str = _C.display_model(self.name, self.type, self.bytes.get(device, 0), self.layers)
        return f"{text} (offloaded)" if device == "cpu" and self.offloaded else text

    def as_json(self) -> dict[str, Any]:
        """Return all fields, plus `total` and `display`, as JSON can hold them."""
        fields = asdict(self)
        del fields["owned"]
        fields["shares_with"] = list(self.shares_with)
        return {**fields, "total": self.total, "display": self.display}


def largest_on(rows: Iterable[Row], device: str) -> list[Row]:
    """Return the models with bytes on `device`, largest first."""
    there = [row for row in rows if row.bytes.get(device)]
    return sorted(there, key=lambda row: (-row.bytes[device], row.name, row.id))


def lines_of(rows: Iterable[Row], device: str, top: int = TOP) -> list[str]:
    """Return the display lines of the `top` largest models on `device`, then "and N more"."""
    there = largest_on(rows, device)
    lines = [row.display_on(device) for row in there[:top]]
    return [*lines, f"and {len(there) - top} more"] if len(there) > top else lines


def profiler_form(rows: Iterable[Row]) -> dict[str, Any]:
    """Return the rows in the form of `GET /swissarmyknife/profiler/loaded_models`.

    Accelerators only, keyed by their index as text: the ten largest models of each, and how many `more` there are. Where several kinds of accelerator
    are present, an index names the one of the kind that comes first by name.
    """
    known = list(rows)
    devices = sorted({d for row in known for d in row.bytes if ":" in d and row.bytes[d]})
    data: dict[str, Any] = {}
    for device in devices:
        index = device.rsplit(":", 1)[1]
        if index in data:
            continue
        there = largest_on(known, device)
        models = [_profiler_model(row, device) for row in there[:TOP]]
        total = sum(row.bytes.get(device, 0) for row in known)
        data[index] = {
            "models": models,
            "total_vram_mb": round(total / MEGABYTE, 2),
            "more": len(there) - len(models),
        }
    return {"success": True, "data": data}


def _profiler_model(row: Row, device: str) -> Mapping[str, Any]:
    return {
        "name": row.name,
        "type": row.type,
        "vram_mb": round(row.bytes[device] / MEGABYTE, 2),
        "class_name": row.class_name,
        "layer_count": row.layers,
        "param_count": row.parameters,
        "display_name": row.display_on(device),
    }
