# SPDX-License-Identifier: Apache-2.0
"""A placed model: runs from where its blocks are, can be read back, patched again and unloaded.

For inference: weights are lent to the compute device for the time of a module's call, so gradients of weights that
are stored elsewhere are not kept. One thread runs a placed model at a time; reading it from others is safe.
"""

from __future__ import annotations

import functools
import weakref
from collections import defaultdict
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from distorch.devices import name_of
from distorch.loans import Loan, borrowers, refresh_flat_weights, was_written
from distorch.model_blocks import Inventory, TensorKey, TensorRef, tensor_key, walk
from distorch.nested import map_tensors
from distorch.parts import moved, tensor_bytes

if TYPE_CHECKING:
    from distorch.patching import Patches


class PlacementError(RuntimeError):
    """A block is not where the plan says; the message names it."""


# Modules that own tensors of models that are placed now.
_PLACED: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def check_free(inventory: Inventory) -> None:
    """Raise PlacementError if a block belongs to a model that is placed: two would undo each other."""
    for block in inventory.blocks:
        if block.module in _PLACED:
            raise PlacementError(f"block {block.name} is placed already: unload that model first")


def bytes_per_device(inventory: Inventory) -> dict[str, int]:
    """Return where the bytes of a model are now, tensors that are one counted once."""
    seen: set[TensorKey] = set()
    totals: dict[str, int] = defaultdict(int)
    for block in inventory.blocks:
        for ref in block.tensors:
            tensor = ref.get()
            key = tensor_key(tensor)
            if key not in seen:
                seen.add(key)
                totals[name_of(tensor.device)] += tensor_bytes(tensor)
    return dict(totals)


