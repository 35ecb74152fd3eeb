# SPDX-License-Identifier: Apache-2.0
"""Memory in one line, and a series of such lines with a summary; bounded, and free of cost while it is off.

    snapshot_line("after_load")  ->  tag=after_load|cpu=11.52/23.46|cuda:0=3.10/24.00

Figures are used/total in GB (2^30 bytes). Only devices that this process has used appear, besides cpu.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass

from distorch import devices as _devices

_GB = 2**30


@dataclass(frozen=True)
class Snapshot:
    """One look: seconds since the epoch, who asked and why, and (used, total) bytes a device."""

    time: float
    identifier: str
    tag: str
    devices: dict[str, tuple[int, int]]

    def line(self) -> str:
        """Return the one-line form."""
        parts = [
            f"{d}={used / _GB:.2f}/{total / _GB:.2f}" for d, (used, total) in self.devices.items()
        ]
        return "|".join([f"tag={self.tag}", *parts])

    def stamped(self) -> str:
        """Return the line with its time of day and identifier, as the series prints it."""
        clock = time.strftime("%H:%M:%S", time.localtime(self.time))
        return f"[{clock}.{int(self.time * 1000) % 1000:03d}] {self.identifier}: {self.line()}"


def look(tag: str, identifier: str = "") -> Snapshot:
    """Read the memory of cpu and of every accelerator in use; initialises none."""
    infos = [
        _devices.device_info("cpu"),
        *(_devices.device_info(d) for d in _devices.devices_in_use()),
    ]
    memory = {
        i.device: (i.used, i.total) for i in infos if i.used is not None and i.total is not None
    }
    return Snapshot(time.time(), identifier, tag, memory)


def snapshot_line(tag: str) -> str:
    """Return one line of the memory now."""
    return look(tag).line()


class SnapshotSeries:
    """Keeps the last `capacity` snapshots. Off until `start()`; `record` then costs one look. Thread safe."""

    def __init__(self, capacity: int = 1000) -> None:
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1, not {capacity}")
        self._items: deque[Snapshot] = deque(maxlen=capacity)
        self._lock = threading.Lock()
        self._dropped = 0
        self.enabled = False

    def start(self) -> None:
        """Begin a new series."""
        with self._lock:
            self._items.clear()
            self._dropped = 0
        self.enabled = True

    def stop(self) -> None:
        """Stop recording; what was recorded stays."""
        self.enabled = False

    def record(self, identifier: str, tag: str) -> Snapshot | None:
        """Add a snapshot; returns it, or None while the series is off."""
        if not self.enabled:
            return None
        snapshot = look(tag, identifier)
        with self._lock:
            self._dropped += len(self._items) == self._items.maxlen
            self._items.append(snapshot)
        return snapshot

    def snapshots(self) -> list[Snapshot]:
        """Return what is kept, oldest first."""
        with self._lock:
            return list(self._items)

    def summary(self) -> str:
        """Return the series and, a device, its least and most used bytes and the change from first to last."""
        items = self.snapshots()
        if not items:
            return "no snapshots"
        lines = [item.stamped() for item in items]
        if self._dropped:
            lines.insert(0, f"({self._dropped} older snapshots were dropped)")
        lines.append(
            f"=== memory over {len(items)} snapshots, {items[-1].time - items[0].time:.1f} s ==="
        )
        for device in dict.fromkeys(d for item in items for d in item.devices):
            used = [item.devices[device][0] for item in items if device in item.devices]
            lines.append(
                f"{device}: min {min(used) / _GB:.2f} GB, max {max(used) / _GB:.2f} GB, "
                f"change {(used[-1] - used[0]) / _GB:+.2f} GB"
            )
        return "\n".join(lines)
