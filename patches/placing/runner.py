# SPDX-License-Identifier: Apache-2.0
"""Runs a placed model group by group, below ComfyUI's own casting.

While a layer group computes, its weights are on the device where it computes: the cast of each
layer finds them there and copies nothing. They come in one copy a group, ahead of their use, or
the group runs on the donor that stores it (`mode=migrate`). What cannot be run like this (tied
weights, layers outside of groups, graphs of torch.compile) is cast by ComfyUI's layers one by one,
as before; `Runner.notes` says so.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch

from distorch import allocation
from distorch.devices import name_of
from distorch.memory import placements
from distorch.nested import map_tensors
from distorch.run import GroupEngine, GroupSpec, HostPinner
from distorch.run.executor import host_links
from distorch.run.pinning import registrar_for
from distorch.run.streaming import slots_for
from distorch.run.travelling import resolve

from ..seams import malloc_graph
from .blocks import Block, BlockTensor, streamable

log = logging.getLogger("DisTorch")


class _Place:
    """A tensor of a block as the engine names tensors."""

    def __init__(self, held: BlockTensor) -> None:
        self.held, self.module, self.name = held, held.module, held.name
        self.kind = "buffer" if held.buffer else "parameter"
        self.table = self.module._buffers if held.buffer else self.module._parameters
        self.qualified = held.key


def bare(name: str) -> str:
    """A block's module: its name without "(own)" or "(buffers)"."""
    return name.partition(" (")[0]


def groups_of(blocks: list[Block]) -> dict[str, list[Block]]:
    """The blocks of each layer group, by its name."""
    names = allocation.group_names([bare(block.name) for block in blocks])
    groups: dict[str, list[Block]] = {}
    for block, group in zip(blocks, names, strict=True):
        if group:
            groups.setdefault(group, []).append(block)
    return groups


def staging_bytes(placed: Any, streamed: set[str]) -> int:
    """What the slots will take on the compute device: each holds the largest group's bytes among these blocks."""
    here = name_of(placed.compute)
    sources: set[str] = set()
    sizes: list[int] = []
    for blocks in placed.groups.values():
        away = [b for b in blocks if b.name in streamed and streamable(b)]
        if away:
            sources |= {target if (target := placed.target(b)) != here else "cpu" for b in away}
            sizes.append(sum(b.bytes for b in away))
    slots = placed.plan.slots or slots_for(sources)
    return min(slots, len(sizes)) * max(sizes, default=0)


