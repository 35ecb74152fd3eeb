# SPDX-License-Identifier: Apache-2.0
"""Streams on torch's streams and events, for accelerators whose own entry points the core does not know."""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch

from distorch import transfer
from distorch._load import core
from distorch.devices import device_module, name_of
from distorch.printable import logger
from distorch.run.streaming import Streamer, StreamGroup

_log = logger("distorch")

# What a device may still write that does not answer any more, or read: until the process ends.
_kept: list[list[torch.Tensor]] = []


class DeviceStreams:
    """Streams and events of the compute device; where it has none, copies finish before they return.

    Attributes:
        ready: by slot, behind the last copy into it.
        used: by slot, behind the last compute that may read it.
        stalled: what is wrong with a device that does not answer any more; nothing is queued there then.
    """

    def __init__(self, device: torch.device, slots: int) -> None:
        module = device_module(device.type)
        has = hasattr(module, "Stream") and hasattr(module, "Event")
        self.module: Any = module if has and device.type != "cpu" else None
        self.device = device
        self.ready: list[Any] = []
        self.used: list[Any] = []
        self.stalled = ""
        self._copies: dict[torch.device, Any] = {}
        self._filled_on: list[Any] = [None] * slots
        self._read_on: list[Any] = [None] * slots
        if self.module is not None:
            self.ready = [self.module.Event() for _ in range(slots)]
            self.used = [self.module.Event() for _ in range(slots)]

    def compute(self) -> Any:
        """Return the stream on which the model's kernels are queued."""
        return self.module.current_stream(self.device)

    def copies(self, source: torch.device) -> Any:
        """Return the stream for copies from a device."""
        if source not in self._copies:
            self._copies[source] = self.module.Stream(device=self.device)
        return self._copies[source]

    def fill(self, slot: int, stream: Any, copy: Callable[[int, int], None], index: int) -> None:
        """Queue what `copy(index, slot)` queues on a stream, behind all that read or wrote the slot before."""
        if self.stalled:
            raise transfer.StalledDeviceError(self.stalled)
        with self.module.stream(stream):
            stream.wait_event(self.used[slot])
            before = self._filled_on[slot]
            if before is not stream:
                if before is not None:  # overwritten unread
                    stream.wait_event(self.ready[slot])
                self._filled_on[slot] = stream
            try:
                copy(index, slot)
            finally:  # also of a part: the next copy comes behind it
                self.ready[slot].record(stream)

    def read(self, slot: int) -> None:
        """Order the compute queued next behind the last copy into the slot, and behind what reads it elsewhere."""
        compute = self.compute()
        compute.wait_event(self.ready[slot])
        if self._read_on[slot] not in (None, compute):
            compute.wait_event(self.used[slot])
        self._read_on[slot] = compute

    def mark_used(self, slot: int) -> None:
        """Remember the compute queued so far as the last that reads the slot."""
        compute = self.compute()
        if self._read_on[slot] not in (None, compute):  # what it queued first is on another stream
            compute.wait_stream(self._read_on[slot])
            self._read_on[slot] = compute
        self.used[slot].record(compute)

    def synchronize(self, size: int) -> None:
        """Wait until nothing is under way with the slots, of `size` bytes. Raises StalledDeviceError as `await_event`."""
        if self.stalled:
            raise transfer.StalledDeviceError(self.stalled)
        for stream in (*self._copies.values(), self.compute()):
            event = self.module.Event()
            event.record(stream)
            try:
                transfer.await_event(event, name_of(self.device), size)
            except transfer.StalledDeviceError as error:
                self.stalled = str(error)
                raise


