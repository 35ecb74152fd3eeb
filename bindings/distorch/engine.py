# SPDX-License-Identifier: Apache-2.0
"""Runs a placed model group by group: the weights of a layer group come in one copy, ahead of their use.

    placed = distorch.place_string(model, "cuda:0,8gb;cpu,*", compute="cuda:0")
    executor = StreamedExecutor(placed)      # replaces the hooks that lend weights module by module
    model(inputs)                            # the first step learns the order, later ones copy ahead
    executor.detach()                        # or placed.unload()

Each group's tensors that are stored elsewhere lie in one slab on their device (pinned, where they are on the host and the
compute device can make use of it). Two staging slots on the compute device take turns; a copy runs on a stream of its own,
after the compute that used the slot before and before the compute that needs it (`distorch/execution/
stream_scheduler.h`). Nothing is copied back. Blocks outside of layer groups, and tensors that are not plain, go on being
lent module by module; `notes` says which.

For inference, one thread at a time.
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from distorch._load import core
from distorch.devices import device_module
from distorch.inventory import TensorRef
from distorch.placed import PlacedModel, refresh_flat_weights

# Tensors begin at multiples of this many bytes in a slab: the alignment that CUDA's own allocator gives.
ALIGNMENT = 256


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


@dataclass
class _Slab:
    """The tensors of one group that lie on one device, one behind the other."""

    data: torch.Tensor
    offset: int  # where it begins in a slot
    bytes: int


@dataclass
class _Group:
    name: str
    module: nn.Module
    refs: list[TensorRef]
    slabs: list[_Slab] = field(default_factory=list)
    bytes: int = 0
    stored: list[torch.Tensor] = field(default_factory=list)
    views: list[list[torch.Tensor]] = field(default_factory=list)  # a slot
    depth: int = 0


class _Streams:
    """Streams and events of the compute device; where it has none, copies finish before they return."""

    def __init__(self, device: torch.device, slots: int) -> None:
        module = device_module(device.type)
        self.module: Any = (
            module if hasattr(module, "Stream") and hasattr(module, "Event") else None
        )
        self.device = device
        self.copy: Any = None
        self.ready: list[Any] = []
        self.used: list[Any] = []
        if self.module is not None:
            self.copy = self.module.Stream(device=device)
            self.ready = [self.module.Event() for _ in range(slots)]
            self.used = [self.module.Event() for _ in range(slots)]

    def compute(self) -> Any:
        return self.module.current_stream(self.device)


class StreamedExecutor:
    """Streams the layer groups of a placed model; see the module.

    Attributes:
        slot_bytes: bytes of one staging slot: the largest group that is streamed.
        streamed: names of the groups that are streamed, in the order of the model.
        notes: what is not streamed, and why.
        bytes_copied: bytes copied to the compute device since the executor was made.
    """

    def __init__(self, placed: PlacedModel, *, slots: int = 2) -> None:
        """Take over from the placed model's own hooks.

        Raises:
            torch.OutOfMemoryError: a donor has no room for one group more, or the compute device none for the slots;
                the placed model then runs as before.
            ValueError: fewer than one slot.
        """
        if slots < 1:
            raise ValueError(f"slots must be at least 1, not {slots}")
        self.placed = placed
        self.notes: list[str] = []
        self.bytes_copied = 0
        self._handles: list[Any] = []
        self._groups = self._choose()
        self._buffers: list[torch.Tensor] = []
        self._streams = _Streams(placed.compute_device, slots)
        self.slot_bytes = 0
        if not self._groups:
            self.notes.append("no layer group has weights elsewhere: nothing to stream")
            return
        try:
            self._pack()
            self._make_slots(slots)
        except BaseException:
            self._buffers.clear()
            raise
        # By weak reference: the garbage collector cannot look through a C++ object that holds its owner.
        me = weakref.ref(self)
        self._scheduler = core().StreamScheduler(
            lambda group, slot: _alive(me)._start_copy(group, slot),
            lambda slot: _alive(me)._await_copy(slot),
            lambda slot: _alive(me)._mark_used(slot),
            lambda: _alive(me)._drain(),
            len(self._groups),
            slots,
        )
        self._attach()

    @property
    def streamed(self) -> list[str]:
        """Names of the streamed groups."""
        return [group.name for group in self._groups]

    @property
    def bytes_per_step(self) -> int:
        """Bytes of all streamed groups: what one step copies when they do not all fit into the slots."""
        return sum(group.bytes for group in self._groups)

    @property
    def counters(self) -> dict[str, int]:
        """Copies started, of them ahead of use and on demand, and those overwritten unread."""
        if not self._groups:
            return {"copies": 0, "ahead": 0, "on_demand": 0, "wasted": 0}
        return dict(self._scheduler.counters)

    def _choose(self) -> list[_Group]:
        placed = self.placed
        chosen: dict[str, _Group] = {}
        outside = 0
        tied: set[str] = set()
        for block in placed.inventory.blocks:
            if placed.assignment[block.name] == placed.compute:
                continue
            plain = all(type(r.get()) in (torch.Tensor, nn.Parameter) for r in block.tensors)
            if not block.group or not plain or block.tied:
                outside += block.bytes
                if block.tied:
                    tied.add(block.tied)
                continue
            group = chosen.setdefault(
                block.group, _Group(block.group, placed.groups[block.group], [])
            )
            group.refs.extend(block.tensors)
        if outside:
            why = (
                "outside of layer groups"
                + (", tied" if tied else "")
                + " or of a type of their own"
            )
            self.notes.append(f"{outside / 2**20:.2f} MB are lent module by module: {why}")
        return list(chosen.values())

    def _pack(self) -> None:
        """Bring each group's tensors together, a slab a device; the stored tensors become views of it."""
        with torch.inference_mode(False), torch.no_grad():
            for group in self._groups:
                by_device: dict[torch.device, list[TensorRef]] = defaultdict(list)
                for ref in group.refs:
                    by_device[ref.get().device].append(ref)
                group.refs = [ref for refs in by_device.values() for ref in refs]
                for device, refs in by_device.items():
                    self._pack_slab(group, device, refs)

    def _pack_slab(self, group: _Group, device: torch.device, refs: list[TensorRef]) -> None:
        size = sum(_aligned(ref.get().nbytes) for ref in refs)
        slab = self._allocate(device, size)
        offset = 0
        for ref in refs:
            tensor = ref.get()
            view = _view(slab, offset, tensor)
            view.copy_(tensor)
            group.stored.append(_as(tensor, view))
            offset += _aligned(tensor.nbytes)
        self.placed.commit(list(zip(refs, group.stored[-len(refs) :], strict=True)))
        group.slabs.append(_Slab(slab, group.bytes, size))
        group.bytes += size

    def _allocate(self, device: torch.device, size: int) -> torch.Tensor:
        if device.type == "cpu" and self._streams.module is not None:
            try:
                return torch.empty(size, dtype=torch.uint8, pin_memory=True)
            except RuntimeError as error:
                note = f"host memory could not be pinned ({error}): copies from it are slower"
                if not any(n.startswith("host memory could not be pinned") for n in self.notes):
                    self.notes.append(note)
        return torch.empty(size, dtype=torch.uint8, device=device)

    def _make_slots(self, slots: int) -> None:
        self.slot_bytes = max(group.bytes for group in self._groups)
        with torch.inference_mode(False), torch.no_grad():
            for _ in range(min(slots, len(self._groups))):
                self._buffers.append(
                    torch.empty(
                        self.slot_bytes, dtype=torch.uint8, device=self.placed.compute_device
                    )
                )
            while len(self._buffers) < slots:  # never more slots than groups
                self._buffers.append(self._buffers[-1])
        for group in self._groups:
            for buffer in self._buffers:
                offset, views = 0, []
                for tensor in group.stored:
                    views.append(_as(tensor, _view(buffer, offset, tensor), lent=True))
                    offset += _aligned(tensor.nbytes)
                group.views.append(views)

    def _attach(self) -> None:
        placed = self.placed
        names = {id(g.module): g for g in self._groups}
        inside = {id(ref.module) for g in self._groups for ref in g.refs}
        placed.detach_hooks()
        placed.attach_hooks(
            skip={b.name for b in placed.inventory.blocks if id(b.module) in inside}
        )
        self._handles.append(placed.model.register_forward_pre_hook(self._begin))
        for group in names.values():
            index = self._groups.index(group)
            self._handles += [
                group.module.register_forward_pre_hook(self._enter(index), prepend=True),
                group.module.register_forward_hook(self._leave(index), always_call=True),
            ]
        placed.on_unload(lambda _: self._close())

    def _begin(self, *_: Any) -> None:
        if any(group.depth for group in self._groups):  # the last run was interrupted
            self.recover()
        self._scheduler.begin_step()

    def recover(self) -> None:
        """Put the stored tensors back where a run was cut off by what torch's hooks do not see (KeyboardInterrupt).

        Done by itself before the next run; to be called only while the model does not run.
        """
        for group in self._groups:
            if group.depth:
                group.depth = 0
                self._put_back(group)
        self._scheduler.reset()

    def _put_back(self, group: _Group) -> None:
        for ref, stored in zip(group.refs, group.stored, strict=True):
            ref.table[ref.name] = stored
        self._refresh(group)

    def _enter(self, index: int) -> Any:
        group = self._groups[index]

        def hook(*_: Any) -> None:
            group.depth += 1
            if group.depth > 1:
                return
            try:
                slot = self._scheduler.acquire(index)
            except BaseException:
                group.depth = 0
                self._scheduler.reset()
                raise
            for ref, view in zip(group.refs, group.views[slot], strict=True):
                ref.table[ref.name] = view
            self._refresh(group)

        return hook

    def _leave(self, index: int) -> Any:
        group = self._groups[index]

        def hook(*_: Any) -> None:
            if group.depth == 0:
                return
            group.depth -= 1
            if group.depth:
                return
            self._put_back(group)
            self._scheduler.release(index)

        return hook

    def _refresh(self, group: _Group) -> None:
        for module in {ref.module for ref in group.refs}:
            refresh_flat_weights(module)

    # What the scheduler asks for; see its header for the ordering each must keep.

    def _start_copy(self, index: int, slot: int) -> None:
        group, buffer, streams = self._groups[index], self._buffers[slot], self._streams
        if streams.module is None:
            self._copy(group, buffer)
            return
        with streams.module.stream(streams.copy):
            streams.copy.wait_event(streams.used[slot])
            self._copy(group, buffer)
            streams.ready[slot].record(streams.copy)

    def _copy(self, group: _Group, buffer: torch.Tensor) -> None:
        with torch.no_grad():
            for slab in group.slabs:
                buffer[slab.offset : slab.offset + slab.bytes].copy_(slab.data, non_blocking=True)
        self.bytes_copied += group.bytes

    def _await_copy(self, slot: int) -> None:
        if self._streams.module is not None:
            self._streams.compute().wait_event(self._streams.ready[slot])

    def _mark_used(self, slot: int) -> None:
        if self._streams.module is not None:
            self._streams.used[slot].record(self._streams.compute())

    def _drain(self) -> None:
        if self._streams.module is not None:
            self._streams.copy.synchronize()
            self._streams.compute().synchronize()

    def _close(self) -> None:
        if self._handles:
            self.recover()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._buffers.clear()
        for group in self._groups:
            group.views.clear()

    def detach(self) -> None:
        """Give the slots back and let the placed model lend its weights module by module again."""
        if not self._handles:
            return
        self._close()
        self.placed.detach_hooks()
        self.placed.attach_hooks()


def _alive(reference: weakref.ref[StreamedExecutor]) -> StreamedExecutor:
    executor = reference()
    assert executor is not None, "the scheduler is called by its executor only"
    return executor


def _view(buffer: torch.Tensor, offset: int, like: torch.Tensor) -> torch.Tensor:
    """Return the bytes of `buffer` from `offset` on, with the type and shape of `like`, contiguous."""
    return buffer[offset : offset + like.nbytes].view(like.dtype).view(like.shape)


def _as(source: torch.Tensor, data: torch.Tensor, lent: bool = False) -> torch.Tensor:
    """Give `data` what `source` is besides its bytes: a parameter with its attributes, or a plain tensor."""
    if not isinstance(source, nn.Parameter):
        return data
    result = nn.Parameter(data, requires_grad=source.requires_grad and not lent)
    result.__dict__.update(source.__dict__)
    return result
