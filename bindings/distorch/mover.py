# SPDX-License-Identifier: Apache-2.0
"""Load, patch, distribute: brings the blocks of a model to where a plan puts them.

Patched blocks go host → compute device, are patched there in float32, and go on to their device. All others go
straight to theirs; those that stay where they are are not copied at all. Every new tensor is made before the first one
of the model is replaced, so a failure at any step (out of memory, a patch that does not fit, an interrupt) leaves the
model exactly as it was. The originals are kept: unloading copies nothing.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from distorch.allocation import group_names
from distorch.inventory import Grouping, Inventory, ModelBlock, TensorRef, inventory, storage_key
from distorch.patching import Patch, Patches, apply_patches, check_patches
from distorch.placed import PlacedModel, PlacementError, canonical

__all__ = ["PlacedModel", "PlacementError", "Progress", "place", "place_string", "repatch"]


@dataclass(frozen=True)
class Progress:
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


class _Stage:
    """New tensors of one load, made but not yet part of the model."""

    def __init__(self, placed: PlacedModel, progress: ProgressCallback | None) -> None:
        self.placed = placed
        self.tensors: list[tuple[TensorRef, torch.Tensor]] = []
        self._copies: dict[tuple[tuple[str, int], str], torch.Tensor] = {}
        self._progress = progress
        self._begin = time.monotonic()
        self._bytes = 0

    def _count(self, source: torch.Tensor, target: str) -> None:
        self.placed.transfers[canonical(source.device), target] += source.nbytes

    def _move(self, source: torch.Tensor, target: str) -> torch.Tensor:
        if canonical(source.device) == target:
            return source
        moved = source.to(torch.device(target))
        self._count(source, target)
        return moved

    def _patched(self, source: torch.Tensor, patches: Iterable[Patch], target: str) -> torch.Tensor:
        compute = self.placed.compute
        if canonical(source.device) == compute:
            work = source.detach().clone(memory_format=torch.contiguous_format)
        else:
            work = source.detach().to(
                self.placed.compute_device, memory_format=torch.contiguous_format
            )
            self._count(source, compute)
        self.placed.factor_bytes += apply_patches(work, patches)
        return self._move(work, target)

    def block(self, block: ModelBlock, target: str, patches: Patches) -> None:
        """Make the tensors of one block on `target`. Tensors that share a storage stay one tensor."""
        for ref in block.tensors:
            source = self.placed.original(ref)
            wanted = patches.get(ref.qualified, ()) if ref.kind == "parameter" else ()
            key = (
                storage_key(source),
                f"{source.storage_offset()} {tuple(source.shape)} {tuple(source.stride())}",
            )
            if key in self._copies:
                self.tensors.append((ref, self._copies[key]))
                continue
            if not wanted and canonical(source.device) == target:
                if ref.get() is not source:  # was patched before, is not any more
                    self.tensors.append((ref, source))
                continue
            data = (
                self._patched(source, wanted, target)
                if wanted
                else self._move(source.detach(), target)
            )
            tensor = _like(source, data)
            self._copies[key] = tensor
            self.tensors.append((ref, tensor))

    def report(self, done: int, total: int, size: int, total_bytes: int) -> None:
        """Tell the caller how far the load is."""
        self._bytes += size
        if self._progress:
            seconds = time.monotonic() - self._begin
            self._progress(Progress(done, total, self._bytes, total_bytes, seconds))


def _like(source: torch.Tensor, data: torch.Tensor) -> torch.Tensor:
    """Give `data` what `source` is besides its bytes: a parameter, with its attributes."""
    if not isinstance(source, nn.Parameter):
        return data
    result = nn.Parameter(data, requires_grad=source.requires_grad)
    result.__dict__.update(source.__dict__)
    return result


def _assignment(plan: Any, blocks: Iterable[ModelBlock]) -> dict[str, str]:
    placement = plan.placement
    missing = [block.name for block in blocks if block.name not in placement]
    if missing:
        raise PlacementError(
            f"the plan has no place for {missing[0]} ({len(missing)} blocks are missing)"
        )
    return {block.name: canonical(placement[block.name]) for block in blocks}


def _order(
    blocks: Iterable[ModelBlock], assignment: dict[str, str], compute: str
) -> list[ModelBlock]:
    """Patched blocks that go on to another device first: the compute device then holds nothing but what is in flight.

    Then patched ones that stay, while there is still room for the patch's working memory; then all others.
    """

    def rank(block: ModelBlock) -> int:
        if block.patched:
            return 0 if assignment[block.name] != compute else 1
        return 2

    return sorted(blocks, key=rank)


def _check_host(blocks: Iterable[ModelBlock], assignment: dict[str, str]) -> None:
    """Refuse patched blocks that stay on the host when its memory cannot hold the second copy."""
    need = sum(b.bytes for b in blocks if b.patched and assignment[b.name] == "cpu")
    if need == 0:
        return
    from distorch.hostmemory import available_bytes

    free = available_bytes()
    if need > free:
        raise MemoryError(
            f"cpu: {need} bytes asked for patched blocks, {free} free. "
            "Give an accelerator a larger share, or apply fewer patches"
        )


def place(
    model: nn.Module,
    plan: Any,
    *,
    compute: str,
    patches: Patches | None = None,
    blocks: Inventory | None = None,
    progress: ProgressCallback | None = None,
) -> PlacedModel:
    """Bring `model` to where `plan` puts its blocks, patched; returns the placed model, ready to run.

    Args:
        model: its parameter and buffer tables are changed in place; the original tensors are kept for `unload`.
        plan: what has `placement`, a mapping of block names to devices (`distorch.allocation.make_plan`).
        compute: the device on which the model runs.
        patches: patches by qualified parameter name.
        blocks: the inventory, where the caller has made it already.
        progress: called after each block; default: lines on standard error when the load takes over a second.

    Raises:
        PatchError: a patch does not fit. PlacementError: the plan lacks a block, or the read-back differs.
        torch.OutOfMemoryError, MemoryError, RuntimeError: as raised on the way. In every case the model is unchanged.
    """
    patches = patches or {}
    blocks = blocks or inventory(model, patches=patches)
    weights = {ref.qualified: ref.get() for block in blocks.blocks for ref in block.tensors}
    check_patches(patches, weights)
    placed = PlacedModel(model, plan, canonical(compute), blocks)
    placed.assignment = _assignment(plan, blocks.blocks)
    _check_host(blocks.blocks, placed.assignment)
    stage = _make(placed, patches, blocks.blocks, progress or StderrProgress())
    placed.commit(stage.tensors)
    try:
        placed.patches = patches
        placed._install()
        placed.verify()
    except BaseException:
        placed.unload()
        raise
    return placed


def _make(
    placed: PlacedModel,
    patches: Patches,
    blocks: Iterable[ModelBlock],
    progress: ProgressCallback | None,
) -> _Stage:
    ordered = _order(blocks, placed.assignment, placed.compute)
    total = sum(block.bytes for block in ordered)
    stage = _Stage(placed, progress)
    # Plain tensors, not inference tensors, whatever mode the caller is in: they outlive it.
    with torch.inference_mode(False), torch.no_grad():
        for done, block in enumerate(ordered, 1):
            stage.block(block, placed.assignment[block.name], patches)
            stage.report(done, len(ordered), block.bytes, total)
    return stage


def repatch(placed: PlacedModel, patches: Patches) -> None:
    """See `PlacedModel.repatch`."""
    weights = {r.qualified: placed.original(r) for b in placed.inventory.blocks for r in b.tensors}
    check_patches(patches, weights)
    names = set(patches) | set(placed.patches)
    touched = [b for b in placed.inventory.blocks if any(r.qualified in names for r in b.tensors)]
    moved_before, factors_before = dict(placed.transfers), placed.factor_bytes
    try:
        stage = _make(placed, patches, touched, None)
        fresh = [(r, t) for r, t in stage.tensors if r.qualified in names]
        placed.commit(fresh)
    except BaseException:
        placed.transfers.clear()
        placed.transfers.update(moved_before)
        placed.factor_bytes = factors_before
        raise
    placed.patches = patches
    for callback in placed._on_repatch:
        callback(placed)
    placed.verify()


def place_string(
    model: nn.Module,
    text: str,
    *,
    compute: str,
    patches: Patches | None = None,
    devices: Iterable[Any] | None = None,
    options: Any = None,
    progress: ProgressCallback | None = None,
    seconds: Mapping[str, float] | None = None,
    groups: Grouping = group_names,
) -> PlacedModel:
    """Parse an allocation string, plan and place in one call.

    Args:
        model: see `place`.
        text: the allocation string, for example "cuda:0,2.5gb;cuda:1,3gb;cpu,*".
        compute: the device on which the model runs.
        patches: see `place`.
        devices: the planner's devices; default: those of this machine.
        options: the planner's options.
        progress: see `place`.
        seconds: what each layer group computes in a step, as an executor has measured it (`group_seconds`).
        groups: see `distorch.inventory.inventory`.

    Raises:
        AllocationError: the string is wrong; the message points at the place.
        PlanError: the model does not fit; the message lists every candidate.
    """
    from distorch.allocation import Options, make_plan, parse
    from distorch.devices import to_allocation_devices

    table = (
        list(devices) if devices is not None else to_allocation_devices(compute=canonical(compute))
    )
    spec = parse(text, table)
    blocks = inventory(model, patches=patches, groups=groups)
    plan = make_plan(
        spec, blocks.allocation_blocks(seconds), table, canonical(compute), options or Options()
    )
    return place(model, plan, compute=compute, patches=patches, blocks=blocks, progress=progress)
