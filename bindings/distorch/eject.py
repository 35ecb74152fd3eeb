# SPDX-License-Identifier: Apache-2.0
"""Managed models and their eject flags: ejecting frees exactly the flagged models, nothing else.

    handle = registry().manage(placed, "flux-dev", eject=False)
    handle.eject = True
    print(registry().eject_flagged())

With no model flagged, `eject_flagged` calls, frees, synchronises and reorders nothing. A model that is not flagged is
held by a strong reference, so that it outlives whoever loaded it; a flagged one is held until it is ejected. Which
models go, and what the report says, is decided by `distorch/unload/eject_policy.h`.

Thread safe. Models are unloaded outside the lock, one after another, by the thread that asked.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from distorch import _load, caches, devices

log = logging.getLogger("distorch")


@dataclass
class ManagedModel:
    """One managed model. `eject` may be changed at any time; it is read when `eject_flagged` is called.

    Attributes:
        id: unique in this process.
        name: for people.
        placed: what has `bytes_per_device()` and `unload()` (`distorch.placed.PlacedModel`).
        eject: whether the next `eject_flagged` unloads it.
    """

    id: int
    name: str
    placed: Any
    eject: bool = False


@dataclass(frozen=True)
class _Held:
    """A model as it was when an eject began: another thread may eject it meanwhile."""

    id: int
    name: str
    placed: Any

    def bytes_per_device(self) -> dict[str, int]:
        """Return what it holds; nothing where it cannot tell, which is no reason to keep others."""
        try:
            return dict(self.placed.bytes_per_device())
        except Exception:
            log.warning("cannot tell what %s holds", self.name, exc_info=True)
            return {}


@dataclass(frozen=True)
class DeviceFreed:
    """One device that an ejected model touched; bytes allocated by this process before and after, and who stays."""

    device: str
    before: int
    after: int
    freed: int
    holders: tuple[str, ...] = ()


@dataclass(frozen=True)
class EjectReport:
    """What an eject did. Empty lists mean that nothing was done."""

    ejected: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    devices: tuple[DeviceFreed, ...] = ()
    failures: tuple[str, ...] = ()

    def __str__(self) -> str:
        if not self.ejected and not self.failures:
            kept = f"; kept: {', '.join(self.kept)}" if self.kept else ""
            return f"nothing was flagged, nothing was done{kept}"
        lines = [f"ejected: {', '.join(self.ejected) or 'nothing'}"]
        for d in self.devices:
            holders = f", still there: {', '.join(d.holders)}" if d.holders else ""
            lines.append(
                f"  {d.device}: {d.before / 2**20:.1f} MB before, {d.after / 2**20:.1f} MB after, "
                f"{d.freed / 2**20:.1f} MB freed{holders}"
            )
        if self.kept:
            lines.append(f"kept: {', '.join(self.kept)}")
        lines += [f"failed: {failure}" for failure in self.failures]
        return "\n".join(lines)


def allocated_bytes(names: set[str]) -> dict[str, int]:
    """Return what this process has allocated on each accelerator named; the host is not counted by an allocator."""
    infos = [devices.device_info(name) for name in sorted(names) if name != "cpu"]
    return {info.device: info.allocated for info in infos}


class Registry:
    """The managed models of a process."""

    def __init__(
        self,
        *,
        measure: Callable[[set[str]], dict[str, int]] = allocated_bytes,
        clear: Callable[[set[str]], object] = caches.clear_caches,
    ) -> None:
        """`measure` and `clear` stand for the allocators; tests give their own."""
        self._models: dict[int, ManagedModel] = {}
        self._ids = itertools.count(1)
        self._lock = threading.Lock()
        self._measure = measure
        self._clear = clear

    def manage(self, placed: Any, name: str, *, eject: bool = False) -> ManagedModel:
        """Take a placed model into the registry and hold it; returns its handle."""
        with self._lock:
            model = ManagedModel(next(self._ids), name, placed, eject)
            self._models[model.id] = model
        return model

    def models(self) -> list[ManagedModel]:
        """Return the managed models in the order they came."""
        with self._lock:
            return list(self._models.values())

    def release(self, model: ManagedModel) -> None:
        """Let go of a model without unloading it; unknown ones are passed over."""
        with self._lock:
            self._models.pop(model.id, None)

    def eject_flagged(self) -> EjectReport:
        """Unload exactly the flagged models and report; a strict no-op when none is flagged.

        A model whose `unload` raises is let go of all the same and named in `failures`; the others go on.
        """
        with self._lock:
            models = [_Held(m.id, m.name, m.placed) for m in self._models.values()]
            chosen = [m for m in self._models.values() if m.eject]
            for model in chosen:
                del self._models[model.id]
        if not chosen:
            return EjectReport(kept=tuple(m.name for m in models))
        return self._carry_out(models, chosen)

    def eject(self, model: ManagedModel) -> EjectReport:
        """Unload one model, whatever its flag and those of others."""
        with self._lock:
            others = [
                _Held(m.id, m.name, m.placed) for m in self._models.values() if m is not model
            ]
            if self._models.pop(model.id, None) is None:
                return EjectReport(kept=tuple(m.name for m in others))
            models = [_Held(model.id, model.name, model.placed), *others]
        return self._carry_out(models, [model])

    def _carry_out(self, models: list[_Held], chosen: list[ManagedModel]) -> EjectReport:
        ids = {m.id for m in chosen}
        states = [(m.id, m.name, m.id in ids, m.bytes_per_device()) for m in models]
        order = _load.C.choose_ejected(states)
        touched = {device for state in states if state[2] for device in state[3]}
        before = self._bytes_now(touched)
        failures = []
        by_id = {m.id: m for m in chosen}
        models.clear()  # what is ejected below is held by nobody else here
        for model_id in order:
            model = by_id[model_id]
            try:
                model.placed.unload()
            except Exception as error:
                failures.append(f"{model.name}: {error}")
            model.placed = None
        try:
            self._clear(touched)
        except Exception as error:
            failures.append(f"clearing caches: {error}")
        data = _load.C.eject_report(states, order, before, self._bytes_now(touched))
        rows = tuple(
            DeviceFreed(d["device"], d["before"], d["after"], d["freed"], tuple(d["holders"]))
            for d in data["devices"]
        )
        return EjectReport(tuple(data["ejected"]), tuple(data["kept"]), rows, tuple(failures))

    def _bytes_now(self, touched: set[str]) -> dict[str, int]:
        try:
            return self._measure(touched)
        except Exception:
            log.warning("cannot tell what is allocated on %s", sorted(touched), exc_info=True)
            return {}


_registry = Registry()


def registry() -> Registry:
    """Return the registry of this process."""
    return _registry
