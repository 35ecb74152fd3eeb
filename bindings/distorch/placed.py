# SPDX-License-Identifier: Apache-2.0
"""A placed model: runs from where its blocks are, can be read back, patched again and unloaded.

For inference: weights are brought to the compute device for the time of a module's call, so gradients of weights that
are stored elsewhere are not kept. One thread runs a placed model at a time; reading it from others is safe.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from distorch import guards, hostmemory
from distorch.devices import name_of
from distorch.guards import PlacementError
from distorch.model_blocks import Inventory, TensorPlace
from distorch.model_inputs import ModelInputs
from distorch.on_demand import OnDemandCopies
from distorch.patching import Patch, Patches, check_patches
from distorch.slabs import unrecorded
from distorch.tables import ModuleTable, Reporter, bytes_per_device


class PlacedModel:
    """A model whose blocks are where a plan put them. Made by `distorch.place`.

    Attributes:
        model: the caller's module, changed in place: entries of its parameter and buffer tables are replaced.
        plan: the plan.
        compute: canonical name of the compute device.
        inventory: blocks and layer groups.
        assignment: the device of each block, as planned.
        patches: those that are in the weights, by qualified parameter name.
        executor: what brings the weights ahead of their use; None while they come module by module.
    """

    def __init__(self, model: nn.Module, plan: Any, compute: str, inventory: Inventory) -> None:
        """Nothing moves yet. Raises PlacementError when the plan lacks a block, or a part is placed already."""
        guards.check_free((block.name, block.module) for block in inventory.blocks)
        self.model = model
        self.plan = plan
        self.compute = compute
        self.compute_device = torch.device(compute)
        self.inventory = inventory
        self.assignment = _assignment(plan, inventory)
        self.notes: list[str] = []
        self.patches: Patches = {}
        self.executor: Any = None
        self._table = ModuleTable(inventory, compute, list(self.assignment.values()))
        self._core = self._table.placement(inventory, compute)
        self._core.assign([self._table.index_of(d) for d in self.assignment.values()])
        owners = [block.module for block in inventory.blocks]
        groups = inventory.groups.values()
        self._on_demand = OnDemandCopies(model, self.compute_device, owners, groups)
        self._inputs = ModelInputs(model, self.compute_device, owners, self._begin_run)
        self._on_unload: list[Callable[[PlacedModel], None]] = []
        self._on_repatch: list[Callable[[PlacedModel], None]] = []

    def load(self, patches: Patches, progress: Reporter | None = None) -> None:
        """Bring the blocks, verify, and let the model run from there; called once, by `distorch.place`.

        Raises as `distorch.place` does; the model is then as it was.
        """
        self._check(patches)
        self._table.progress = progress
        try:
            with self._patched_with(patches):
                self._bring()
        finally:
            self._table.progress = None
        try:
            self.install()
            self.verify()
        except BaseException:
            self.unload()
            raise

    def _check(self, patches: Patches) -> None:
        if not patches:
            return
        found = zip(self._table.refs, self._table.found, strict=True)
        check_patches(patches, {ref.qualified: tensor for ref, tensor in found})

    @contextmanager
    def _patched_with(self, patches: Patches) -> Iterator[None]:
        """Have these patches from now on; those of before again where the block fails."""
        before = self.patches, self._table.patches
        found: dict[int, list[Patch]] = {}
        # Gathered for each tensor, under whichever of its names they were given.
        for i, ref in enumerate(self._table.refs if patches else ()):
            if ref.kind == "parameter" and ref.qualified in patches:
                known = found.setdefault(self._table.same[i], [])
                known.extend(p for p in patches[ref.qualified] if all(p is not k for k in known))
        self.patches, self._table.patches = patches, found
        try:
            yield
        except BaseException:
            self.patches, self._table.patches = before
            raise

    def _bring(self, changed: Collection[int] = ()) -> None:
        patches, same = self._table.patches, self._table.same
        with unrecorded():
            self._core.bring(
                self._table,
                patched=[first in patches for first in same],
                changed=[first in changed for first in same],
                host_free=hostmemory.available_bytes() if patches else None,
            )

    @property
    def on_demand_bytes(self) -> int:
        """Bytes copied to the compute device module by module so far."""
        return self._on_demand.bytes

    @property
    def transfers(self) -> dict[tuple[str, str], int]:
        """Bytes that loading and patching moved, by (from, to); without those of patches' factors."""
        moved_bytes: dict[tuple[str, str], int] = self._core.transfers
        return moved_bytes

    @property
    def factor_bytes(self) -> int:
        """Bytes of patches' factors that were brought to the compute device."""
        size: int = self._core.factor_bytes
        return size

    @property
    def groups(self) -> dict[str, nn.Module]:
        """Layer groups by name, in the order of the model."""
        return self.inventory.groups

    @property
    def loaded(self) -> bool:
        """Whether the model is placed (False after `unload`)."""
        return self._inputs.attached

    def placement(self) -> dict[str, str]:
        """Read back where each block is now; "a+b" for one whose tensors are on several devices."""
        return {
            block.name: "+".join(sorted({name_of(ref.get().device) for ref in block.tensors}))
            for block in self.inventory.blocks
        }

    def bytes_per_device(self) -> dict[str, int]:
        """Read back the bytes on each device, tensors that are one counted once."""
        return bytes_per_device(self.inventory)

    def verify(self) -> None:
        """Compare the placement read back with the plan; raises PlacementError with the first block that differs."""
        self._must_be_loaded()
        try:
            self._core.verify(self._table)
        except RuntimeError as error:
            raise PlacementError(str(error)) from None

    def _must_be_loaded(self) -> None:
        if not self.loaded:
            raise PlacementError("the model was unloaded")

    def report(self) -> str:
        """Say in lines what lies where and how it runs, read back."""
        sizes = self.bytes_per_device()
        lines = [f"{type(self.model).__name__} on {self.compute}:"]
        lines += [f"  {device}: {size / 2**20:.2f} MB" for device, size in sorted(sizes.items())]
        lines += [f"  {line}" for line in (self.executor.report() if self.executor else ())]
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])

    def repatch(self, patches: Patches | None) -> None:
        """Change the patches: only tensors that were or become patched are touched, all others keep their storage.

        As safe as `place`: on any error the model is as before.
        """
        self._must_be_loaded()
        patches = patches or {}
        self.recover()
        self._table.look()
        self._check(patches)
        names = set(patches) | set(self.patches)
        same = self._table.same
        changed = {same[i] for i, r in enumerate(self._table.refs) if r.qualified in names}
        with self._patched_with(patches):
            self._bring(changed)
        for callback in self._on_repatch:
            callback(self)
        self.verify()

    def stream(self, **options: Any) -> None:
        """Let weights come ahead of their use, group by group, where some lie elsewhere; see `StreamedExecutor`.

        Done by `distorch.place` with a string. Does nothing where it would not help, or the second time.
        """
        from distorch.run import StreamedExecutor

        away = any(device != self.compute for device in self.assignment.values())
        if self.executor is None and away and self.compute != "cpu":
            self._must_be_loaded()
            StreamedExecutor(self, **options)  # becomes `executor`

    def attach_hooks(self, skip: Collection[str] = ()) -> None:
        """Have the hooks that bring weights to the compute device, module by module, on all blocks but those in `skip`.

        Those are somebody else's business (an engine that brings whole groups). Hooks that are there and stay are not
        touched: torch may be walking them.
        """
        away = {
            b.module: b.tensors
            for b in self.inventory.blocks
            if self.loaded and self.assignment[b.name] != self.compute and b.name not in skip
        }
        self._on_demand.set(away)

    def detach_hooks(self) -> None:
        """Remove them all."""
        self.attach_hooks(skip={b.name for b in self.inventory.blocks})

    def recover(self) -> None:
        """Put the stored tensors back where a run was cut off by what torch's hooks do not see (KeyboardInterrupt).

        Done by itself before the next run and by `unload`; to be called only while the model does not run.
        """
        self._on_demand.recover()
        self._inputs.give_back()

    def install(self) -> None:
        """Make the model run from where its blocks are."""
        self._inputs.attach()
        guards.close(self.model, [block.module for block in self.inventory.blocks])
        self.attach_hooks()

    def _begin_run(self) -> None:
        self.recover()
        self._table.ran = True

    def on_unload(self, callback: Callable[[PlacedModel], None]) -> None:
        """Call `callback(self)` when the model is unloaded, before its tensors go back."""
        self._on_unload.append(callback)

    def on_repatch(self, callback: Callable[[PlacedModel], None]) -> None:
        """Call `callback(self)` after patches have changed: some tensors are new ones."""
        self._on_repatch.append(callback)

    def forget(self, callback: Callable[[PlacedModel], None]) -> None:
        """Call `callback` no more on either occasion; one that is not known is no error."""
        for callbacks in (self._on_unload, self._on_repatch):
            if callback in callbacks:
                callbacks.remove(callback)

    def unload(self) -> None:
        """Put the original tensors back and drop the placed ones. Does nothing the second time.

        Copies nothing but buffers that a run has written, as running statistics. Whatever fails on the way, a callback
        or such a copy, the originals are put back; then the first failure is raised.
        """
        callbacks, self._on_unload = self._on_unload, []
        self._on_repatch.clear()
        steps: list[Callable[[], object]] = [functools.partial(c, self) for c in callbacks]
        # Last: the tensors themselves. A failure, or an interrupt, has to wait until the model is whole.
        steps += [self.detach_hooks, self._stop_running, self._table.look]
        steps += [functools.partial(self._core.release, self._table), self._table.unpack]
        failures = []
        for step in steps:
            try:
                step()
            except BaseException as error:
                failures.append(error)
        if failures:
            raise failures[0]

    def _stop_running(self) -> None:
        if self._inputs.attached:
            self._inputs.detach()
            guards.open_again(self.model, [block.module for block in self.inventory.blocks])

    def replace(self, tensors: Sequence[tuple[TensorPlace, torch.Tensor]]) -> None:
        """Hang copies that an engine has made on the same device: it has packed them into slabs."""
        self._table.replace(tensors)


def _assignment(plan: Any, inventory: Inventory) -> dict[str, str]:
    placement = plan.placement
    missing = [block.name for block in inventory.blocks if block.name not in placement]
    if missing:
        raise PlacementError(
            f"the plan has no place for {missing[0]} ({len(missing)} blocks are missing)"
        )
    return {block.name: name_of(placement[block.name]) for block in inventory.blocks}
