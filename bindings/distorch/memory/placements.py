# SPDX-License-Identifier: Apache-2.0
"""Which managed models there are and where their blocks lie, for the interface and the log.

Whoever places a model tells this registry after each change; whoever shows it asks `placements()`.
It knows neither torch nor ComfyUI and holds no model alive. Safe to use from several threads.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Mapping

# A model may die, and be forgotten, in a collection of garbage that begins while the lock is held.
_lock = threading.RLock()
_records: dict[int, Placement] = {}


@dataclasses.dataclass(frozen=True)
class Placement:
    """One managed model as it lies now; sizes in bytes, devices as "cuda:0", "cpu".

    `state` is "waiting" (not loaded yet), "placed" or "released" (its blocks are on the host only).
    `blocks` gives each block's device, read back from its tensors. `spilled` are the bytes that the
    plan wants elsewhere and that had to go to the host, because the memory was needed.

    `sizes` are the bytes of each block, `waiting` the blocks among the spilled ones with the device that the plan gives
    them. `caps` are the plan's, `slots` counts those through which groups are streamed, `pinned` are the
    bytes of host memory that are page-locked for it.

    `streaming` says in a line how it runs. `streamed_bytes` are copied to the compute device in
    every step, through `staging_bytes` of memory there; `migrated` counts the layer groups that run
    on a donor, by donor, `groups` says of each group "streamed" or "migrated". `compute_step_s`
    are the measured seconds that the layer groups compute in a step, `predicted_step_s` what a step
    of them takes with the copies; None until two steps were measured, or where a link is not known.
    """

    key: int
    name: str
    file: str
    compute: str
    requested: str
    state: str
    blocks: Mapping[str, str]
    bytes_per_device: Mapping[str, int]
    reasons: Mapping[str, str] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    waiting: Mapping[str, str] = dataclasses.field(default_factory=dict)
    caps: Mapping[str, int] = dataclasses.field(default_factory=dict)
    slots: int = 0
    pinned: int = 0
    plan: str = ""
    patched: int = 0
    spilled: int = 0
    streaming: str = ""
    streamed_bytes: int = 0
    staging_bytes: int = 0
    migrated: Mapping[str, int] = dataclasses.field(default_factory=dict)
    groups: Mapping[str, str] = dataclasses.field(default_factory=dict)
    compute_step_s: float | None = None
    predicted_step_s: float | None = None

    def modes(self) -> dict[str, str]:
        """How each block is used: "resident" where it computes, "streamed" or "migrated"."""
        return {name: self._mode(name, device) for name, device in self.blocks.items()}

    def _mode(self, block: str, device: str) -> str:
        if device == self.compute:
            return "resident"
        name = block.partition(" (")[0]  # "(own)" and "(buffers)" are parts of a module
        while name and name not in self.groups:
            name = name.rpartition(".")[0]
        return self.groups.get(name, "streamed")

    @property
    def total(self) -> int:
        """Bytes of the whole model."""
        return sum(self.bytes_per_device.values())


def record(placement: Placement) -> None:
    """Adds a model, or replaces what was known of it (by `key`)."""
    with _lock:
        _records[placement.key] = placement


def forget(key: int) -> None:
    """Removes a model; one that is not there is no error."""
    with _lock:
        _records.pop(key, None)


def placements() -> list[Placement]:
    """Every managed model that is alive, in the order of first loading."""
    with _lock:
        return list(_records.values())


def find(key: int) -> Placement | None:
    """What is known of one model."""
    with _lock:
        return _records.get(key)