class Runner:
    """The engine of one placed model. Holds the model weakly. One thread at a time."""

    def __init__(self, placed: Any, model: torch.nn.Module, here: str) -> None:
        """Attaches. Raises torch.OutOfMemoryError when there is no room for the slots or a group."""
        self.notes: list[str] = []
        self._handles: list[Any] = []
        tensors: dict[tuple[int, str], BlockTensor] = {}
        specs, resident = self._specs(placed, model, here, tensors)
        self.engine: GroupEngine | None = None
        self._judge = _Judge()
        if not specs:
            return
        if placed.pinner is None:
            placed.pinner = HostPinner(registrar_for(placed.compute))

        weights = placed.weights  # to hold the placement would be a cycle

        def store(moved: list[tuple[Any, torch.Tensor]]) -> None:
            weights.replace([(tensors[id(p.table), p.name], tensor) for p, tensor in moved])

        self.engine = GroupEngine(
            specs,
            placed.compute,
            store,
            slots=placed.plan.slots or None,
            modes={d: placed.request.mode(d, m) for d, m in placed.plan.modes.items()},
            links=host_links(here),
            pinner=placed.pinner,
            resident=resident,
            may_migrate=self._judge,
            may_allocate=lambda: not malloc_graph.recording(),
            objects=False,  # the options of a step lead to patchers and whole models
            changed=_reporter(placed),
        )
        self._watch_root(_root(model, [s.name for s in specs] + list(resident)))

    def _specs(
        self,
        placed: Any,
        model: torch.nn.Module,
        here: str,
        tensors: dict[tuple[int, str], BlockTensor],
    ) -> tuple[list[GroupSpec], dict[str, torch.nn.Module]]:
        specs: list[GroupSpec] = []
        resident: dict[str, torch.nn.Module] = {}
        left_out = 0
        for name, blocks in placed.groups.items():
            away: list[_Place] = []
            stay: list[_Place] = []
            donors: set[str] = set()
            for block in blocks:
                target = placed.target(block)
                places = [_Place(held) for held in block.tensors]
                if target == here:
                    stay += places
                    donors |= set() if block.pinned else {here}
                elif streamable(block):
                    away += places
                    donors.add(target)
                else:
                    left_out += block.bytes
                    donors.add("")
            for place in (*away, *stay):
                tensors[id(place.table), place.name] = place.held
            module = model.get_submodule(name)
            if away:
                donor = donors.pop() if len(donors) == 1 else ""
                specs.append(GroupSpec(name, module, away, stay, donor))
            else:
                resident[name] = module
        if left_out:
            self.notes.append(
                f"{left_out / 2**20:.2f} MB are cast layer by layer: tied, or of a type that cannot be made from its bytes"
            )
        return specs, resident

    def _watch_root(self, root: torch.nn.Module) -> None:
        """Tells the engine where a forward pass begins and ends."""
        if self.engine is None:
            return
        me, judge = weakref.ref(self.engine), self._judge

        def begin(*_: Any) -> None:
            engine = me()
            if engine is not None and not torch.compiler.is_compiling():
                engine.begin_step()

        def end(_module: Any, _args: Any, output: Any) -> Any:
            engine = me()
            if engine is None or torch.compiler.is_compiling():
                return None
            engine.finish_step(failed=output is None)
            output = map_tensors(output, resolve)
            if judge.recorded and engine.migrated:
                judge.recorded = False
                engine.set_modes(dict.fromkeys(engine.migrated, "stream"))
            return output

        self._handles = [
            root.register_forward_pre_hook(begin),
            root.register_forward_hook(end, always_call=True),
        ]

    # What the placement asks

    @property
    def brings(self) -> set[tuple[int, str]]:
        """The tensors (id of the module's table, name) that the engine streams or computes with."""
        return set() if self.engine is None else self.engine.tensors

    def invalidate(self) -> None:
        """Weights were written in place: what was copied of them ahead is out of date."""
        if self.engine is not None:
            self.engine.invalidate()

    def describe(self) -> str:
        """One line for people."""
        if self.engine is None:
            return "; ".join(self.notes)
        parts = []
        if self.engine.streamed:
            size = self.engine.bytes_per_step / 2**20
            parts.append(f"{len(self.engine.streamed)} groups are streamed, {size:.2f} MB a step")
        if self.engine.decision is not None:
            parts += self.engine.decision.lines
        parts += [f"{len(n)} groups run on {d}" for d, n in self.engine.migrated.items()]
        return "; ".join([*parts, *self.engine.notes, *self.notes])

    def close(self) -> None:
        """Takes the hooks off; the weights stay where they are stored."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if self.engine is not None:
            self.engine.close()
            self.engine = None


def _reporter(placed: Any) -> Callable[[], None]:
    """Makes known how the model runs once that is learned; holds the placement weakly."""
    reference = weakref.ref(placed)
    level = logging.INFO  # once a load; what others find later is no news for most

    def report() -> None:
        nonlocal level
        placed = reference()
        if placed is not None and placed.runner is not None:
            placements.record(placed.report("placed"))
            log.log(level, "%s: %s", placed.name, placed.runner.describe())
            level = logging.DEBUG

    return report


class _Judge:
    """Says whether a group may run on its donor.

    Not while other nodes patch the inside of blocks: their tensors lie on the compute device. Nor while ComfyUI records
    what is allocated; `recorded` then says that groups are to be streamed instead. Knows nothing of the runner, which
    would be a cycle.
    """

    def __init__(self) -> None:
        self._warned = False
        self.recorded = False

    def __call__(self, args: Any, kwargs: Any) -> bool:
        if malloc_graph.recording():
            if not self.recorded:
                log.warning(
                    "ComfyUI's compiler records this model's blocks: they are streamed, not run on the donor "
                    "(--disable-comfy-compiler lets them)"
                )
            self.recorded = True
            return False
        for options in _options(args, kwargs):
            inside = {*(options.get("patches_replace") or ())} - {"dit"}
            names = sorted({*inside, *(options.get("patches") or ())})
            if names and not self._warned:
                log.warning(
                    "another node patches the inside of blocks (%s): they run on the compute "
                    "device while it does, not on the donor",
                    ", ".join(names),
                )
                self._warned = True
            if names:
                return False
        return True


def _options(args: Any, kwargs: Any) -> Iterator[dict[str, Any]]:
    for value in (*args, *kwargs.values()):
        if isinstance(value, dict) and ("patches" in value or "patches_replace" in value):
            yield value


def _root(model: torch.nn.Module, names: list[str]) -> torch.nn.Module:
    """The innermost module that runs all groups: their common ancestor that has a forward."""
    common = names[0].split(".")[:-1]
    for name in names[1:]:
        parts = name.split(".")
        while common != parts[: len(common)]:
            common.pop()
    while common:
        module = model.get_submodule(".".join(common))
        if not isinstance(module, (torch.nn.ModuleList, torch.nn.ModuleDict)):
            return module
        common.pop()
    return model
