# SPDX-License-Identifier: Apache-2.0
"""How much torch's allocators held at most since somebody last asked, without anybody noticing.

Torch counts one peak a device, since the last reset. Whoever wants the peak of a second or of a
node must reset it, and would spoil it for others who do the same (node packs print the peak of
their sampler). So a ledger stands between torch's counter and its readers: it resets the counter,
remembers what it read before, and adds that to what everybody else reads until they reset.

    ledger = Ledger.of("cuda")
    if ledger is not None:
        ledger.install()
        ledger.take(0)  # Figures(allocated, reserved, reserved_peak), since the last take(0)

Without install() nothing of torch is touched: a peak is then seen only when it is the highest
since the last reset by others. All sizes are bytes. Thread safe.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, ClassVar

Stats = dict[str, Any]


@dataclass(frozen=True)
class Figures:
    """One device's allocator. `reserved_peak`: the largest `reserved` since the last take()."""

    allocated: int
    reserved: int
    reserved_peak: int


def raise_peaks(stats: Stats, floor: Stats) -> None:
    """Raise every "peak" in nested `stats` to the one in `floor`, where it is lower."""
    for key, value in floor.items():
        if isinstance(value, dict):
            if isinstance(stats.get(key), dict):
                raise_peaks(stats[key], value)
        elif key == "peak" and key in stats:
            stats[key] = max(stats[key], value)


def _peaks_of(stats: Stats) -> Stats:
    """Return the "peak" values of nested `stats` only."""
    found: Stats = {}
    for key, value in stats.items():
        if isinstance(value, dict):
            inner = _peaks_of(value)
            if inner:
                found[key] = inner
        elif key == "peak":
            found[key] = value
    return found


@dataclass
class _Device:
    carried: Stats | None = None  # the peaks that others would see had we not reset
    unread: int = 0  # the largest reserved that others' resets took from us
    last_peak: int = 0  # without install(): the counter as it was


class Ledger:
    """The peaks of one kind of device."""

    _ledgers: ClassVar[dict[str, Ledger | None]] = {}
    _make = threading.Lock()

    def __init__(
        self, namespace: ModuleType | Any, readers: tuple[str, ...], resets: tuple[str, ...]
    ) -> None:
        """`namespace`: torch._C. The first of `readers` gives nested statistics of a device index,
        the first of `resets` resets its peaks; the others are other names for the same counters.
        """  # fmt: skip
        self._namespace, self._readers, self._resets = namespace, readers, resets
        self._read: Callable[[int], Stats] = getattr(namespace, readers[0])
        self._reset: Callable[[int], None] = getattr(namespace, resets[0])
        self._originals: dict[str, Any] = {}
        self._devices: dict[int, _Device] = {}
        self._lock = threading.RLock()

    @classmethod
    def of(cls, kind: str) -> Ledger | None:
        """Return the ledger of `kind` in this process; None where torch has no such counters."""
        with cls._make:
            if kind not in cls._ledgers:
                cls._ledgers[kind] = cls._for_torch(kind)
            return cls._ledgers[kind]

    @classmethod
    def _for_torch(cls, kind: str) -> Ledger | None:
        import torch

        read, reset = f"_{kind}_memoryStats", f"_{kind}_resetPeakMemoryStats"
        if not (hasattr(torch._C, read) and hasattr(torch._C, reset)):
            return None
        readers, resets = [read], [reset]
        accelerator = torch.accelerator.current_accelerator()
        if accelerator is not None and accelerator.type == kind:
            readers += [n for n in ("_accelerator_getDeviceStats",) if hasattr(torch._C, n)]
            resets += [n for n in ("_accelerator_resetPeakStats",) if hasattr(torch._C, n)]
        return cls(torch._C, tuple(readers), tuple(resets))

    @property
    def installed(self) -> bool:
        """Whether take() resets torch's counters."""
        return bool(self._originals)

    def install(self) -> None:
        """Put the ledger between torch's counters and their readers; a second call does nothing."""
        with self._lock:
            if self._originals:
                return
            for names, around in (
                (self._readers, self._around_read),
                (self._resets, self._around_reset),
            ):
                for name in names:
                    original = getattr(self._namespace, name)
                    self._originals[name] = original
                    setattr(self._namespace, name, self._wrapper(original, around))

    def uninstall(self) -> None:
        """Give torch's functions back; what was carried is forgotten."""
        with self._lock:
            for name, original in self._originals.items():
                setattr(self._namespace, name, original)
            self._originals.clear()
            self._devices.clear()

    @staticmethod
    def _wrapper(original: Callable[..., Any], around: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(device: Any, *args: Any, **kwargs: Any) -> Any:
            return around(original, device, *args, **kwargs)

        wrapper.__wrapped__ = original  # type: ignore[attr-defined]
        return wrapper

    def _device(self, index: int) -> _Device:
        return self._devices.setdefault(index, _Device())

    def _around_read(self, original: Callable[..., Any], index: Any, *args: Any, **kw: Any) -> Any:
        with self._lock:
            stats = original(index, *args, **kw)
            carried = self._device(int(index)).carried
            if carried is not None:
                raise_peaks(stats, carried)
            return stats

    def _around_reset(self, original: Callable[..., Any], index: Any, *args: Any, **kw: Any) -> Any:
        with self._lock:
            device = self._device(int(index))
            device.unread = max(device.unread, _reserved(self._read(int(index)))[1])
            device.carried = None
            return original(index, *args, **kw)

    def held(self, index: int) -> tuple[int, int]:
        """Return the bytes that device `index` has reserved and allocated now; leaves every peak alone."""
        stats = self._read(index)
        return _reserved(stats)[0], int(stats["allocated_bytes"]["all"]["current"])

    def take(self, index: int) -> Figures:
        """Return what device `index` holds, and its peak since the last call for that device."""
        with self._lock:
            device = self._device(index)
            stats = self._read(index)
            allocated = int(stats["allocated_bytes"]["all"]["current"])
            reserved, peak = _reserved(stats)
            if self._originals:
                carried = _peaks_of(stats)
                if device.carried is not None:
                    raise_peaks(carried, device.carried)
                device.carried = carried
                self._reset(index)
                peak, device.unread = max(peak, device.unread), 0
            elif peak == device.last_peak:
                peak = reserved  # as high as ever, but nobody knows when
            else:
                device.last_peak = peak
            return Figures(allocated, reserved, max(peak, reserved))


def _reserved(stats: Stats) -> tuple[int, int]:
    values = stats["reserved_bytes"]["all"]
    return int(values["current"]), int(values["peak"])
