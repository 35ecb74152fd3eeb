# SPDX-License-Identifier: Apache-2.0
"""Registers the device type and the module `torch.sim`, shaped like `torch.cuda`."""

from __future__ import annotations

import functools
import itertools
import sys
import threading
import types
from typing import Any

import torch
from distorch_sim import _sim as sim_core

MAX_DEVICES: int = sim_core.MAX_DEVICES
# Whether torch's device over the memory is the one in Python (_python_device.py), which says what it lacks.
IN_PYTHON = hasattr(sim_core, "new_memory")

# Address of a function by which distorch's sampler reads a device without Python
# (ReadDeviceFunction in distorch/telemetry/sampler.h).
DISTORCH_READ_FIGURES: int = sim_core.READ_FIGURES


def _index(device: Any = None) -> int:
    if device is None:
        return int(sim_core.current_device())
    if isinstance(device, int):
        return device
    index = torch.device(device).index
    return int(sim_core.current_device()) if index is None else int(index)


def is_available() -> bool:
    return True


def device_count() -> int:
    return int(sim_core.device_count())


def current_device() -> int:
    return int(sim_core.current_device())


def set_device(device: Any) -> None:
    sim_core.set_device(_index(device))


def get_device_name(device: Any = None) -> str:
    return f"Simulated accelerator {_index(device)}"


def get_device_properties(device: Any = None) -> types.SimpleNamespace:
    capacity = sim_core.counters(_index(device))[0]
    return types.SimpleNamespace(name=get_device_name(device), total_memory=int(capacity))


def mem_get_info(device: Any = None) -> tuple[int, int]:
    """Return (free, total) in bytes."""
    capacity, allocated, _, _ = sim_core.counters(_index(device))
    return int(capacity - allocated), int(capacity)


def memory_allocated(device: Any = None) -> int:
    return int(sim_core.counters(_index(device))[1])


def max_memory_allocated(device: Any = None) -> int:
    return int(sim_core.counters(_index(device))[2])


def memory_reserved(device: Any = None) -> int:
    """As allocated: this allocator keeps no cache."""
    return memory_allocated(device)


def memory_stats(device: Any = None) -> dict[str, int]:
    _, allocated, peak, count = sim_core.counters(_index(device))
    return {
        "allocated_bytes.all.current": int(allocated),
        "allocated_bytes.all.peak": int(peak),
        "active_bytes.all.current": int(allocated),
        "active_bytes.all.peak": int(peak),
        "reserved_bytes.all.current": int(allocated),
        "reserved_bytes.all.peak": int(peak),
        "allocation.all.allocated": int(count),
    }


def reset_peak_memory_stats(device: Any = None) -> None:
    sim_core.reset_peak(_index(device))


# How often the caches were asked to be cleared, for tests that count such calls.
empty_cache_calls = 0


def empty_cache() -> None:
    """There is no cache; the call is counted in `torch.sim.empty_cache_calls`."""
    module().empty_cache_calls += 1


def synchronize(device: Any = None) -> None:
    """Work is done when the call that started it returns; raises for a device that does not exist."""
    sim_core.counters(_index(device))
    observer.host_waits_for_device(_index(device))


class Observer:
    """What is told of the order that streams and events give to work; distorch_sim.races has one."""

    def recorded(self, event: Event, stream: Stream) -> None: ...
    def waits_for_event(self, stream: Stream, event: Event) -> None: ...
    def waits_for_stream(self, stream: Stream, other: Stream) -> None: ...
    def host_waits_for_event(self, event: Event) -> None: ...
    def host_waits_for_stream(self, stream: Stream) -> None: ...
    def host_waits_for_device(self, index: int) -> None: ...


observer = Observer()


def observe(by: Observer | None) -> None:
    """Tell `by` from now on; None ends it."""
    global observer
    observer = by or Observer()


