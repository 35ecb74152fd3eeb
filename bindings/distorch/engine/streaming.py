# SPDX-License-Identifier: Apache-2.0
"""Brings the weights of layer groups to the compute device, ahead of their use, in one copy a slab.

Staging slots on the compute device take turns. A copy runs on a stream of its own, after the compute that used the slot
before and before the compute that needs it (`distorch/execution/stream_scheduler.h`). Each source has its stream, so
that the bandwidths of several links add up. Nothing is copied back.
"""

from __future__ import annotations

import logging
import weakref
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import torch

from distorch import transfer
from distorch._load import core
from distorch.devices import device_module
from distorch.engine.bounce import BounceCopier
from distorch.engine.pinning import HostPinner
from distorch.parts import rebuilt
from distorch.slabs import Run, borders, layout, runs, views

log = logging.getLogger("distorch")

_HOST = torch.device("cpu")

# Part of a slab; where it begins in a slot; whether it goes through the bounce buffer, None for another device's.
_Part = tuple[torch.Tensor, int, bool | None]


def slots_for(sources: Collection[Any]) -> int:
    """Return how many staging slots the links of these sources can make use of at once, beside the compute."""
    return max(1, len(sources)) + 1


@dataclass
class StreamGroup:
    """What is streamed of one layer group: its packed tensors, and what moves them."""

    name: str
    stored: list[torch.Tensor]
    views: list[list[torch.Tensor]] = field(default_factory=list)  # by slot
    runs: list[Run] = field(default_factory=list)
    bytes: int = 0  # what bringing the group moves

    def __post_init__(self) -> None:
        """Find out what lies together."""
        self.runs, self.bytes = runs(self.stored)


class DeviceStreams:
    """Streams and events of the compute device; where it has none, copies finish before they return.

    Attributes:
        ready: by slot, behind the last copy into it.
        used: by slot, behind the last compute that may read it.
    """

    def __init__(self, device: torch.device, slots: int) -> None:
        module = device_module(device.type)
        has = hasattr(module, "Stream") and hasattr(module, "Event")
        self.module: Any = module if has and device.type != "cpu" else None
        self.device = device
        self.ready: list[Any] = []
        self.used: list[Any] = []
        self._copies: dict[torch.device, Any] = {}
        self._filled_on: list[Any] = [None] * slots
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

    def synchronize(self) -> None:
        """Wait until nothing is under way."""
        for stream in self._copies.values():
            stream.synchronize()
        self.compute().synchronize()


