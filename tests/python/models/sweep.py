# SPDX-License-Identifier: Apache-2.0
"""Runs a model in every way that it can be placed, and compares with the plain run, bit for bit."""

from __future__ import annotations

import copy
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

import distorch
from distorch.model_blocks import Inventory, inventory
from distorch.nested import map_tensors
from distorch.placing import place

COMPUTE, DONOR = "sim:0", "sim:1"
WAYS = ("place", "stream", "migrate")
RUNS = (
    3  # the first one learns, the second migrates, the third uses what was learned of shared inputs
)


def assignment(blocks: Inventory, way: str) -> dict[str, str]:
    """Every kind of home for layer groups and what is outside of them; migrated groups lie on the donor as a whole."""
    homes = [DONOR, DONOR, COMPUTE] if way == "migrate" else [DONOR, "cpu", COMPUTE]
    unit: dict[str, int] = {}
    places = {}
    for block in blocks.blocks:
        number = unit.setdefault(block.group or block.name, len(unit))
        # Tied blocks can only move together: "cpu", so that they do.
        free = "cpu" if block.tied else homes[number % len(homes)]
        places[block.name] = COMPUTE if block.pinned else free
    for block in blocks.blocks:  # what is tied to something that stays, stays
        if block.tied and any(b.tied == block.tied and b.pinned for b in blocks.blocks):
            places[block.name] = COMPUTE
    return places


@contextmanager
def placed_in(model: nn.Module, way: str) -> Iterator[Any]:
    """The model placed in one of `WAYS`; unloaded afterwards."""
    blocks = inventory(model)
    plan = SimpleNamespace(placement=assignment(blocks, way))
    placed = place(model, plan, compute=COMPUTE, blocks=blocks)
    try:
        if way != "place":
            placed.executor = distorch.StreamedExecutor(
                placed, modes=dict.fromkeys((DONOR, "cpu"), "stream") | {DONOR: way}
            )
        yield placed
    finally:
        placed.unload()


def tensors(value: Any) -> list[torch.Tensor]:
    """All tensors of an output, on the host."""
    found: list[torch.Tensor] = []

    def note(tensor: torch.Tensor, _path: str) -> torch.Tensor:
        found.append(tensor.detach().cpu().contiguous())
        return tensor

    map_tensors(value, note, objects=True)
    return found


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Bit for bit, also where a model answers with what is no number."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    return torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))


def run(model: nn.Module, inputs: dict[str, Any]) -> list[torch.Tensor]:
    """The output's tensors, with the same random numbers each time."""
    torch.manual_seed(0)
    copied = copy.deepcopy(inputs)
    with torch.inference_mode():
        return tensors(model(**copied))


def on_device(value: dict[str, Any]) -> dict[str, Any]:
    """A copy of nested tensors on the compute device."""
    copied = copy.deepcopy(value)
    map_tensors(copied, lambda tensor, _path: tensor.to(COMPUTE))
    return copied


@dataclass
class Plain:
    """The plain run: its output, and the bytes of positions, masks and the like that the model's code keeps of it."""

    output: list[torch.Tensor]
    kept: int


def allocated() -> int:
    """Bytes on both devices."""
    gc.collect()
    return torch.sim.memory_allocated(0) + torch.sim.memory_allocated(1)


def reference(model: nn.Module, inputs: dict[str, Any]) -> Plain:
    """Run the whole model on the compute device."""
    whole, before = copy.deepcopy(model).to(COMPUTE), allocated()
    output = run(whole, on_device(inputs))
    return Plain(output, allocated() - before)


@dataclass
class Result:
    """What a way of running gave: the reason why it is not right, or how many groups ran how."""

    reason: str = ""
    streamed: int = 0
    migrated: int = 0


def _difference(got: list[torch.Tensor], wanted: list[torch.Tensor]) -> str:
    if [t.shape for t in got] != [t.shape for t in wanted]:
        return " of other shapes"
    pairs = zip(got, wanted, strict=True)
    return f", by at most {max(float((a.double() - b.double()).abs().max()) for a, b in pairs):.1e}"


def check(model: nn.Module, inputs: dict[str, Any], way: str, plain: Plain) -> Result:
    """Run a model in one way, compare with the plain run, and unload it."""
    before = [(id(t), t.detach().clone()) for t in (*model.parameters(), *model.buffers())]
    alone, at_first = run(model, inputs), allocated()
    result = Result()
    with placed_in(model, way) as placed:
        for number in range(RUNS):
            got = run(model, inputs)
            if len(got) != len(plain.output) or not all(map(same, got, plain.output)):
                return Result(
                    f"run {number + 1} gives another result{_difference(got, plain.output)}"
                )
        placed.verify()
        if placed.executor:
            result.streamed = len(placed.executor.streamed)
            result.migrated = sum(map(len, placed.executor.migrated.values()))
        del got, placed
    after = [*model.parameters(), *model.buffers()]
    if not all(n == id(t) and same(b, t.detach()) for (n, b), t in zip(before, after, strict=True)):
        return Result("unloading does not restore the tensors")
    if not all(map(same, run(model, inputs), alone)):
        return Result("after unloading it gives another result")
    left = allocated() - at_first
    if left > plain.kept:
        return Result(
            f"unloading leaves {left} bytes, of which the model's code keeps {plain.kept}"
        )
    return result