class Stream:
    """Keeps an identity and a device; work on it is done when the call that started it returns."""

    _ids = itertools.count(1)

    def __init__(self, device: Any = None, priority: int = 0, **_: Any) -> None:
        self.device = torch.device("sim", _index(device))
        self.priority = priority
        self.stream_id = next(self._ids)
        self._outer: list[Stream] = []

    @property
    def sim_stream(self) -> int:
        return self.stream_id

    def wait_stream(self, stream: Stream) -> None:
        assert isinstance(stream, Stream)
        observer.waits_for_stream(self, stream)

    def wait_event(self, event: Event) -> None:
        assert isinstance(event, Event)
        observer.waits_for_event(self, event)

    def record_event(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.record(self)
        return event

    def synchronize(self) -> None:
        observer.host_waits_for_stream(self)

    def query(self) -> bool:
        return True

    def __enter__(self) -> Stream:
        self._outer.append(current_stream(self.device))
        set_stream(self)
        return self

    def __exit__(self, *_: object) -> None:
        set_stream(self._outer.pop())


class Event:
    """An event that has happened as soon as it was recorded."""

    def __init__(self, enable_timing: bool = False, blocking: bool = False, **_: Any) -> None:
        self.recorded_on: Stream | None = None

    def record(self, stream: Stream | None = None) -> None:
        self.recorded_on = stream or current_stream()
        observer.recorded(self, self.recorded_on)

    def wait(self, stream: Stream | None = None) -> None:
        (stream or current_stream()).wait_event(self)

    def query(self) -> bool:
        observer.host_waits_for_event(
            self
        )  # it has happened: what comes next on the host is behind it
        return True

    def synchronize(self) -> None:
        observer.host_waits_for_event(self)

    def elapsed_time(self, end_event: Event) -> float:
        return 0.0


_defaults: dict[int, Stream] = {}
_current = threading.local()


def default_stream(device: Any = None) -> Stream:
    index = _index(device)
    if index not in _defaults:
        _defaults[index] = Stream(index)
    return _defaults[index]


def current_stream(device: Any = None) -> Stream:
    index = _index(device)
    return getattr(_current, "streams", {}).get(index) or default_stream(index)


def set_stream(stream: Stream) -> None:
    if not hasattr(_current, "streams"):
        _current.streams = {}
    _current.streams[stream.device.index] = stream


class stream:  # noqa: N801 - torch.cuda's name
    """Context that makes a stream the current one of its device; None changes nothing."""

    def __init__(self, stream: Stream | None) -> None:
        self._stream = stream

    def __enter__(self) -> None:
        if self._stream is not None:
            self._stream.__enter__()

    def __exit__(self, *error: object) -> None:
        if self._stream is not None:
            self._stream.__exit__(*error)


class device:  # noqa: N801 - torch.cuda's name
    """Context that makes a device the current one."""

    def __init__(self, device: Any) -> None:
        self.idx = _index(device) if device is not None else -1
        self._previous = -1

    def __enter__(self) -> None:
        self._previous = current_device()
        if self.idx >= 0:
            set_device(self.idx)

    def __exit__(self, *_: object) -> None:
        set_device(self._previous)


def _is_in_bad_fork() -> bool:
    return False


def manual_seed_all(seed: int) -> None:
    """Generators of these devices are the CPU's, which torch seeds itself."""


manual_seed = manual_seed_all


def get_rng_state(device: Any = None) -> torch.Tensor:
    return torch.get_rng_state()


def set_rng_state(state: torch.Tensor, device: Any = None) -> None:
    torch.set_rng_state(state)


def get_amp_supported_dtype() -> list[torch.dtype]:
    return [torch.float16, torch.bfloat16, torch.float32]


def can_device_access_peer(device: Any, peer: Any) -> bool:
    return _index(device) != _index(peer)


@functools.cache
def module() -> types.ModuleType:
    """Return the module that becomes `torch.sim`."""
    result = types.ModuleType("torch.sim", "Simulated accelerators; see distorch_sim.")
    for name, value in globals().items():
        if not name.startswith("__") and name not in ("module", "register", "torch", "Any"):
            setattr(result, name, value)
    return result


@functools.cache
def register() -> None:
    """Give torch the name `sim`, the module and the tensor methods. Once a process."""
    torch.utils.rename_privateuse1_backend("sim")
    torch._register_device_module("sim", module())
    sys.modules["torch.sim"] = module()
    torch.utils.generate_methods_for_privateuse1_backend(for_storage=True)
    if IN_PYTHON:
        from distorch_sim import _python_device

        _python_device.register()