class Streamer:
    """Slots, streams and the scheduler of one model's streamed groups. One thread at a time.

    Attributes:
        groups: what is streamed, in the order of the model.
        slot_bytes: bytes of one slot: the largest group.
        bytes_copied: bytes copied to the compute device since it was made.
    """

    def __init__(
        self,
        groups: Sequence[StreamGroup],
        compute: torch.device,
        slots: int,
        pinner: HostPinner,
    ) -> None:
        """Make the slots. Raises torch.OutOfMemoryError when the compute device has no room for them."""
        self.groups = list(groups)
        self.compute = compute
        self.bytes_copied = 0
        self.slot_bytes = max(group.bytes for group in self.groups)
        self._pinner = pinner
        slots = min(slots, len(self.groups))
        self._streams = DeviceStreams(compute, slots)
        self._bounce: BounceCopier | None = None
        self._pending: list[Future[None] | None] = [None] * slots
        planned = [self._plan_parts(group) for group in self.groups]
        self._bounced = [any(bounce for *_, bounce in parts) for parts in planned]
        self._copied_on = [self._stream_for(parts) for parts in planned]
        self._buffers: list[torch.Tensor] = []
        self._make_slots(slots)
        # By group and slot: (from, to, as in _Part). No views are made in a step.
        self._copies = [
            [
                [(source, b[at : at + source.nbytes], bounce) for source, at, bounce in parts]
                for b in self._buffers
            ]
            for parts in planned
        ]
        # A streamer that just dies: its slots may be somebody else's as soon as they are free, so the copies come first.
        self._finalizer = weakref.finalize(
            self, _finish, self._pending, self._streams, self._buffers, list(self.groups)
        )
        self._finalizer.atexit = False
        # By weak reference: the garbage collector cannot look through a C++ object that holds its owner.
        me = weakref.ref(self)
        self._scheduler = core().StreamScheduler(
            lambda group, slot: _alive(me)._start_copy(group, slot),
            lambda slot: _alive(me)._await_copy(slot),
            lambda slot: _alive(me)._mark_used(slot),
            lambda: _alive(me).drain(),
            len(self.groups),
            slots,
        )
        self.acquire = self._scheduler.acquire
        self.release = self._scheduler.release
        self.begin_step = self._scheduler.begin_step
        self.reset = self._scheduler.reset

    @property
    def counters(self) -> dict[str, int]:
        """Copies started, of them ahead of use and on demand, and those overwritten unread."""
        return dict(self._scheduler.counters)

    def _plan_parts(self, group: StreamGroup) -> list[_Part]:
        parts: list[_Part] = []
        for run in group.runs:
            host = run.slab.device.type == "cpu"
            end = run.begin + run.size
            pinned = [(0, end)]
            if host:
                pinned = self._pinner.pin(run.slab, borders(run.slab, group.stored))
            for begin, stop, bounce in _cut(run.begin, end, pinned):
                at = run.at + begin - run.begin
                how = bounce and self._needs_bounce() if host else None
                parts.append((run.slab[begin:stop], at, how))
        return parts

    def _stream_for(self, parts: Sequence[_Part]) -> Any:
        """Return the stream of where most of a group lies; the host's where a buffer is between."""
        if self._streams.module is None:
            return None
        size: dict[torch.device, int] = defaultdict(int)
        for part, _, bounce in parts:
            size[part.device] += part.nbytes
            if bounce:
                return self._streams.copies(_HOST)
        return self._streams.copies(max(size, key=size.__getitem__))

    def _needs_bounce(self) -> bool:
        return self._streams.module is not None and self.compute.type == "cuda"

    def _make_slots(self, slots: int) -> None:
        with torch.inference_mode(False), torch.no_grad():
            for slot in range(slots):
                self._buffers.append(
                    torch.empty(self.slot_bytes, dtype=torch.uint8, device=self.compute)
                )
                # The allocator gives memory out again that kernels queued here may still use.
                self._mark_used(slot)
            for group in self.groups:
                offsets = layout(group.stored)[0]
                for buffer in self._buffers:
                    group.views.append(
                        [
                            rebuilt(tensor, views(buffer, places, tensor), lent=True)
                            for tensor, places in zip(group.stored, offsets, strict=True)
                        ]
                    )

    # What the scheduler asks for; see its header for the ordering each must keep.

    def _start_copy(self, index: int, slot: int) -> None:
        self.bytes_copied += self.groups[index].bytes
        if self._streams.module is None:
            self._copy(index, slot)
            return
        earlier = self._pending[slot]
        if self._bounced[index] and self._bouncing():
            assert self._bounce is not None
            self._pending[slot] = self._bounce.submit(lambda: self._copy_on_stream(index, slot))
            return
        if earlier is not None:
            # Into the same slot, for nobody any more; not to be queued behind this one.
            earlier.exception()
            self._pending[slot] = None
        self._copy_on_stream(index, slot)

    def _bouncing(self) -> bool:
        if self._bounce is None:
            try:
                self._bounce = BounceCopier(
                    self.compute, self._streams.copies(_HOST), self._streams.module.Event
                )
            except RuntimeError as error:  # no pinned memory at all
                log.warning("no pinned buffer, the driver stages copies, slower still: %s", error)
                self._copies = [
                    [[(a, b, how and False) for a, b, how in copies] for copies in slots]
                    for slots in self._copies
                ]
                self._bounced = [False] * len(self.groups)
                return False
        return True

    def _copy_on_stream(self, index: int, slot: int) -> None:
        self._streams.fill(slot, self._copied_on[index], self._copy, index)

    def _copy(self, index: int, slot: int) -> None:
        for source, target, bounce in self._copies[index][slot]:
            if bounce is None:
                transfer.copy(target, source)  # by the fastest way of this pair
            elif bounce and self._bounce is not None:
                self._bounce.copy(target, source)
            else:
                target.copy_(source, non_blocking=True)

    def _await_copy(self, slot: int) -> None:
        pending, self._pending[slot] = self._pending[slot], None
        if pending is not None:
            pending.result()  # queued by then; raises what the copy raised
        if self._streams.module is not None:
            self._streams.compute().wait_event(self._streams.ready[slot])

    def _mark_used(self, slot: int) -> None:
        if self._streams.module is not None:
            self._streams.used[slot].record(self._streams.compute())

    def drain(self) -> None:
        """Wait until no copy is under way and nothing computes from a slot."""
        _drain(self._pending, self._streams)

    def close(self) -> None:
        """Give the slots back. Nothing may compute from them any more."""
        self._finalizer()
        if self._bounce is not None:
            self._bounce.close()
            self._bounce = None
        self._copies.clear()


def _drain(pending: list[Future[None] | None], streams: DeviceStreams) -> None:
    for slot, copy in enumerate(pending):
        pending[slot] = None
        if copy is not None:
            copy.exception()  # waits; a copy nobody needs any more may have failed
    if streams.module is not None:
        streams.synchronize()


def _finish(
    pending: list[Future[None] | None],
    streams: DeviceStreams,
    buffers: list[torch.Tensor],
    groups: list[StreamGroup],
) -> None:
    """Let go of the slots behind the last copy; the sources, which the groups hold, are there until then."""
    _drain(pending, streams)
    buffers.clear()
    for group in groups:
        group.views.clear()


def _cut(begin: int, end: int, pinned: list[tuple[int, int]]) -> list[tuple[int, int, bool]]:
    """Cut [begin, end) where pinned parts begin and end: (begin, end, whether it is pageable).

    Also where one pinned part follows another: CUDA knows a registration by its first address and may refuse a copy
    across the border of two.
    """
    parts = []
    for low, high in pinned:
        low, high = max(low, begin), min(high, end)
        if low >= high:
            continue
        if low > begin:
            parts.append((begin, low, True))
        parts.append((low, high, False))
        begin = high
    if begin < end:
        parts.append((begin, end, True))
    return parts


def _alive(reference: weakref.ref[Streamer]) -> Streamer:
    streamer = reference()
    assert streamer is not None, "the scheduler is called by its streamer only"
    return streamer
