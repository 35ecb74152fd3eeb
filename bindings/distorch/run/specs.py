# SPDX-License-Identifier: Apache-2.0
"""Layer groups as the engine sees them: what a caller says of one, and what it is while the engine is attached."""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from distorch.on_demand import refresh_flat_weights
from distorch.parts import parts_of, tensor_bytes
from distorch.run.migration import MigratedGroup, Migrator
from distorch.run.streaming import StreamGroup
from distorch.run.weak_refs import WeakTensorRef
from distorch.slabs import pack, slab_of

# Takes over tensors: each WeakTensorRef's place is to hold this tensor from now on.
Store = Callable[[list[tuple[Any, torch.Tensor]]], None]


class GroupSpec:
    """A layer group with tensors elsewhere. Immutable; holds the module weakly.

    Attributes:
        name: its name in the model.
        away: its tensors that are stored elsewhere than on the compute device; of `parts.can_rebuild`.
        here: its others.
        donor: the one device that stores all that could leave the compute device; "" when there is not one, and the
            group can only be streamed.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        away: Iterable[Any],
        here: Iterable[Any] = (),
        donor: str = "",
    ) -> None:
        """Tensors are `distorch.model_blocks.TensorRef`s, or what has the same attributes."""
        self.name, self.donor = name, donor
        self._module = weakref.ref(module)
        self.away = tuple(
            ref if isinstance(ref, WeakTensorRef) else WeakTensorRef(ref) for ref in away
        )
        self.here = tuple(
            ref if isinstance(ref, WeakTensorRef) else WeakTensorRef(ref) for ref in here
        )

    @property
    def module(self) -> nn.Module:
        """The module; to be asked for only while the model lives."""
        module = self._module()
        assert module is not None, "the model is gone"
        return module

    @property
    def bytes(self) -> int:
        """Bytes of the tensors that are elsewhere."""
        return sum(tensor_bytes(ref.get()) for ref in self.away)

    def children(self) -> list[GroupSpec]:
        """Split into those children of the module that have tensors elsewhere; [] when there is no such child."""
        parts = []
        for name, child in self.module.named_children():
            below = {id(module) for module in child.modules()}
            away = [ref for ref in self.away if id(ref.module) in below]
            here = [ref for ref in self.here if id(ref.module) in below]
            if away:
                parts.append(GroupSpec(f"{self.name}.{name}", child, away, here, self.donor))
        return parts


@dataclass
class ActiveGroup:
    """A group while the engine is attached."""

    spec: GroupSpec
    touched: bool = False  # a module inside was called
    # The hooks that tell, until the group itself is called.
    touches: list[Any] = field(default_factory=list)
    step: int = 0  # of the engine's, in which it came last; 0 before
    depth: int = 0  # calls of it that run now: more than one where it calls itself
    # Streamed: its index in the streamer; (table, name, stored tensor); what swaps them for those of a slot.
    index: int = -1
    refs: list[tuple[dict[str, Any], str, torch.Tensor]] = field(default_factory=list)
    swap: Any = None
    recurrent: list[weakref.ref[nn.Module]] = field(default_factory=list)
    # Migrated:
    migrator: Migrator | None = None
    group: MigratedGroup | None = None

    def forget_touches(self) -> None:
        """It is known how the group is called."""
        for handle in self.touches:
            handle.remove()
        self.touches.clear()


def pack_group(
    group: ActiveGroup, store: Store, make: Callable[[int, torch.device], torch.Tensor]
) -> StreamGroup:
    """Bring what is away of a group together, one slab a device, allocated by `make`; fills in what swaps it."""
    by_device: dict[torch.device, list[WeakTensorRef]] = defaultdict(list)
    for ref in group.spec.away:
        by_device[ref.get().device].append(ref)
    for refs in by_device.values():
        before = [ref.get() for ref in refs]
        with torch.inference_mode(False), torch.no_grad():
            packed = pack(before, make)
        moved = [
            (ref, new) for ref, old, new in zip(refs, before, packed, strict=True) if new is not old
        ]
        if moved:
            store(moved)
    # As they lie in their slabs, so that neighbours move in one copy.
    refs = sorted(group.spec.away, key=_address)
    group.refs = [(ref.table, ref.name, ref.get()) for ref in refs]
    modules = {ref.module for ref in refs}
    group.recurrent = [weakref.ref(m) for m in modules if isinstance(m, nn.RNNBase)]
    return StreamGroup(group.spec.name, [ref.get() for ref in refs])


def refresh(group: ActiveGroup) -> None:
    """Let recurrent modules look for their weights where they are now."""
    for reference in group.recurrent:
        module = reference()
        if module is not None:
            refresh_flat_weights(module)


def _address(ref: WeakTensorRef) -> tuple[str, int, int]:
    tensor = ref.get()
    slab = slab_of(tensor)
    assert slab is not None
    return str(tensor.device), slab.data_ptr(), parts_of(tensor)[0].data_ptr()
