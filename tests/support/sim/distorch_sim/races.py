# SPDX-License-Identifier: Apache-2.0
"""Finds missing waits between simulated streams, which run everything at once and so never show one.

    with find_races() as races:
        model(x)
    assert not races

Every operator is taken down with the stream that was current on its device and with the bytes that it reads and writes.
Two that touch the same bytes, one of them writing, must be ordered by events or waits (a vector clock for each stream and
one for the host); memory must not be freed while a stream other than the one it was allocated on may still use it. What is
found would be a race on a real accelerator, whether or not it would be seen there.

Covers the memory of simulated devices and operators called from the thread that entered; not host memory.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from distorch_sim import _backend
from distorch_sim._backend import Event, Stream, sim_core
from torch.utils._python_dispatch import TorchDispatchMode

Clock = dict[int, int]  # by stream: how much of its work is known to be done

_HOST = 0  # stream ids begin at 1
_SYNCHRONISING = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero")


@dataclass(frozen=True)
class _Access:
    begin: int
    end: int
    stream: int
    time: int
    writes: bool
    operator: str


@dataclass
class _Memory:
    """One allocation: its bytes, the stream it belongs to, what touched it."""

    begin: int
    end: int
    owner: Stream
    accesses: list[_Access] = field(default_factory=list)
    recorded: set[int] = field(default_factory=set)  # streams named by record_stream


def _merge(into: Clock, other: Clock) -> None:
    for stream, time in other.items():
        into[stream] = max(into.get(stream, 0), time)


class _Checker(TorchDispatchMode, _backend.Observer):
    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Else torch imports its compiler with the first operator, which takes seconds; nothing is compiled here."""
        return False

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found
        self._clocks: dict[int, Clock] = {_HOST: {}}
        self._streams: dict[int, Stream] = {}
        self._events: dict[Event, Clock] = {}
        self._memory: dict[int, _Memory] = {}

    # What streams and events tell

    def _clock(self, stream: Stream) -> Clock:
        self._streams[stream.stream_id] = stream
        return self._clocks.setdefault(stream.stream_id, {})

    def _tick(self, stream: Stream) -> Clock:
        """Begin a piece of work on a stream: behind all that is there, and behind what the host waited for."""
        clock = self._clock(stream)
        _merge(clock, self._clocks[_HOST])
        clock[stream.stream_id] = clock.get(stream.stream_id, 0) + 1
        return clock

    def recorded(self, event: Event, stream: Stream) -> None:
        self._events[event] = dict(self._tick(stream))

    def waits_for_event(self, stream: Stream, event: Event) -> None:
        _merge(self._tick(stream), self._events.get(event, {}))

    def waits_for_stream(self, stream: Stream, other: Stream) -> None:
        _merge(self._tick(stream), self._clock(other))

    def host_waits_for_event(self, event: Event) -> None:
        _merge(self._clocks[_HOST], self._events.get(event, {}))

    def host_waits_for_stream(self, stream: Stream) -> None:
        _merge(self._clocks[_HOST], self._clock(stream))

    def host_waits_for_device(self, index: int) -> None:
        for stream in list(self._streams.values()):
            if stream.device.index == index:
                self.host_waits_for_stream(stream)

    # What operators do

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.freed()
        result = func(*args, **kwargs)
        self.freed()
        name = func._schema.name
        if name == "aten::record_stream":
            memory = self._memory_of(args[0])
            memory.recorded.add(args[1].stream_id)
            return result
        touched = self._touched(func._schema, args, kwargs, result)
        if touched:
            self._take_down(name, touched, result, kwargs)
        return result

    def _touched(
        self, schema: Any, args: Any, kwargs: Any, result: Any
    ) -> list[tuple[torch.Tensor, bool]]:
        """Return the tensors on simulated devices that an operator uses, and whether it writes them."""
        touched: list[tuple[torch.Tensor, bool]] = []
        writes_any = False
        for index, argument in enumerate(schema.arguments):
            value = args[index] if index < len(args) else kwargs.get(argument.name)
            writes = argument.alias_info is not None and argument.alias_info.is_write
            writes_any = writes_any or writes
            touched += [(t, writes) for t in _tensors(value) if _simulated(t)]
        known = {t.untyped_storage().data_ptr() for t, _ in touched}
        results = _tensors(result)
        fresh = [t for t in results if not _simulated(t) or t.untyped_storage().data_ptr() not in known]  # fmt: skip
        if results and not fresh and not writes_any:
            return []  # a view: nothing is read
        touched += [(t, True) for t in fresh if _simulated(t)]
        return touched

    def _take_down(
        self,
        name: str,
        touched: list[tuple[torch.Tensor, bool]],
        result: Any,
        kwargs: dict[str, Any],
    ) -> None:
        devices = dict.fromkeys(t.device for t, _ in touched)
        streams = [_backend.current_stream(device) for device in devices]
        clocks = [self._tick(stream) for stream in streams]
        for clock in clocks[1:]:  # torch orders a copy between devices with both ends' streams
            _merge(clocks[0], clock)
        for clock in clocks[1:]:
            _merge(clock, clocks[0])
        for tensor, writes in touched:
            self._access(tensor, writes, streams[0], clocks[0], name)
        to_host = any(t.device.type == "cpu" for t in _tensors(result))
        waits = to_host and not kwargs.get("non_blocking", False)
        if waits or name.partition("::")[2] in _SYNCHRONISING:
            _merge(self._clocks[_HOST], clocks[0])

    def _memory_of(self, tensor: torch.Tensor) -> _Memory:
        storage = tensor.untyped_storage()
        begin = storage.data_ptr()
        if begin not in self._memory:
            owner = _backend.current_stream(tensor.device)
            self._memory[begin] = _Memory(begin, begin + storage.nbytes(), owner)
        return self._memory[begin]

    def _access(
        self, tensor: torch.Tensor, writes: bool, stream: Stream, clock: Clock, operator: str
    ) -> None:
        memory = self._memory_of(tensor)
        begin = tensor.data_ptr()
        spread = sum((n - 1) * abs(s) for n, s in zip(tensor.shape, tensor.stride(), strict=True))
        end = begin + (spread + 1) * tensor.element_size() if tensor.numel() else begin
        now = _Access(begin, end, stream.stream_id, clock[stream.stream_id], writes, operator)
        kept = []
        for old in memory.accesses:
            apart = old.end <= begin or end <= old.begin
            before = clock.get(old.stream, 0) >= old.time
            if not apart and (old.writes or writes) and not before:
                self.found.append(
                    f"{operator} on stream {now.stream} {_verb(writes)} bytes of {tensor.device} that "
                    f"{old.operator} on stream {old.stream} {_verb(old.writes)}, without waiting for it"
                )
            covered = before and begin <= old.begin and old.end <= end and (writes or not old.writes)  # fmt: skip
            if not covered:
                kept.append(old)
        memory.accesses = [*kept, now]

    def freed(self) -> None:
        """Look at what was freed since the last call."""
        for begin, size in sim_core.take_freed():
            memory = self._memory.pop(begin, None)
            if memory is None:
                continue
            known = dict(self._clock(memory.owner))
            _merge(known, self._clocks[_HOST])
            for old in memory.accesses:
                if old.stream == memory.owner.stream_id or old.stream in memory.recorded:
                    continue
                if known.get(old.stream, 0) < old.time:
                    self.found.append(
                        f"{size} bytes of {memory.owner.device} were freed while {old.operator} on stream "
                        f"{old.stream}, not the one they were allocated on, may still use them"
                    )
                    break


def _tensors(value: Any) -> list[torch.Tensor]:
    """Return the tensors of an operator's argument or result: one, or lists of them."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, (list, tuple)):
        return [t for each in value for t in _tensors(each)]
    return []


def _simulated(tensor: torch.Tensor) -> bool:
    """Whether it has memory of its own on a simulated device; a wrapper of others has none."""
    if tensor.device.type != "sim":
        return False
    try:
        return bool(tensor.untyped_storage().data_ptr())
    except RuntimeError:
        return False


def _verb(writes: bool) -> str:
    return "writes" if writes else "reads"


@contextlib.contextmanager
def find_races() -> Iterator[list[str]]:
    """Return a list that fills with what is found; see the module. Not to be nested."""
    found: list[str] = []
    checker = _Checker(found)
    sim_core.log_frees(True)
    _backend.observe(checker)
    try:
        with checker:
            yield found
        checker.freed()
    finally:
        _backend.observe(None)
        sim_core.log_frees(False)
