# SPDX-License-Identifier: Apache-2.0
"""Measures what the choice between streaming and migrating needs: seconds and activation bytes of each group.

Two steps are measured, after a first one that warms up. Seconds are those of the current stream of the device that
computes the group where it is CUDA's, the host's otherwise; waiting for copies does not count.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch

from distorch.devices import device_module
from distorch.nested import tensors_in
from distorch.parts import tensor_bytes

# Steps that are measured, counted from 1.
FIRST, LAST = 2, 3


@dataclass
class GroupProfile:
    """One group: mean seconds of a call, bytes of its tensor inputs and outputs, calls measured.

    `elsewhere`: it computed on a donor, so that its seconds compare with those of no other group.
    `visits`: its calls without those that came straight after another of its own, for which it is there already.
    """

    seconds: float = 0.0
    input_bytes: int = 0
    output_bytes: int = 0
    calls: int = 0
    elsewhere: bool = False
    visits: int = 0


class Profile:
    """What was measured so far. One thread at a time.

    Attributes:
        groups: by name.
        active: whether the present step is measured.
        complete: whether all measured steps have ended.
        order: groups in the order of their first calls.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._step = 0
        self._last = ""
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
        return sum(map(_in_a_step, self.groups.values())) if self.complete else 0.0

    @property
    def group_seconds(self) -> dict[str, float]:
        """Seconds of each group in one step, but of those elsewhere; {} until all steps are measured."""
        if not self.complete:
            return {}
        return {name: _in_a_step(g) for name, g in self.groups.items() if not g.elsewhere}

    @property
    def often(self) -> list[str]:
        """Groups that are come back to within a step, each time with others in between."""
        steps = LAST - FIRST + 1
        return [name for name, g in self.groups.items() if self.complete and g.visits > steps]

    def begin_step(self) -> None:
        """A step begins."""
        self._step += 1
        self._last = ""
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

    def enter(self, name: str, args: Any, kwargs: Any, donor: torch.device | None = None) -> None:
        """A group begins, on `donor` where that is given."""
        group = self.groups.setdefault(name, GroupProfile())
        group.elsewhere = donor is not None
        group.visits += name != self._last
        self._last = name
        group.input_bytes = _bytes_in((args, kwargs))
        device = donor or self._device
        self._open[name] = device, _now(device)

    def leave(self, name: str, output: Any) -> None:
        """It has queued its work."""
        device, begin = self._open.pop(name, (None, None))
        if device is None:
            return
        self.groups[name].output_bytes = _bytes_in(output)
        self._closed.append((name, begin, _now(device)))

    def _collect(self) -> None:
        for name, begin, end in self._closed:
            if isinstance(end, float):
                seconds = end - begin
            else:
                end.synchronize()
                seconds = begin.elapsed_time(end) / 1000
            group = self.groups[name]
            group.seconds += (seconds - group.seconds) / (group.calls + 1)
            group.calls += 1
        self._closed.clear()


def _bytes_in(value: Any) -> int:
    """Return the bytes of all tensors in a nested value; of a travelling one without fetching it."""
    return sum(
        t.nbytes if t.layout is torch.strided else tensor_bytes(t) for t in tensors_in(value)
    )


def _in_a_step(group: GroupProfile) -> float:
    return group.seconds * group.calls / (LAST - FIRST + 1)


def _now(device: torch.device) -> Any:
    """Return the host's clock, or an event of the device's current stream."""
    module: Any = device_module(device.type) if device.type == "cuda" else None
    if module is None:
        return time.perf_counter()
    event = module.Event(enable_timing=True)
    event.record(module.current_stream(device))
    return event
