# SPDX-License-Identifier: Apache-2.0
"""Measures what the choice between streaming and migrating needs: seconds and activation bytes of each group.

Two steps are measured, after a first one that warms up. Seconds are those of the compute stream where the device has
events, the host's otherwise; waiting for copies does not count.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch

from distorch.devices import device_module
from distorch.nested import tensors_in

# Steps that are measured, counted from 1.
FIRST, LAST = 2, 3


@dataclass
class GroupProfile:
    """One group: mean seconds of a call, bytes of its tensor inputs and outputs, calls measured."""

    seconds: float = 0.0
    input_bytes: int = 0
    output_bytes: int = 0
    calls: int = 0


class Profile:
    """What was measured so far. One thread at a time.

    Attributes:
        groups: by name.
        active: whether the present step is measured.
        complete: whether all measured steps have ended.
        order: groups in the order of their first calls.
    """

    def __init__(self, device: torch.device) -> None:
        module = device_module(device.type)
        self._events: Any = module if device.type == "cuda" else None
        self._device = device
        self._step = 0
        self._open: dict[str, Any] = {}
        self._closed: list[tuple[str, Any, Any]] = []
        self.groups: dict[str, GroupProfile] = {}
        self.active = False
        self.complete = False

    @property
    def order(self) -> list[str]:
        """Names in the order of the first calls."""
        return list(self.groups)

    @property
    def seconds(self) -> float:
        """Seconds of all measured groups in one step."""
        return sum(self.group_seconds.values())

    @property
    def group_seconds(self) -> dict[str, float]:
        """Seconds of each group in one step; {} until all steps are measured."""
        steps = LAST - FIRST + 1
        if not self.complete:
            return {}
        return {name: g.seconds * g.calls / steps for name, g in self.groups.items()}

    def begin_step(self) -> None:
        """A step begins."""
        self._step += 1
        self.active = FIRST <= self._step <= LAST
        if self._step > LAST and not self.complete:
            self._collect()
            self.complete = bool(self.groups)

    def forget(self) -> None:
        """The step was cut off: begin again with the next."""
        if not self.complete:
            self._step = min(self._step, FIRST - 1)
            self.groups.clear()
            self._open.clear()
            self._closed.clear()
            self.active = False

    def enter(self, name: str, args: Any, kwargs: Any) -> None:
        """A group begins."""
        group = self.groups.setdefault(name, GroupProfile())
        group.input_bytes = sum(t.nbytes for t in tensors_in((args, kwargs)))
        self._open[name] = self._now()

    def leave(self, name: str, output: Any) -> None:
        """It has queued its work."""
        begin = self._open.pop(name, None)
        if begin is None:
            return
        self.groups[name].output_bytes = sum(t.nbytes for t in tensors_in(output))
        self._closed.append((name, begin, self._now()))

    def _now(self) -> Any:
        if self._events is None:
            return time.perf_counter()
        event = self._events.Event(enable_timing=True)
        event.record(self._events.current_stream(self._device))
        return event

    def _collect(self) -> None:
        for name, begin, end in self._closed:
            if self._events is None:
                seconds = end - begin
            else:
                end.synchronize()
                seconds = begin.elapsed_time(end) / 1000
            group = self.groups[name]
            group.seconds += (seconds - group.seconds) / (group.calls + 1)
            group.calls += 1
        self._closed.clear()
