# SPDX-License-Identifier: Apache-2.0
"""Makes the rows: what the registry counted, with names, management and memory beside tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from distorch import _C
from distorch.memory.names import Note, PendingLoads, class_names, name_by_attributes
from distorch.memory.row import Row


@dataclass(frozen=True)
class Management:
    """What DisTorch knows of a model that it placed. Sizes in bytes."""

    eject: bool = False
    compute: str = ""
    streamed: int = 0
    migrated: int = 0


ManagementSource = Callable[[nn.Module], "Management | None"]

# Bytes by device that a model holds in memory that is no tensor's storage.
OutsideSource = Callable[[nn.Module], Mapping[str, int]]


class RowBuilder:
    """Makes rows of the models of one registry. The caller holds the scan's lock."""

    def __init__(self, core: Any, pending: PendingLoads) -> None:
        """`core`: a _C.ModuleScanner."""
        self._core, self._pending = core, pending
        self.notes: WeakKeyDictionary[nn.Module, Note] = WeakKeyDictionary()
        self.noted = 0  # how often a note was added
        self.used: WeakKeyDictionary[nn.Module, float] = WeakKeyDictionary()
        self.managements: list[ManagementSource] = []
        self.outsides: list[OutsideSource] = []

    def note(self, module: nn.Module, note: Note) -> None:
        """Remember what is known of `module`."""
        self.notes[module] = note
        self.noted += 1

    def make(self) -> list[Row]:
        """Return the rows of all models that hold memory, largest first."""
        made = []
        for model in self._core.models():
            module = self._core.module(model[0])
            if module is not None and (model[7] or model[8]):
                made.append((model, module, self._note_of(module, model)))
        shown = {model[0]: _name(module, note) for model, module, note in made}
        return _sorted(self._row(model, module, note, shown) for model, module, note in made)

    def refresh(self, rows: list[Row]) -> list[Row]:
        """Return `rows` with what changes without any tensor moving."""
        return _sorted(self._row_now(row) for row in rows)

    def _row_now(self, row: Row) -> Row:
        module = self._core.module_by_serial(row.id)
        if module is None:
            return row
        return replace(row, **self._state_of(module, row.owned))

    def _state_of(self, module: nn.Module, owned: Mapping[str, int]) -> dict[str, Any]:
        outside = self._outside_of(module)
        held = {d: owned.get(d, 0) + outside.get(d, 0) for d in [*owned, *outside]}
        management = self._management_of(module)
        state = {"last_used": self.used.get(module, 0.0), "bytes": held, "outside": outside}
        if management is None:
            unmanaged = {"eject": None, "compute": "", "streamed": 0, "migrated": 0}
            return {**state, "managed": False, **unmanaged}
        return {**state, "managed": True, **asdict(management)}

    def _outside_of(self, module: nn.Module) -> dict[str, int]:
        found: dict[str, int] = {}
        for source in self.outsides:
            for device, size in source(module).items():
                if size > 0:
                    found[device] = found.get(device, 0) + size
        return found

    def _note_of(self, module: nn.Module, model: tuple[Any, ...]) -> Note:
        note = self.notes.get(module)
        if note is None and self.notes:
            note = next((self.notes[m] for m in module.children() if m in self.notes), None)
        if note is None:
            note = self._pending.match(model[2], type_of(module, ""))
            if note is not None:
                self.note(module, note)
        return note or Note()

    def _row(
        self, model: tuple[Any, ...], module: nn.Module, note: Note, shown: dict[int, str]
    ) -> Row:
        (root, serial, seen, layers, modules, parameters, dtype, owned, shared, sharers) = model
        state = self._state_of(module, owned)
        # In RAM now, but on its way to or from an accelerator.
        accelerated = state["managed"] or note.file or any(d != "cpu" for d in state["bytes"])
        metadata = {k: v for k, v in note.metadata.items() if k.startswith("modelspec.")}
        base = _first(note.metadata, "base_model", "modelspec.base_model", "ss_base_model_version")
        return Row(
            id=serial,
            name=shown[root],
            type=type_of(module, note.file),
            class_name=type(module).__name__,
            owned=owned,
            layers=layers,
            modules=modules,
            parameters=parameters,
            dtype=dtype,
            file=note.file,
            architecture=_first(note.metadata, "modelspec.architecture", "architecture"),
            base_model=base,
            metadata=metadata,
            loaded_since=note.since or seen,
            offloaded=owned.get("cpu", 0) if accelerated else 0,
            shared_bytes=shared,
            shares_with=tuple(shown[other] for other in sharers if other in shown),
            **state,
        )

    def _management_of(self, module: nn.Module) -> Management | None:
        for source in self.managements:
            found = source(module)
            if found is not None:
                return found
        return None


def _sorted(rows: Iterable[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: (-row.total, row.name, row.id))


def _name(module: nn.Module, note: Note) -> str:
    return note.name or name_by_attributes(module) or type(module).__name__


def type_of(module: nn.Module, file: str) -> str:
    """Return the kind of model, by its classes and the folder of its file (grouping.cc)."""
    kind: str = _C.classify_model(class_names(module), file)
    return kind


def _first(metadata: Mapping[str, str], *keys: str) -> str:
    return next((metadata[key] for key in keys if metadata.get(key)), "")
