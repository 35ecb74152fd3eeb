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
from dataclasses import asdict, dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.nn.modules import module as torch_module

from distorch import _C
from distorch.scan import tensors
from distorch.scan.names import (
    Note,
    PendingLoads,
    Resolver,
    class_names,
    modules_in,
    name_by_attributes,
)
from distorch.scan.row import Row

# A node that changes the memory of a device by more has loaded or unloaded something.
CHANGE_BYTES = 100 * 1024 * 1024
# One that changes it by more may have made a module that no hook saw.
NOTICED_BYTES = 1024 * 1024
# A walk of the background takes at most this share of one core.
WALK_SHARE = 0.001


@dataclass(frozen=True)
class Management:
    """What DisTorch knows of a model that it placed. Sizes in bytes."""

    eject: bool = False
    compute: str = ""
    streamed: int = 0
    migrated: int = 0


ManagementSource = Callable[[nn.Module], "Management | None"]


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
            plain_types=tensors.PLAIN_TYPES,
            identity=tensors.IDENTITY_METHODS,
            deep=tensors.DEEP_METHODS,
            describe=tensors.describe,
            expand=tensors.expand,
        )
        self._lock = threading.RLock()
        self._notes: WeakKeyDictionary[nn.Module, Note] = WeakKeyDictionary()
        self._used: WeakKeyDictionary[nn.Module, float] = WeakKeyDictionary()
        self._rows: list[Row] = []
        self._scanned_at = 0.0  # time.monotonic()
        self._stale = True  # a load or unload happened since the last scan
        self._made_at = (-1, -1)  # generation and number of notes of self._rows
        self._noted = 0
        self._walked = False
        self._walk_wanted = threading.Event()
        self._managements: list[ManagementSource] = []
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
        self._thread = threading.Thread(
            target=self._walk_forever, name="distorch-scan", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """End the background walk and take the hooks out."""
        self._stop.set()
        self._walk_wanted.set()
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
                self._note(module, note)
        self.invalidate()

    def _note(self, module: nn.Module, note: Note) -> None:
        self._notes[module] = note
        self._noted += 1

    def note_used(self, model: object) -> None:
        """Say that the modules in `model` are in use now."""
        now = time.time()
        with self._lock:
            for module in modules_in(model):
                self._used[module] = now

    def add_management(self, source: ManagementSource) -> None:
        """Ask `source` of each model whether and how DisTorch manages it."""
        self._managements.append(source)

    def add_users(self, source: Callable[[], Iterable[nn.Module]]) -> None:
        """Ask `source` at each scan which modules are in use now."""
        self._users.append(source)

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
                new = [m for m in modules_in(outputs) if m not in self._notes]
                for module in new:
                    self._core.add(module)
                    note = load.note_for(_type_of(module, load.files[0].file))
                    if note is not None and self._appeared_since(module, load.start):
                        self._note(module, note)
                        load.matched = True
            self.invalidate()
            if not load.matched:
                self.look_for_unknown()
            return
        after = memory_used()
        if before is not None and memory_changed(before, after):
            self.invalidate()
        if before is not None and memory_changed(before, after, NOTICED_BYTES):
            self.look_for_unknown()  # perhaps a node that reads files in its own way

    def _appeared_since(self, module: nn.Module, start: float) -> bool:
        # A node that passes a model on (a LoRA loader) names a file that is not the model's.
        seen: float = self._core.seen(module)
        return seen >= start

    def look_for_unknown(self) -> None:
        """Have the background walk look for modules that no hook saw, now rather than later."""
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
            deep, self._stale = deep or self._stale, False
            with torch._C.DisableTorchFunctionSubclass():
                self._core.verify(deep)
            self._update_rows()
            self._scanned_at = time.monotonic()
            self.last_scan_seconds = time.perf_counter() - started
            return self._rows

    def walk(self) -> int:
        """Look at every object of the garbage collector once; returns the new modules."""
        started = time.perf_counter()
        with self._lock:
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
                self._used[module] = now
        made_at = (self._core.generation, self._noted)
        if made_at != self._made_at or self.pending.waiting():
            self._rows = self._make_rows()
            self._made_at = (made_at[0], self._noted)
        elif self._used or self._managements:
            self._rows = [self._row_now(row) for row in self._rows]

    def _make_rows(self) -> list[Row]:
        made = []
        for model in self._core.models():
            module = self._core.module(model[0])
            if module is not None and (model[7] or model[8]):
                made.append((model, module, self._note_of(module, model)))
        shown = {model[0]: self._name(module, note) for model, module, note in made}
        rows = [self._row(model, module, note, shown) for model, module, note in made]
        return sorted(rows, key=lambda row: (-row.total, row.name, row.id))

    def _row_now(self, row: Row) -> Row:
        """Return `row` with what changes without any tensor moving."""
        module = self._core.module_by_serial(row.id)
        if module is None:
            return row
        return replace(row, **self._state_of(module))

    def _state_of(self, module: nn.Module) -> dict[str, Any]:
        management = self._management_of(module)
        state: dict[str, Any] = {"last_used": self._used.get(module, 0.0)}
        if management is None:
            return {
                **state,
                "managed": False,
                "eject": None,
                "compute": "",
                "streamed": 0,
                "migrated": 0,
            }
        return {**state, "managed": True, **asdict(management)}

    def _note_of(self, module: nn.Module, model: tuple) -> Note:
        note = self._notes.get(module)
        if note is None and self._notes:
            note = next((self._notes[m] for m in module.children() if m in self._notes), None)
        if note is None:
            note = self.pending.match(model[2], _type_of(module, ""))
            if note is not None:
                self._note(module, note)
        return note or Note()

    def _name(self, module: nn.Module, note: Note) -> str:
        return note.name or name_by_attributes(module) or type(module).__name__

    def _row(self, model: tuple, module: nn.Module, note: Note, shown: dict[int, str]) -> Row:
        (root, serial, seen, layers, modules, parameters, dtype, held, shared, sharers) = model
        state = self._state_of(module)
        # In RAM now, but on its way to or from an accelerator.
        accelerated = state["managed"] or note.file or any(d != "cpu" for d in held)
        metadata = {k: v for k, v in note.metadata.items() if k.startswith("modelspec.")}
        return Row(
            id=serial,
            name=shown[root],
            type=_type_of(module, note.file),
            class_name=type(module).__name__,
            bytes=held,
            layers=layers,
            modules=modules,
            parameters=parameters,
            dtype=dtype,
            file=note.file,
            architecture=_first(note.metadata, "modelspec.architecture", "architecture"),
            base_model=_first(note.metadata, "base_model", "modelspec.base_model", "ss_base_model_version"),
            metadata=metadata,
            loaded_since=note.since or seen,
            offloaded=held.get("cpu", 0) if accelerated else 0,
            shared_bytes=shared,
            shares_with=tuple(shown[other] for other in sharers if other in shown),
            **state,
        )  # fmt: skip

    def _management_of(self, module: nn.Module) -> Management | None:
        for source in self._managements:
            found = source(module)
            if found is not None:
                return found
        return None

    def _walk_forever(self) -> None:
        pause = self.walk_seconds
        while not self._stop.is_set():
            wanted = self._walk_wanted.wait(pause)
            self._walk_wanted.clear()
            if self._stop.is_set():
                return
            self.walk()
            rest = self.last_walk_seconds / WALK_SHARE
            pause = max(self.walk_seconds, rest)
            if wanted:  # one that was asked for does not let the next come at once
                self._stop.wait(min(1.0, rest))


def _type_of(module: nn.Module, file: str) -> str:
    kind: str = _C.classify_model(class_names(module), file)
    return kind


def _first(metadata: Mapping[str, str], *keys: str) -> str:
    return next((metadata[key] for key in keys if metadata.get(key)), "")


def memory_used() -> dict[str, int]:
    """Return the bytes that torch holds for tensors on each accelerator it has initialised."""
    used: dict[str, int] = {}
    for kind in {"cuda", "xpu", torch._C._get_privateuse1_backend_name()}:
        backend = getattr(torch, kind, None)
        count = getattr(backend, "device_count", None)
        allocated = getattr(backend, "memory_allocated", None)
        ready = getattr(backend, "is_initialized", lambda: True)
        if count is None or allocated is None or not ready():
            continue
        for index in range(count()):
            used[f"{kind}:{index}"] = int(allocated(index))
    return used


def memory_changed(
    before: Mapping[str, int], after: Mapping[str, int], least: int = CHANGE_BYTES
) -> bool:
    """Whether a device's memory differs by more than `least` bytes."""
    devices = before.keys() | after.keys()
    return any(abs(after.get(d, 0) - before.get(d, 0)) > least for d in devices)