class PlacedModel:
    """A model whose blocks are where a plan put them. Made by `distorch.mover.place`.

    Attributes:
        model: the caller's module, changed in place: entries of its parameter and buffer tables are replaced.
        plan: the plan.
        compute: canonical name of the compute device.
        inventory: blocks and layer groups.
        transfers: bytes the load moved, by (from, to); factors of patches are in `factor_bytes`.
        notes: what the user should know.
    """

    def __init__(self, model: nn.Module, plan: Any, compute: str, inventory: Inventory) -> None:
        self.model = model
        self.plan = plan
        self.compute = compute
        self.compute_device = torch.device(compute)
        self.inventory = inventory
        self.assignment: dict[str, str] = {}
        self.transfers: dict[tuple[str, str], int] = defaultdict(int)
        self.factor_bytes = 0
        self.notes: list[str] = []
        self.patches: Patches = {}
        self.lent_bytes = 0
        # by the table that holds the tensor and its name there
        self._originals: dict[tuple[int, str], tuple[TensorRef, torch.Tensor]] = {}
        self._loans: list[Loan] = []
        # Forward pre-hooks that modules had when the model was placed.
        self._hooks_before: dict[nn.Module, list[int]] = {}
        # by the same: the placed buffer, and its version then
        self._buffers: dict[tuple[int, str], tuple[torch.Tensor, int]] = {}
        self._input_handle: Any = None
        self._has_run = False
        self._on_unload: list[Callable[[PlacedModel], None]] = []
        self._on_repatch: list[Callable[[PlacedModel], None]] = []

    @property
    def groups(self) -> dict[str, nn.Module]:
        """Layer groups by name, in the order of the model."""
        return self.inventory.groups

    @property
    def loaded(self) -> bool:
        """Whether the model is placed (False after `unload`)."""
        return bool(self._originals) or self._input_handle is not None

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
        if not self.loaded:
            raise PlacementError("the model was unloaded")
        for name, device in self.placement().items():
            wanted = self.assignment[name]
            if device != wanted:
                raise PlacementError(f"block {name} is on {device}, the plan says {wanted}")

    def repatch(self, patches: Patches | None) -> None:
        """Change the patches: only blocks that were or become patched are touched, all others keep their storage.

        As safe as `place`: on any error the model is as before.
        """
        from distorch.mover import repatch

        repatch(self, patches or {})

    def attach_hooks(self, skip: Collection[str] = ()) -> None:
        """Install the hooks that lend weights to the compute device, module by module.

        Blocks in `skip` are somebody else's business (an engine that brings whole groups).
        """
        if self._loans or not self.loaded:
            return
        away = [
            b
            for b in self.inventory.blocks
            if self.assignment[b.name] != self.compute and b.name not in skip
        ]
        refs = {b.module: list(b.tensors) for b in away}
        for module, borrowed in borrowers(self.model, refs).items():
            self._loans.append(Loan(self, borrowed, module, self._hooks_before.get(module, ())))

    def detach_hooks(self) -> None:
        """Remove them again; another engine then brings the weights (distorch.engine)."""
        for loan in self._loans:
            loan.recover()
            loan.remove()
        self._loans.clear()

    def recover(self) -> None:
        """Put the stored tensors back where a run was cut off by what torch's hooks do not see (KeyboardInterrupt).

        Done by itself before the next run and by `unload`; to be called only while the model does not run.
        """
        for loan in self._loans:
            loan.recover()

    def lend(self, stored: torch.Tensor) -> torch.Tensor:
        """Return a copy of a stored tensor on the compute device, with its attributes."""
        with torch.no_grad():
            here = moved(stored, self.compute_device, lent=True)
        self.lent_bytes += tensor_bytes(here)
        return here

    def install(self) -> None:
        """Make the model run from where its blocks are. Raises PlacementError if a part of it is placed already."""
        check_free(self.inventory)
        for _, module in walk(self.model):
            if module._forward_pre_hooks:
                self._hooks_before[module] = list(module._forward_pre_hooks)

        def arrive(tensor: torch.Tensor, _path: str) -> torch.Tensor:
            return tensor.to(self.compute_device)

        def begin(_module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, Any]:
            self.recover()
            self._has_run = True
            return map_tensors(args, arrive), map_tensors(kwargs, arrive)

        self._input_handle = self.model.register_forward_pre_hook(
            begin, prepend=True, with_kwargs=True
        )
        _PLACED.update(block.module for block in self.inventory.blocks)  # until `unload`
        self.attach_hooks()

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
        failures = []
        for step in [*steps, self.detach_hooks, self._keep_written]:
            try:
                step()
            except (
                BaseException
            ) as error:  # an interrupt, too, has to wait until the model is whole
                failures.append(error)
        if self._input_handle is not None:
            self._input_handle.remove()
            self._input_handle = None
            _PLACED.difference_update([block.module for block in self.inventory.blocks])
        originals = list(self._originals.values())
        self._originals.clear()
        self._buffers.clear()
        for ref, original in originals:
            ref.table[ref.name] = original
        for module in {ref.module for ref, _ in originals}:
            refresh_flat_weights(module)
        if failures:
            raise failures[0]

    def _keep_written(self) -> None:
        """Copy buffers that a run has written to the originals."""
        for key, (ref, original) in self._originals.items():
            buffer, version = self._buffers.get(key, (None, 0))
            if not self._has_run or buffer is None or ref.get() is not buffer:
                continue
            if was_written(ref.module, buffer, version):
                with torch.no_grad():
                    original.copy_(buffer)

    def commit(self, staged: list[tuple[TensorRef, torch.Tensor]]) -> None:
        """Replace tensors of the model; on any interruption all of them are put back."""
        done: list[tuple[TensorRef, torch.Tensor]] = []
        new: list[tuple[int, str]] = []
        try:
            for ref, tensor in staged:
                done.append((ref, ref.get()))
                key = (id(ref.table), ref.name)
                if key not in self._originals:
                    new.append(key)
                    self._originals[key] = done[-1]
                if ref.kind == "buffer":
                    self._buffers[key] = (tensor, tensor._version)
                ref.table[ref.name] = tensor
            for module in {ref.module for ref, _ in done}:
                refresh_flat_weights(module)
        except BaseException:
            for ref, before in reversed(done):
                ref.table[ref.name] = before
            for key in new:
                self._originals.pop(key, None)
            for module in {ref.module for ref, _ in done}:
                refresh_flat_weights(module)
            raise

    def original(self, ref: TensorRef) -> torch.Tensor:
        """Return the tensor that was there before the model was placed."""
        entry = self._originals.get((id(ref.table), ref.name))
        return ref.get() if entry is None else entry[1]
