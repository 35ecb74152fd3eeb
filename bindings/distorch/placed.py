# SPDX-License-Identifier: Apache-2.0
"""A placed model: runs from where its blocks are, can be read back, patched again and unloaded.

For inference: weights are lent to the compute device for the time of a module's call, so gradients of weights that
are stored elsewhere are not kept. One thread runs a placed model at a time; reading it from others is safe.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from distorch.inventory import Inventory, TensorRef
    from distorch.patching import Patches


class PlacementError(RuntimeError):
    """A block is not where the plan says; the message names it."""


def canonical(device: torch.device | str) -> str:
    """Return a device's canonical name: `cuda` is `cuda:0`, `cpu` and `mps` have no index.

    >>> canonical("CUDA")
    'cuda:0'
    """
    parsed = torch.device(str(device).lower())
    if parsed.type in ("cpu", "mps", "meta"):
        return parsed.type
    return f"{parsed.type}:{parsed.index or 0}"


def move_nested(value: Any, device: torch.device) -> Any:
    """Return `value` with every tensor in it on `device`; tuples, lists, dicts and dataclasses are looked into."""
    if isinstance(value, torch.Tensor):
        return value if value.device == device else value.to(device)
    if isinstance(value, tuple):
        items = [move_nested(item, device) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, list):
        return [move_nested(item, device) for item in value]
    if isinstance(value, dict):
        moved = {key: move_nested(item, device) for key, item in value.items()}
        return moved if type(value) is dict else type(value)(moved)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {
            f.name: move_nested(getattr(value, f.name), device)
            for f in dataclasses.fields(value)
            if f.init
        }
        return dataclasses.replace(value, **fields)
    return value


# Modules that read the weights of their children without calling them.
_READS_CHILDREN: tuple[type[nn.Module], ...] = (nn.MultiheadAttention, nn.TransformerEncoderLayer)


class _Loan:
    """Brings a module's tensors to the compute device while it runs, and puts the stored ones back afterwards."""

    def __init__(self, owner: PlacedModel, refs: list[TensorRef], module: nn.Module) -> None:
        self._owner = owner
        self._refs = refs
        self._depth = 0
        self._lent: list[tuple[TensorRef, Any, Any, int]] = []
        self.handles = [
            module.register_forward_pre_hook(self._begin),
            module.register_forward_hook(self._end, always_call=True),
        ]

    def _begin(self, _module: nn.Module, _args: Any) -> None:
        self._depth += 1
        if self._depth > 1:
            return  # the module calls itself: its weights are here already
        try:
            for ref in self._refs:
                stored = ref.get()
                if stored.device == self._owner.compute_device:
                    continue
                here = self._owner._lend(stored)
                version = -1 if here.is_inference() else here._version
                self._lent.append((ref, stored, here, version))
                ref.table[ref.name] = here
            self._refresh()
        except BaseException:
            self._depth -= 1
            self._return()
            raise

    def _end(self, _module: nn.Module, _args: Any, _output: Any) -> None:
        if self._depth == 0:
            return  # `_begin` failed and has cleaned up
        self._depth -= 1
        if self._depth == 0:
            self._return()

    def _return(self) -> None:
        while self._lent:
            ref, stored, here, version = self._lent.pop()
            # Some kernels write running statistics without counting it as a version.
            written = ref.kind == "buffer" and (
                ref.module.training or (version >= 0 and here._version != version)
            )
            if ref.table.get(ref.name) is not here:
                continue  # the module has put something else there
            if written:
                with torch.no_grad():
                    stored.copy_(here)
            ref.table[ref.name] = stored
        self._refresh()

    def recover(self) -> None:
        if self._depth:
            self._depth = 0
            self._return()

    def _refresh(self) -> None:
        for module in {ref.module for ref in self._refs}:
            refresh_flat_weights(module)

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()


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
        self._loans: list[_Loan] = []
        self._input_handle: Any = None
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
            block.name: "+".join(sorted({canonical(ref.get().device) for ref in block.tensors}))
            for block in self.inventory.blocks
        }

    def bytes_per_device(self) -> dict[str, int]:
        """Read back the bytes on each device, each storage once."""
        from distorch.inventory import storage_key, tensor_bytes

        seen: set[tuple[str, int]] = set()
        totals: dict[str, int] = defaultdict(int)
        for block in self.inventory.blocks:
            for ref in block.tensors:
                tensor = ref.get()
                key = storage_key(tensor)
                if key not in seen:
                    seen.add(key)
                    totals[canonical(tensor.device)] += tensor_bytes(tensor)
        return dict(totals)

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
        refs: dict[nn.Module, list[TensorRef]] = {b.module: list(b.tensors) for b in away}
        self._read_through(refs)
        for module, owned in refs.items():
            self._loans.append(_Loan(self, owned, module))

    def _read_through(self, refs: dict[nn.Module, list[TensorRef]]) -> None:
        """Let modules that read their children's weights borrow those too."""
        from distorch.inventory import walk

        for _, module in walk(self.model):
            if isinstance(module, _READS_CHILDREN):
                below = [
                    ref
                    for _, child in walk(module)
                    if child is not module
                    for ref in refs.get(child, [])
                ]
                if below:
                    refs[module] = [*refs.get(module, []), *below]

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

    def _lend(self, stored: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            here = stored.detach().to(self.compute_device)
        self.lent_bytes += here.nbytes
        if isinstance(stored, nn.Parameter):
            lent = nn.Parameter(here, requires_grad=False)
            lent.__dict__.update(stored.__dict__)
            return lent
        return here

    def _install(self) -> None:
        def to_compute(
            _module: nn.Module, args: Any, kwargs: dict[str, Any]
        ) -> tuple[Any, dict[str, Any]]:
            self.recover()
            return move_nested(args, self.compute_device), {
                key: move_nested(value, self.compute_device) for key, value in kwargs.items()
            }

        self._input_handle = self.model.register_forward_pre_hook(
            to_compute, prepend=True, with_kwargs=True
        )
        self.attach_hooks()

    def on_unload(self, callback: Callable[[PlacedModel], None]) -> None:
        """Call `callback(self)` when the model is unloaded, before its tensors go back."""
        self._on_unload.append(callback)

    def on_repatch(self, callback: Callable[[PlacedModel], None]) -> None:
        """Call `callback(self)` after patches have changed: some tensors are new ones."""
        self._on_repatch.append(callback)

    def unload(self) -> None:
        """Put the original tensors back and drop the placed ones. Copies nothing. Does nothing the second time."""
        callbacks, self._on_unload = self._on_unload, []
        self._on_repatch.clear()
        for callback in callbacks:
            callback(self)
        self.detach_hooks()
        if self._input_handle is not None:
            self._input_handle.remove()
            self._input_handle = None
        originals = list(self._originals.values())
        self._originals.clear()
        for ref, original in originals:
            ref.table[ref.name] = original
        for module in {ref.module for ref, _ in originals}:
            refresh_flat_weights(module)

    def commit(self, staged: list[tuple[TensorRef, torch.Tensor]]) -> None:
        """Replace tensors of the model; on any interruption all of them are put back."""
        done: list[tuple[TensorRef, torch.Tensor]] = []
        try:
            for ref, tensor in staged:
                done.append((ref, ref.get()))
                ref.table[ref.name] = tensor
        except BaseException:
            for ref, before in reversed(done):
                ref.table[ref.name] = before
            raise
        for ref, before in done:
            self._originals.setdefault((id(ref.table), ref.name), (ref, before))
            refresh_flat_weights(ref.module)

    def original(self, ref: TensorRef) -> torch.Tensor:
        """Return the tensor that was there before the model was placed."""
        entry = self._originals.get((id(ref.table), ref.name))
        return ref.get() if entry is None else entry[1]


def refresh_flat_weights(module: nn.Module) -> None:
    """Recurrent modules keep a list of their weights beside the table: make it name those of the table."""
    if isinstance(module, nn.RNNBase):
        module._flat_weights = [getattr(module, name) for name in module._flat_weights_names]
