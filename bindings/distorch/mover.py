# SPDX-License-Identifier: Apache-2.0
"""Load, patch, distribute: brings the blocks of a model to where a plan puts them.

Patched blocks go host → compute device, are patched there in float32, and go on to their device. All others go
straight to theirs; those that stay where they are are not copied at all. Every new tensor is made before the first one
of the model is replaced, so a failure at any step (out of memory, a patch that does not fit, an interrupt) leaves the
model exactly as it was. The originals are kept: unloading copies nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from distorch.allocation import Device, Options, group_names, make_plan, parse
from distorch.devices import name_of
from distorch.model_blocks import (
    Grouping,
    Inventory,
    ModelBlock,
    TensorKey,
    inventory,
    tensor_key,
)
from distorch.patching import Patch, Patches, check_patches
from distorch.placed import (
    PlacedModel,
    PlacementError,
    bytes_per_device,
    check_free,
)
from distorch.staging import Progress, ProgressCallback, Stage, StderrProgress, TensorPatches

__all__ = ["PlacedModel", "PlacementError", "Progress", "place", "place_string", "repatch"]


def _by_tensor(placed: PlacedModel, patches: Patches) -> TensorPatches:
    """Gather the patches of each tensor, under whichever of its names they were given."""
    found: dict[TensorKey, list[Patch]] = {}
    for block in placed.inventory.blocks:
        for ref in block.tensors:
            if ref.kind != "parameter" or ref.qualified not in patches:
                continue
            known = found.setdefault(tensor_key(placed.original(ref)), [])
            given = {id(patch) for patch in known}
            known.extend(patch for patch in patches[ref.qualified] if id(patch) not in given)
    return found


def _assignment(plan: Any, blocks: Iterable[ModelBlock]) -> dict[str, str]:
    placement = plan.placement
    missing = [block.name for block in blocks if block.name not in placement]
    if missing:
        raise PlacementError(
            f"the plan has no place for {missing[0]} ({len(missing)} blocks are missing)"
        )
    return {block.name: name_of(placement[block.name]) for block in blocks}


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
        PatchError: a patch does not fit. PlacementError: the plan lacks a block, the read-back differs, or a part of the
            model is placed already.
        torch.OutOfMemoryError, MemoryError, RuntimeError: as raised on the way. In every case the model is unchanged.
    """
    patches = patches or {}
    blocks = blocks or inventory(model, patches=patches)
    check_free(blocks)
    weights = {ref.qualified: ref.get() for block in blocks.blocks for ref in block.tensors}
    check_patches(patches, weights)
    placed = PlacedModel(model, plan, name_of(compute), blocks)
    placed.assignment = _assignment(plan, blocks.blocks)
    _check_host(blocks.blocks, placed.assignment)
    stage = _make(placed, _by_tensor(placed, patches), blocks.blocks, progress or StderrProgress())
    try:
        placed.commit(stage.tensors)
        placed.patches = patches
        placed.install()
        placed.verify()
    except BaseException:
        placed.unload()
        raise
    return placed


def _make(
    placed: PlacedModel,
    patches: TensorPatches,
    blocks: Iterable[ModelBlock],
    progress: ProgressCallback | None,
) -> Stage:
    ordered = _order(blocks, placed.assignment, placed.compute)
    total = sum(block.bytes for block in ordered)
    stage = Stage(placed, progress)
    # Plain tensors, not inference tensors, whatever mode the caller is in: they outlive it.
    with torch.inference_mode(False), torch.no_grad():
        for done, block in enumerate(ordered, 1):
            stage.block(block, placed.assignment[block.name], patches)
            stage.report(done, len(ordered), block.bytes, total)
    return stage


def repatch(placed: PlacedModel, patches: Patches) -> None:
    """See `PlacedModel.repatch`."""
    if not placed.loaded:
        raise PlacementError("the model was unloaded")
    originals = [(r, placed.original(r)) for b in placed.inventory.blocks for r in b.tensors]
    check_patches(patches, {ref.qualified: tensor for ref, tensor in originals})
    names = set(patches) | set(placed.patches)
    keys = {tensor_key(tensor) for ref, tensor in originals if ref.qualified in names}
    touched = {(id(r.table), r.name) for r, tensor in originals if tensor_key(tensor) in keys}
    blocks = [
        b
        for b in placed.inventory.blocks
        if any((id(r.table), r.name) in touched for r in b.tensors)
    ]
    moved_before, factors_before = dict(placed.transfers), placed.factor_bytes
    try:
        stage = _make(placed, _by_tensor(placed, patches), blocks, None)
        fresh = [(r, t) for r, t in stage.tensors if (id(r.table), r.name) in touched]
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


def _counting(blocks: Inventory, table: Iterable[Any]) -> list[Any]:
    """Return the table with what the model holds itself counted as free: a block that stays needs no memory."""
    held = bytes_per_device(blocks)
    return [
        Device(
            device=row.device,
            total=row.total,
            # A mapped file is counted as free already; 0 is a total that is not known.
            free=min(row.free + held[row.device], row.total or sys.maxsize),
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
    compute: str,
    patches: Patches | None = None,
    devices: Iterable[Any] | None = None,
    options: Any = None,
    progress: ProgressCallback | None = None,
    seconds: Mapping[str, float] | None = None,
    often: Collection[str] = (),
    groups: Grouping = group_names,
) -> PlacedModel:
    """Parse an allocation string, plan and place in one call.

    Args:
        model: see `place`.
        text: the allocation string, for example "cuda:0,2.5gb;cuda:1,3gb;cpu,*".
        compute: the device on which the model runs.
        patches: see `place`.
        devices: the planner's devices; default: those of this machine, where what the model holds already is free.
        options: the planner's options.
        progress: see `place`.
        seconds: what each layer group computes in a step, as an executor has measured it (`group_seconds`).
        often: groups that are come back to within a step, as it has seen them (`often`).
        groups: see `distorch.model_blocks.inventory`.

    Raises:
        AllocationError: the string is wrong; the message points at the place.
        PlanError: the model does not fit; the message lists every candidate.
    """
    from distorch.devices import to_allocation_devices

    blocks = inventory(model, patches=patches, groups=groups)
    if devices is not None:
        table = list(devices)
    else:
        table = _counting(blocks, to_allocation_devices(compute=name_of(compute)))
    spec = parse(text, table)
    plan = make_plan(
        spec,
        blocks.allocation_blocks(seconds, often),
        table,
        name_of(compute),
        options or Options(),
    )
    return place(model, plan, compute=compute, patches=patches, blocks=blocks, progress=progress)
