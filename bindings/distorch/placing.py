# SPDX-License-Identifier: Apache-2.0
"""Load, patch, distribute: brings the blocks of a model to where a plan, or an allocation string, puts them.

Order, slabs, roll-back and the comparison with the plan are those of `distorch/placement/placement.h`; whatever fails on
the way (out of memory, a patch that does not fit, an interrupt) leaves the model exactly as it was. The originals are
kept: unloading copies nothing.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple

from torch import nn

from distorch.allocation import Device, Options, group_names, make_plan, parse
from distorch.devices import device_names, name_of
from distorch.model_blocks import Grouping, Inventory, Pin, inventory, stay_reason
from distorch.patching import Patches
from distorch.placed import PlacedModel
from distorch.tables import Reporter


class Progress(NamedTuple):
    """How far a load has come; bytes and blocks done and in all, seconds since it began."""

    done_blocks: int
    blocks: int
    done_bytes: int
    bytes: int
    seconds: float

    def __str__(self) -> str:
        rate = self.done_bytes / self.seconds / 2**30 if self.seconds > 0 else 0.0
        return (
            f"placing block {self.done_blocks}/{self.blocks}, "
            f"{self.done_bytes / 2**20:.0f} of {self.bytes / 2**20:.0f} MB, {rate:.2f} GB/s"
        )


ProgressCallback = Callable[[Progress], None]


class StderrProgress:
    """Writes a line to standard error, but only for loads that take more than a second."""

    def __init__(self) -> None:
        self._next = 1.0

    def __call__(self, progress: Progress) -> None:
        """Show `progress` at most once a second, and the end of what was begun."""
        last = progress.done_blocks == progress.blocks
        if progress.seconds < self._next and not (last and self._next > 1.0):
            return
        self._next = progress.seconds + 1.0
        sys.stderr.write(f"distorch: {progress}\n")


def _timed(callback: ProgressCallback) -> Reporter:
    begin = time.monotonic()

    def report(done_blocks: int, blocks: int, done: int, size: int) -> None:
        callback(Progress(done_blocks, blocks, done, size, time.monotonic() - begin))

    return report


def place(
    model: nn.Module,
    where: Any,
    *,
    compute: str | None = None,
    patches: Patches | None = None,
    blocks: Inventory | None = None,
    progress: ProgressCallback | None = None,
    **planning: Any,
) -> PlacedModel:
    """Bring the blocks of `model` to their devices, patched; returns the placed model, ready to run.

        placed = distorch.place(model, "cuda:0,2.5gb;cuda:1,3gb;cpu,*")
        model(inputs)
        placed.unload()

    Args:
        model: its parameter and buffer tables are changed in place; the original tensors are kept for `unload`.
        where: an allocation string: it is planned, placed, and run with weights that come ahead of their use
            (`placed.executor`). Or a plan, which is placed, no more: what has `placement`, a mapping of block names to
            devices (`distorch.make_plan`).
        compute: the device on which the model runs; default for a string: what it names, else the first accelerator of this
            machine, else the host.
        patches: patches by qualified parameter name.
        blocks: the inventory, where the caller has made it already.
        progress: called after each block; default: lines on standard error when the load takes over a second.
        planning: for a string: see `place_string`.

    Raises:
        AllocationError, PlanError: see `place_string`.
        PatchError: a patch does not fit. PlacementError: the plan lacks a block, the read-back differs, or a part of the
            model is placed already.
        torch.OutOfMemoryError, MemoryError, RuntimeError: as raised on the way. In every case the model is unchanged.
    """
    if isinstance(where, str):
        planning.setdefault("options", Options(slots=None))
        placed = place_string(
            model, where, compute=compute, patches=patches, progress=progress, **planning
        )
        try:
            placed.stream()
        except BaseException:
            placed.unload()
            raise
        return placed
    if compute is None:
        raise TypeError("place: a plan needs compute=, the device on which the model runs")
    placed = PlacedModel(
        model, where, name_of(compute), blocks or inventory(model, patches=patches)
    )
    placed.load(patches or {}, _timed(progress or StderrProgress()))
    return placed


def _counting(blocks: Inventory, table: Iterable[Any]) -> list[Any]:
    """Return the table with what the model holds itself counted as free: a block that stays needs no memory."""
    held = blocks.held
    return [
        Device(
            device=row.device,
            total=row.total,
            # A mapped file is counted as free already.
            free=None
            if row.free is None
            else min(row.free + held[row.device], row.total or sys.maxsize),
            reserve=row.reserve,
            link_gbps=row.link_gbps,
        )
        if row.device in held
        else row
        for row in table
    ]


def place_string(
    model: nn.Module,
    text: str,
    *,
    compute: str | None = None,
    patches: Patches | None = None,
    devices: Iterable[Any] | None = None,
    options: Any = None,
    progress: ProgressCallback | None = None,
    seconds: Mapping[str, float] | None = None,
    often: Collection[str] = (),
    groups: Grouping = group_names,
    pin: Pin | None = stay_reason,
) -> PlacedModel:
    """Parse an allocation string, plan and place in one call; weights then come module by module.

    Args:
        model: see `place`.
        text: the allocation string, for example "cuda:0,2.5gb;cuda:1,3gb;cpu,*".
        compute: see `place`.
        patches: see `place`.
        devices: the planner's devices; default: those of this machine, where what the model holds already is free.
        options: the planner's options.
        progress: see `place`.
        seconds: what each layer group computes in a step, as an executor has measured it (`group_seconds`).
        often: groups that are come back to within a step, as it has seen them (`often`).
        groups: see `distorch.model_blocks.inventory`.
        pin: see `distorch.model_blocks.inventory`.

    Raises:
        AllocationError: the string is wrong; the message points at the place.
        PlanError: the model does not fit; the message lists every candidate.
    """
    from distorch.device_table import device_table

    blocks = inventory(model, patches=patches, pin=pin, groups=groups)
    given = None if devices is None else list(devices)
    spec = parse(text, device_names() if given is None else given)
    compute = name_of(compute or spec.compute or device_names()[0])
    table = _counting(blocks, device_table(compute, spec)) if given is None else given
    planned = blocks.allocation_blocks(seconds, often)
    plan = make_plan(spec, planned, table, compute, options or Options())
    return place(model, plan, compute=compute, patches=patches, blocks=blocks, progress=progress)
