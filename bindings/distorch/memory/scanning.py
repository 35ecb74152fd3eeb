# SPDX-License-Identifier: Apache-2.0
"""Finds the models that are alive, and keeps the answer fresh at little cost.

The first scan walks the garbage collector's objects once. After it, models come in by
torch's registration hooks and by the loaders' own notes; each scan compares what is known
with the live modules in C++ and touches only what changed. Modules that no hook saw
(unpickled, deep-copied) are found by a walk in the background whose share of a core is
bounded, or by a scan that asks for one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as torch_module

from distorch import _C
from distorch.memory import tensors
from distorch.memory.building import ManagementSource, OutsideSource, RowBuilder, type_of
from distorch.memory.names import Note, PendingLoads, Resolver, modules_in
from distorch.memory.row import Row
from distorch.memory.scan_log import told_change, told_models
from distorch.memory.totals import NOTICED_BYTES, memory_changed, memory_used
from distorch.parts import PLAIN_TYPES

# Walks of the background take at most this share of one core: those that come by themselves,
# and those that are asked for. Python code stands still during a walk.
WALK_SHARE = 0.001
ASKED_SHARE = 0.01


class Scanner:
    """The scan of one process. Thread safe; holds no strong reference to any module."""

    def __init__(self, cache_seconds: float = 1.0, walk_seconds: float = 30.0) -> None:
        """`cache_seconds`: how long an answer is given again; `walk_seconds`: see start()."""
        self.cache_seconds = cache_seconds
        self.walk_seconds = walk_seconds
        self.pending = PendingLoads()
        self.last_scan_seconds = 0.0
        self.last_walk_seconds = 0.0
        self._core = _C.ModuleScanner(
            module_type=nn.Module,
            plain_types=PLAIN_TYPES,
            identity=tensors.IDENTITY_METHODS,
            deep=tensors.DEEP_METHODS,
            describe=tensors.describe,
            expand=tensors.expand,
        )
        self._lock = threading.RLock()
        self._builder = RowBuilder(self._core, self.pending)
        self._rows: list[Row] = []
        self._scanned_at = 0.0  # time.monotonic()
        self._stale = True  # a load or unload happened since the last scan
        self._made_at = (-1, -1)  # generation and number of notes of self._rows
        self._walked = False
        self._walk_wanted = threading.Event()
        self._walk_urgent = threading.Event()
        self._users: list[Callable[[], Iterable[nn.Module]]] = []
        self._hooks: list[Any] = []
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._memory: dict[object, dict[str, int]] = {}

    # Feeding

    def install_hooks(self) -> None:
        """Learn of new modules from torch's global registration hooks. Idempotent."""
        if self._hooks:
            return
        hook = self._core.hook()
        self._hooks = [
            torch_module.register_module_parameter_registration_hook(hook),
            torch_module.register_module_buffer_registration_hook(hook),
            torch_module.register_module_module_registration_hook(hook),
        ]

    def remove_hooks(self) -> None:
        """Undo install_hooks()."""
        for handle in self._hooks:
            handle.remove()
        self._hooks = []

    def start(self) -> None:
        """Walk in the background every `walk_seconds`, and when a load is not found."""
        if self._thread is not None:
            return
        self._stop.clear()
        thread = threading.Thread(target=self._walk_forever, name="distorch-scan", daemon=True)
        thread.start()  # may fail: then there is none
        self._thread = thread

    def stop(self) -> None:
        """End the background walk and take the hooks out."""
        self._stop.set()
        self.look_for_unknown(urgent=True)
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.remove_hooks()

    def note_loaded(
        self,
        model: object,
        *,
        name: str = "",
        file: str = "",
        metadata: Mapping[str, str] | None = None,
        since: float = 0.0,
    ) -> None:
        """Say what a loader knows of the modules in `model` (a module, patcher, tuple …).

        `file` is relative to ComfyUI's model folders; `since` in seconds since 1970, 0: now.
        """
        note = Note(name, file, dict(metadata or {}), since or time.time())
        with self._lock:
            for module in modules_in(model):
                self._core.add(module)
                self._builder.note(module, note)
        self.invalidate()

    def note_used(self, model: object) -> None:
        """Say that the modules in `model` are in use now."""
        now = time.time()
        with self._lock:
            for module in modules_in(model):
                self._builder.used[module] = now

    def add_management(self, source: ManagementSource) -> None:
        """Ask `source` of each model whether and how DisTorch manages it."""
        self._builder.managements.append(source)

    def add_outside(self, source: OutsideSource) -> None:
        """Ask `source` of each model for memory that none of its tensors owns."""
        self._builder.outsides.append(source)

    def add_users(self, source: Callable[[], Iterable[nn.Module]]) -> None:
        """Ask `source` at each scan which modules are in use now."""
        self._users.append(source)

    def forget_sources(self, *sources: Callable[..., Any]) -> None:
        """Ask these no more; undoes add_management(), add_outside() and add_users()."""
        builder = self._builder
        lists: tuple[list[Any], ...] = (builder.managements, builder.outsides, self._users)
        for asked in lists:
            asked[:] = [source for source in asked if source not in sources]
        self._made_at = (-1, -1)  # what they said is in the rows

    def node_started(self, key: object, inputs: Mapping[str, Any], resolver: Resolver) -> None:
        """Tell of a node run `key` that begins: reads the files that its inputs name."""
        self.pending.started(key, inputs, resolver)
        self._memory[key] = memory_used()

    def node_ended(self, key: object, outputs: object = None) -> None:
        """Tell that node run `key` is over and what it returned."""
        before = self._memory.pop(key, None)
        load = self.pending.ended(key)
        if load is not None:
            with self._lock:
                for module in modules_in(outputs):
                    known = self._builder.notes.get(module)
                    if known is not None:
                        if load.brought(known):  # it was kept; one of another file is passed on
                            load.matched = load.returned = True
                        continue
                    self._core.add(module)
                    note = load.note_for(type_of(module, load.files[0].file))
                    if note is not None and self._appeared_since(module, load.start):
                        self._builder.note(module, note)
                        load.matched = load.returned = True
            self.invalidate()
            if not load.matched:
                self.look_for_unknown(urgent=True)  # only soon can it be told whose it is
            return
        after = memory_used()
        if before is not None and memory_changed(before, after):
            told_change(before, after)
            self.invalidate()
        if before is not None and memory_changed(before, after, NOTICED_BYTES):
            self.look_for_unknown()  # perhaps a node that reads files in its own way

    def _appeared_since(self, module: nn.Module, start: float) -> bool:
        # A node that passes a model on (a LoRA loader) names a file that is not the model's.
        seen: float = self._core.seen(module)
        return seen >= start

    def look_for_unknown(self, urgent: bool = False) -> None:
        """Have the background walk look for modules that no hook saw, sooner rather than later.

        `urgent`: within a second, whatever share of a core that takes.
        """
        if urgent:
            self._walk_urgent.set()
        self._walk_wanted.set()

    def invalidate(self) -> None:
        """Have the next rows() check everything, whatever the age of the last answer."""
        self._stale = True

    def clear_loaded_models(self) -> None:
        """Forget the answer; the next rows() walks and checks everything."""
        with self._lock:
            self._walked = False
            self.invalidate()

    # Answers

    def rows(self, *, max_age: float | None = None, deep: bool = False) -> list[Row]:
        """Return the models that hold memory, largest first.

        Args:
            max_age: seconds that the answer may be old; None: `cache_seconds`.
            deep: walk for unknown modules and check every tensor's size, not only
                whether it lies where it lay.
        """
        age = self.cache_seconds if max_age is None else max_age
        with self._lock:
            fresh = time.monotonic() - self._scanned_at < age
            if fresh and not deep and not self._stale:
                return self._rows
            started = time.perf_counter()
            if deep or not self._walked:
                self.walk()
            if self._stale:  # written only then: one that is set meanwhile is not lost
                deep, self._stale = True, False
            with torch._C.DisableTorchFunctionSubclass():
                self._core.verify(deep)
            self._update_rows()
            self._scanned_at = time.monotonic()
            self.last_scan_seconds = time.perf_counter() - started
            return self._rows

    def walk(self) -> int:
        """Look at every object of the garbage collector once; returns the new modules."""
        with self._lock:
            started = time.perf_counter()
            found: int = self._core.walk_everything()
            self._walked = True
            self.last_walk_seconds = time.perf_counter() - started
        if found:
            self.invalidate()
        return found

    def module(self, row_id: int) -> nn.Module | None:
        """Return the module of the row with this id, None when it died."""
        with self._lock:
            found: nn.Module | None = self._core.module_by_serial(row_id)
            return found

    def _update_rows(self) -> None:
        now = time.time()
        for source in self._users:
            for module in source():
                self._builder.used[module] = now
        builder = self._builder
        if (self._core.generation, builder.noted) != self._made_at or self.pending.waiting():
            self._rows = builder.make()
            told_models(self._rows)
            self._made_at = (self._core.generation, builder.noted)
        elif builder.used or builder.managements or builder.outsides:
            self._rows = builder.refresh(self._rows)

    def _walk_forever(self) -> None:
        pause = self.walk_seconds
        while True:
            self._walk_wanted.wait(pause)
            self._walk_wanted.clear()
            self._walk_urgent.clear()
            if self._stop.is_set():
                return
            self.walk()
            cost = self.last_walk_seconds
            self._stop.wait(min(1.0, cost / ASKED_SHARE))
            self._walk_urgent.wait(cost / ASKED_SHARE)
            pause = max(self.walk_seconds, cost / WALK_SHARE)
