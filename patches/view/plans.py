# SPDX-License-Identifier: Apache-2.0
"""Plans that are asked for while a hand is on a slider: of a model in memory, or of a file that a loader names.

Nothing is loaded and nothing changes. Blocks and the table of devices are remembered for a moment, so that an answer
takes milliseconds; a file is looked up in ComfyUI's model folders by its name only.
"""

from __future__ import annotations

import dataclasses
import logging
import pathlib
import threading
import time
from collections.abc import Callable
from typing import Any

import folder_paths
from torch import nn

from distorch import allocation, plan_view
from distorch.memory import placements

from ..placing import donors, preview
from ..placing.request import available, spec_for
from ..seams import devices
from ..settings import reserve_bytes, settings
from .request_checks import UnknownModelError

log = logging.getLogger("DisTorch")

_TABLE_SECONDS = 2.0
_KEPT_FILES = 16


@dataclasses.dataclass(frozen=True)
class _Subject:
    """What is planned: blocks, where they run, what they hold now, and a step's compute where it was measured."""

    blocks: list[allocation.Block]
    compute: str
    held: dict[str, int]
    seconds: float | None


class Plans:
    """Answers `POST /distorch/plan` and `/distorch/parse`. Thread safe."""

    def __init__(self, module: Callable[[int], nn.Module | None]) -> None:
        """`module` gives the live model of an id."""
        self._module = module
        self._files: dict[tuple[pathlib.Path, int, str], list[allocation.Block]] = {}
        self._tables: dict[tuple[str, str], tuple[float, list[allocation.Device]]] = {}
        self._lock = threading.Lock()

    def parse(self, text: str) -> dict[str, Any]:
        """Check an allocation string as it is typed; `missing` names devices that this machine lacks."""
        there = devices.names()
        try:
            spec = allocation.parse(text, kinds={name.partition(":")[0] for name in there})
        except allocation.AllocationError as error:
            return refusal(error)
        missing = [name for name in spec.devices if name not in there]
        return {"ok": True, "normal": str(spec), "missing": missing, "devices": there}

    def plan(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Plan what is asked for: a string for a model (`id`) or a file (`model`, with the widgets beside the string)."""
        text = asked.get("text", "")
        try:
            if "id" in asked:
                subject = self._loaded(asked["id"])
            else:
                subject = self._of_file(
                    asked["model"], asked.get("part", "model"), asked.get("compute")
                )
            gigabytes = asked.get("virtual_bytes", 0) / 2**30
            donor = available(asked.get("donor"), default="cpu")
            spec = spec_for(subject.compute, text, gigabytes, [donor])
            table = self._table(subject, spec)
            options = allocation.Options(strict=settings["strict"], slots=None)
            plan = allocation.make_plan(spec, subject.blocks, table, subject.compute, options)
        except (allocation.AllocationError, allocation.PlanError) as error:
            return refusal(error)
        seen = plan_view.view(plan, table, subject.seconds)
        machine = [{"device": d.device, "total": d.total, "free": d.free} for d in table]
        return {"ok": True, **seen.as_json(), "machine": machine, "reserve": reserve_bytes()}

    def _loaded(self, model_id: int) -> _Subject:
        module = self._module(model_id)
        placed = getattr(module, "_distorch_placed", None)
        if placed is None or placed.plan is None:
            raise UnknownModelError(f"model {model_id} is none that DisTorch has placed")
        record = placements.find(id(module))
        return _Subject(
            placed.plan.blocks,
            placed.plan.compute,
            dict(record.bytes_per_device) if record is not None and placed.loaded else {},
            record.compute_step_s if record is not None else None,
        )

    def _of_file(self, name: str, part: str, compute: str | None) -> _Subject:
        path = _path_of(name)
        key = (path, path.stat().st_mtime_ns, part)
        with self._lock:
            blocks = self._files.get(key)
        if blocks is None:
            try:
                blocks = preview.blocks_of(path, part)
            except (OSError, ValueError) as error:
                raise UnknownModelError(f"{name}: {error}") from None
            with self._lock:
                self._files[key] = blocks
                while len(self._files) > _KEPT_FILES:
                    del self._files[next(iter(self._files))]
        return _Subject(blocks, available(compute), {}, None)

    def _table(self, subject: _Subject, spec: allocation.Spec) -> list[allocation.Device]:
        key = (subject.compute, ",".join(spec.devices))
        with self._lock:
            made, table = self._tables.get(key, (0.0, []))
        if time.monotonic() - made > _TABLE_SECONDS:
            table = donors.table(spec, subject.compute, empty=False)
            with self._lock:
                self._tables = {key: (time.monotonic(), table)}
        # What the model itself holds on a donor is free for its next placement.
        return [
            allocation.Device(
                d.device,
                d.total,
                d.free
                if d.device in (subject.compute, "cpu") or d.free is None
                else d.free + subject.held.get(d.device, 0),
                d.reserve,
                d.link_gbps,
            )
            for d in table
        ]


def _path_of(name: str) -> pathlib.Path:
    """The file of a loader's widget, in whichever model folder has it. Raises UnknownModelError."""
    for folder in preview.FOLDERS:
        if folder in folder_paths.folder_names_and_paths:
            found = folder_paths.get_full_path(folder, name.removeprefix(f"{folder}/"))
            if found:
                return pathlib.Path(found)
    raise UnknownModelError(f"no model file {name!r} in ComfyUI's model folders")


def refusal(error: allocation.AllocationError | allocation.PlanError) -> dict[str, Any]:
    """What is wrong with a string, or why it fits nowhere, as both routes say it."""
    found: dict[str, Any] = {"ok": False, "message": error.message}
    if isinstance(error, allocation.PlanError):
        rows = [dataclasses.asdict(c) for c in error.candidates]
        return {**found, "problem": error.problem, "remedy": error.remedy, "candidates": rows}
    return {
        **found,
        "offset": error.offset,
        "fragment": error.fragment,
        "expected": error.expected,
        "caret": error.caret,
    }
