# SPDX-License-Identifier: Apache-2.0
"""Managed models and their eject flags: ejecting frees exactly the flagged models, nothing else.

    handle = registry().manage(placed, "flux-dev", eject=False)
    handle.eject = True
    print(registry().eject_flagged())

With no model flagged, `eject_flagged` frees, synchronises and reorders nothing. A model is held by a strong reference
until it is ejected or released, so that it outlives whoever loaded it. Which models go, in which order, and what the
report says is decided by `distorch/unload/managed_models.h`, which knows the models weakly.

Thread safe. Models are unloaded outside of any lock, one after another, by the thread that asked.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from distorch import _load, caches

if TYPE_CHECKING:
    from distorch._C import UnloadReport


class ManagedModel:
    """One managed model. `eject` may be changed at any time; it is read when `eject_flagged` is called.

    Attributes:
        id: unique in its registry.
        name: for people.
        placed: what has `bytes_per_device()` and `unload()` (`distorch.placed.PlacedModel`); None once it is ejected.
        eject: whether the next `eject_flagged` unloads it.
    """

    def __init__(self, placed: Any, name: str, eject: bool) -> None:
        self.id = 0
        self.placed, self.name, self.eject = placed, name, eject


class _Answers:
    """What C++ asks of a managed model (ManagedModel in managed_models.h)."""

    def __init__(self, model: ManagedModel, forget: Callable[[ManagedModel], None]) -> None:
        self._model, self._name, self._forget = weakref.ref(model), model.name, forget

    def name(self) -> str:
        return self._name

    def loaded(self) -> bool:
        model = self._model()
        return model is not None and model.placed is not None

    def flagged(self) -> bool:
        model = self._model()
        return model is not None and model.eject

    def kept(self) -> bool:
        return self.loaded() and not self.flagged()

    def holds(self) -> dict[str, int]:
        model = self._model()
        return dict(model.placed.bytes_per_device()) if model is not None else {}

    def unload(self, _device: str) -> None:
        model = self._model()
        if model is not None:
            model.placed.unload()

    def let_go(self) -> None:
        model = self._model()
        if model is not None:
            model.placed = None
            self._forget(model)


class Registry:
    """The managed models of a process."""

    def __init__(
        self,
        *,
        measure: Callable[[list[str]], dict[str, int]] = caches.taken_bytes,
        clear: Callable[[list[str]], object] = caches.clear_caches,
    ) -> None:
        """`measure` and `clear` stand for the allocators; tests give their own."""
        self._models: dict[int, ManagedModel] = {}
        self._lock = threading.Lock()
        self._core = _load.core().ManagedModels(measure, clear)

    def manage(self, placed: Any, name: str, *, eject: bool = False) -> ManagedModel:
        """Take a placed model into the registry and hold it; returns its handle."""
        model = ManagedModel(placed, name, eject)
        this = weakref.ref(self)

        def forget(gone: ManagedModel) -> None:
            registry = this()
            if registry is not None:
                registry._forget(gone)

        with self._lock:  # before anybody can eject it
            model.id = self._core.add(_Answers(model, forget))
            self._models[model.id] = model
        return model

    def models(self) -> list[ManagedModel]:
        """Return the managed models in the order they came."""
        with self._lock:
            return list(self._models.values())

    def release(self, model: ManagedModel) -> None:
        """Let go of a model without unloading it; unknown ones are passed over."""
        self._forget(model)

    def _forget(self, model: ManagedModel) -> None:
        with self._lock:
            if self._models.get(model.id) is model:
                del self._models[model.id]
                self._core.remove(model.id)

    def eject_flagged(self) -> UnloadReport:
        """Unload exactly the flagged models and report; a strict no-op when none is flagged.

        A model whose `unload` raises is let go of all the same and named in `failures`; the others go on.
        """
        return self._core.unload("flagged", let_go=True)

    def eject(self, model: ManagedModel) -> UnloadReport:
        """Unload one model, whatever its flag and those of others."""
        known = self._models.get(model.id) is model
        return self._core.unload("these", [model.id] if known else [], let_go=True)


_registry: Registry | None = None
_making = threading.Lock()


def registry() -> Registry:
    """Return the registry of this process."""
    global _registry
    with _making:
        if _registry is None:
            _registry = Registry()
        return _registry