class TorchStreamer(Streamer):
    """See the module and `Streamer`."""

    def __init__(self, groups: Sequence[StreamGroup], compute: torch.device, slots: int) -> None:
        """Make the slots. Raises torch.OutOfMemoryError when the compute device has no room for them."""
        super().__init__(groups, compute, slots)
        self._copied = 0
        count = len(self.buffers)
        self._streams = DeviceStreams(compute, count)
        for slot in range(count):
            # The allocator gives memory out again that kernels queued here may still use.
            self._mark_used(slot)
        self._copied_on = [self._stream_for(group) for group in self.groups]
        # By group and slot: (from, to, whether from the host). No views are made in a step.
        self._copies = [
            [
                [
                    (
                        run.slab[run.begin : run.begin + run.size],
                        buffer[run.at : run.at + run.size],
                        run.slab.device.type == "cpu",
                    )
                    for run in group.runs
                ]
                for buffer in self.buffers
            ]
            for group in self.groups
        ]
        # A streamer that just dies: its slots may be somebody else's as soon as they are free, so the copies come first.
        self._finalizer = weakref.finalize(
            self, _finish, self._streams, self.buffers, list(self.groups)
        )
        self._finalizer.atexit = False
        # By weak reference: the garbage collector cannot look through a C++ object that holds its owner.
        me = weakref.ref(self)
        self._scheduler = core().StreamScheduler(
            lambda group, slot: _alive(me)._start_copy(group, slot),
            lambda slot: _alive(me)._await_copy(slot),
            lambda slot: _alive(me)._mark_used(slot),
            lambda: _alive(me)._drain(),
            len(self.groups),
            count,
        )
        enter, leave = self._scheduler.enter, self._scheduler.leave
        # It asks torch for its stream where it needs it.
        self.enter = lambda index, _stream, swap: enter(index, swap)
        self.leave = lambda index, _stream, swap: leave(index, swap)
        self.stream = int
        self.begin_step = self._scheduler.begin_step
        self.reset, self.in_slots = self._scheduler.reset, self._scheduler.in_slots

    @property
    def counters(self) -> dict[str, int]:
        """See Streamer."""
        return dict(self._scheduler.counters)

    @property
    def bytes_copied(self) -> int:
        """See Streamer."""
        return self._copied

    def _stream_for(self, group: StreamGroup) -> Any:
        """Return the stream of where most of a group lies."""
        if self._streams.module is None:
            return None
        size: dict[torch.device, int] = defaultdict(int)
        for run in group.runs:
            size[run.slab.device] += run.size
        return self._streams.copies(max(size, key=size.__getitem__))

    # What the scheduler asks for; see its header for the ordering each must keep.

    def _start_copy(self, index: int, slot: int) -> None:
        self._copied += self.groups[index].bytes
        if self._streams.module is None:
            self._copy(index, slot)
        else:
            self._streams.fill(slot, self._copied_on[index], self._copy, index)

    def _copy(self, index: int, slot: int) -> None:
        for source, target, from_host in self._copies[index][slot]:
            if from_host:
                target.copy_(source, non_blocking=True)
            else:
                transfer.copy(target, source)  # by the fastest way of this pair

    def _await_copy(self, slot: int) -> None:
        if self._streams.module is not None:
            self._streams.read(slot)

    def _mark_used(self, slot: int) -> None:
        if self._streams.module is not None:
            self._streams.mark_used(slot)

    def _drain(self) -> None:
        if self._streams.module is not None:
            self._streams.synchronize(_bytes_of(self.buffers))

    def close(self) -> None:
        """See Streamer."""
        self._finalizer()
        self._copies.clear()


def _finish(streams: DeviceStreams, buffers: list[torch.Tensor], groups: list[StreamGroup]) -> None:
    """Let go of the slots behind the last copy; the sources, which the groups hold, are there until then."""
    if streams.module is not None:
        try:
            streams.synchronize(_bytes_of(buffers))
        except transfer.StalledDeviceError as error:
            _log.error("%s", error)
            _kept.append([*buffers, *(tensor for group in groups for tensor in group.stored)])
    buffers.clear()
    for group in groups:
        group.views.clear()


def _bytes_of(buffers: list[torch.Tensor]) -> int:
    return sum(buffer.nbytes for buffer in buffers)


def _alive(reference: weakref.ref[TorchStreamer]) -> TorchStreamer:
    streamer = reference()
    assert streamer is not None, "the scheduler is called by its streamer only"
    return streamer
