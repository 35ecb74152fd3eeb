# SPDX-License-Identifier: Apache-2.0
"""Where the blocks of one ComfyUI model lie: plans, moves, patches, verifies, gives back.

A `ModelPlacement` hangs on the inner model and is shared by all its patchers. It keeps every tensor as it
was found (the host copy): giving back is a pointer change, and unloading copies nothing.
"""

from __future__ import annotations

import collections
import functools
import logging
import sys
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch

from distorch import allocation
from distorch.devices import name_of
from distorch.group_costs import block_costs, planned_groups
from distorch.memory import placements
from distorch.parts import tensor_bytes
from distorch.placed import PlacementError
from distorch.slabs import slab_of

from ..seams import progress
from . import placement_report, runner
from .blocks import Block, BlockTensor, find_blocks
from .weights import HOST, Weights, unpin

log = logging.getLogger("DisTorch")


class ModelPlacement:
    """The placement of one model. Not safe for concurrent use: ComfyUI's worker is one thread."""

    def __init__(self, model: torch.nn.Module, request: Any, compute: torch.device) -> None:
        self.request, self.compute = request, compute
        self.name = type(model).__name__
        self.key = id(model)
        self.blocks = find_blocks(model)
        self.by_name = {block.name: block for block in self.blocks}
        self.plan: Any = None
        self.loaded = False
        self.weights = Weights(self.blocks, compute, low_precision=not request.high_precision_loras)
        self.weights.before_change = _stopper(self)
        self.core: Any = None  # decides; made with the first plan
        self.donor_patchers: dict[str, Any] = {}
        self.runner: Any = None
        self.pinner: Any = None
        # Measured, for the next plan.
        self.group_seconds: dict[str, float] = {}
        self.often: list[str] = []
        self.running = ""  # how it runs, for people
        self.accounted = 0  # bytes of the engine's slots that the core knows of
        self._forced, self._wrappers = False, dict[str, list[Any]]()
        self._check_names()
        self._index = {block.name: i for i, block in enumerate(self.blocks)}

    @functools.cached_property
    def groups(self) -> dict[str, list[Block]]:
        """The blocks of each layer group."""
        return runner.groups_of(self.blocks)

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        """A copied model is not placed: its patcher makes a record of its own."""

    def _check_names(self) -> None:
        if len(self.by_name) != len(self.blocks):
            names = collections.Counter(block.name for block in self.blocks)
            raise PlacementError(f"two blocks are called {names.most_common(1)[0][0]!r}")

    # Planning

    def make_plan(self, devices: list[allocation.Device], *, strict: bool = False) -> None:
        """Plans for these devices. Raises PlanError. `strict`: one that is short of memory is an error, not a note."""
        names = allocation.group_names([b.name for b in self.blocks])
        groups = planned_groups(names, self.often)
        sizes = [(group, b.bytes) for b, group in zip(self.blocks, groups, strict=True)]
        costs = block_costs(sizes, self.group_seconds)
        blocks = [
            allocation.Block(
                b.name, b.bytes, group, b.pinned, b.tied, self._is_patched(b), cost=cost
            )
            for b, group, cost in zip(self.blocks, groups, costs, strict=True)
        ]
        options = allocation.Options(strict=strict, slots=None)
        self.plan = allocation.make_plan(
            self.request.spec, blocks, devices, name_of(self.compute), options
        )
        names = [self.plan.placement[block.name] for block in self.blocks]
        if not self.loaded:  # all is as it was found, wherever the model's owner moved it
            groups = allocation.group_names([runner.bare(b.name) for b in self.blocks])
            self.core = self.weights.placement(self.blocks, groups, names)
        self.core.assign([self.weights.devices.index(name) for name in names])

    def _is_patched(self, block: Block) -> bool:
        return any(held.key in self.weights.patched for held in block.tensors)

    def planned_bytes(self, device: str) -> int:
        """Bytes that the plan gives a device."""
        return sum(b.bytes for b in self.blocks if self.plan.placement[b.name] == device)

    def donors(self) -> list[str]:
        """Devices other than the compute device and the host that the plan uses."""
        used = set(self.plan.placement.values())
        return sorted(used - {name_of(self.compute), name_of(HOST)})

    def staging(self, buffers: int) -> int:
        """Bytes that streaming needs on the compute device: slots for the largest layer group.

        Or, if that is more, the largest streamed block, `buffers` times: the core's own cast.
        """
        here = name_of(self.compute)
        return self._staging(buffers, [b for b in self.blocks if self.target(b) != here])

    def least_bytes(self, buffers: int) -> int:
        """Bytes that the model cannot do without on its compute device: what stays there, and staging for the rest."""
        stay = sum(b.bytes for b in self.blocks if b.pinned)
        return stay + self._staging(buffers, [b for b in self.blocks if not b.pinned])

    def _staging(self, buffers: int, streamed: list[Block]) -> int:
        by_layer = max((b.bytes for b in streamed), default=0) * max(1, buffers)
        return max(by_layer, runner.staging_bytes(self, {b.name for b in streamed}))

    @property
    def spilled(self) -> set[str]:
        """Names of the blocks that wait on the host for a place that is theirs by the plan."""
        if self.core is None:
            return set()
        return {name for name, i in self._index.items() if self.core.spilled(i)}

    def call_back(self, name: str) -> None:
        """A spilled block belongs to its place again; it moves there with the next load."""
        self.core.give_back(self._index[name])

    def target(self, block: Block) -> str:
        """Where the block belongs now: its place in the plan, or the host if it had to leave."""
        return self.weights.devices[self.core.target(self._index[block.name])]

    def recover(self) -> None:
        """Lets go of what a run has left that was cut off; while the model does not run."""
        if self.runner is not None and self.runner.engine is not None:
            self.runner.engine.recover()

    def load(self, patcher: Any) -> None:
        """Brings every block to its target, patching those whose patches changed since."""
        self._forced = bool(getattr(patcher, "force_cast_weights", False))
        self._wrappers = {k: list(v) for k, v in patcher.weight_wrapper_patches.items()}
        self.recover()
        with torch.inference_mode():
            self.weights.bring(self.core, patcher, progress.shown(self.name))
        self.loaded = True
        for block in self.blocks:
            self._set_cast(block, torch.device(self.target(block)))
        self.verify()

    def run(self, model: torch.nn.Module) -> None:
        """Lets the layer groups come ahead of their use; without room for that, layer by layer.

        What runs already and was not touched goes on: it has learned the order.
        """
        if self.compute.type == "cpu" or not self.loaded or self.runner is not None:
            return
        try:
            self.runner = runner.Runner(self, model, name_of(self.compute))
        except (torch.OutOfMemoryError, RuntimeError) as error:
            log.warning("%s: weights come layer by layer, which is slower: %s", self.name, error)
            self.running = f"layer by layer: {error}"
        self.verify()

    def stop_running(self) -> None:
        """Before weights move: the engine lets go of its slots."""
        if self.runner is not None:
            if self.runner.engine is not None and self.runner.engine.profile.complete:
                profile = self.runner.engine.profile
                self.group_seconds, self.often = profile.group_seconds, profile.often
            self.runner.close()
            self.runner = None
        self.running = ""

    def _set_cast(self, block: Block, device: torch.device) -> None:
        """Makes the layer fetch its weights at each call when they lie elsewhere."""
        module = block.tensors[0].module
        if not hasattr(module, "comfy_cast_weights") or not block.castable:
            return
        # Patches are in the weights: who saves the model must not add them again.
        module.comfy_patched_weights = True
        module.comfy_force_cast_weights = self._forced
        before = module.__dict__.pop("prev_comfy_cast_weights", None)
        if before is not None:
            module.comfy_cast_weights = before
        kept = any(held.needs_cast for held in block.tensors)
        if device != self.compute or self._forced or kept:
            module.prev_comfy_cast_weights = module.comfy_cast_weights
            module.comfy_cast_weights = True
        for held in block.tensors:
            function = f"{held.name}_function"
            if hasattr(module, function):
                setattr(module, function, list(self._wrappers.get(held.key, ())))

    def host_tensors(self) -> Iterator[BlockTensor]:
        """Tensors that the core's cast streams from the host: worth pinning by its means."""
        for block in self.blocks:
            if block.castable and not block.pinned and self.target(block) == "cpu":
                yield from (held for held in block.tensors if slab_of(held.current) is None)

    def verify(self) -> None:
        """Raises PlacementError if a tensor is not where it belongs."""
        try:
            self.core.verify(self.weights)
        except RuntimeError as error:
            raise PlacementError(str(error)) from None

    # Giving back

    def spill(self, device: str, wanted: float) -> int:
        """Moves blocks from a device to the host until `wanted` bytes are free; returns the bytes.

        On the compute device the engine's slots go first. Blocks that cannot leave it stay. All
        come back with the next load.
        """
        if device == name_of(HOST) or not self.loaded or device not in self.weights.devices:
            return 0
        freed = self.held_bytes() if device == name_of(self.compute) else 0
        self.stop_running()
        before, index = self.spilled, self.weights.devices.index(device)
        with torch.inference_mode():
            freed += self.core.spill(self.weights, index, int(min(wanted - freed, sys.maxsize)))
        for name in self.spilled - before:
            self._set_cast(self.by_name[name], HOST)
        return freed

    def fit(self, budget: float, staging: int) -> int:
        """Marks what must wait on the host so that the compute device holds at most `budget` bytes.

        Blocks marked before are unmarked as far as they fit. Returns the bytes left out.
        """
        left_out: int = self.core.fit(int(min(budget, sys.maxsize)) - staging)
        return left_out

    def hooks_are_out(self) -> None:
        """The core has taken its hook LoRAs out of the stored tensors."""
        if self.core is not None:
            with torch.inference_mode():
                self.weights.hooks_are_out(self.core)

    def release(self, patcher: Any) -> None:
        """Every module holds its host copy again. Copies nothing."""
        self.stop_running()
        if self.pinner is not None:
            self.pinner.close()
            self.pinner = None
        with self.weights.using(patcher):
            self.core.release(self.weights)
        for held in self.weights.tensors:
            unpin(patcher, held)
            patcher.backup.pop(held.key, None)
        self.weights.patched.clear()
        self.loaded = False

    def placement(self) -> dict[str, str]:
        """Block → device, read back from the tensors."""
        return {b.name: ", ".join(sorted(b.devices())) for b in self.blocks}

    def bytes_per_device(self) -> dict[str, int]:
        """What the tensors take on each device now."""
        sums: dict[str, int] = collections.defaultdict(int)
        for block in self.blocks:
            for held in block.tensors:
                tensor = held.current
                sums[name_of(tensor.device)] += tensor_bytes(tensor)
        return dict(sums)

    def held_bytes(self) -> int:
        """What the engine's slots take on the compute device now."""
        engine = self.runner.engine if self.runner is not None else None
        return engine.staging_bytes if engine is not None else 0

    def compute_bytes(self) -> int:
        """Bytes of weights on the compute device now; 0 when not loaded there."""
        return self.bytes_per_device().get(name_of(self.compute), 0) if self.loaded else 0

    def report(self, state: str) -> placements.Placement:
        """What `distorch.placements()` shows."""
        return placement_report.report(self, state)


def _stopper(placed: ModelPlacement) -> Callable[[], None]:
    """Stops the engine of a placement, which it does not keep alive."""
    reference = weakref.ref(placed)

    def stop() -> None:
        placed = reference()
        if placed is not None:
            placed.stop_running()

    return stop
