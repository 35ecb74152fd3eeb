# SPDX-License-Identifier: Apache-2.0
"""What a `torch.nn.Module` consists of: blocks, their bytes, the layer groups they belong to, and what must stay.

A *block* is a module that owns parameters or buffers directly, also one that has children. A *layer group* is a
repeated module (one transformer layer), found by name as for files (`distorch.allocation.group_names`). Bytes count each
tensor once, at the first block that holds it; blocks that share one carry the same `tied` key, because they can only
move together. Works on graphs of any depth and with modules that are reached by several paths.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import nn

from distorch.allocation import Block, group_names
from distorch.group_costs import block_costs, planned_groups
from distorch.parts import can_rebuild, is_composite, parts_of, tensor_bytes

# See `tensor_key`.
TensorKey = tuple[Any, ...]

# A block's name and module -> why it has to stay on the compute device, or "" when it may go anywhere.
Pin = Callable[[str, nn.Module], str]

# Names of blocks -> for each the name of the module that is its layer group, or "".
Grouping = Callable[[Sequence[str]], Sequence[str]]

_HEAD_NAMES = re.compile(
    r"(^|\.)(shared|wte|wpe|embed_tokens|embed_positions|embeddings|token_embedding|position_embedding|"
    r"word_embeddings|position_embeddings|token_type_embeddings)$"
)


class TensorPlace(Protocol):
    """What names a tensor: TensorRef, and what an engine has."""

    @property
    def module(self) -> nn.Module:
        """The module that holds it."""

    @property
    def name(self) -> str:
        """Its name there."""

    @property
    def table(self) -> dict[str, Any]:
        """The module's dictionary that holds it."""

    def get(self) -> torch.Tensor:
        """Return it as it is now."""


class TensorRef(NamedTuple):
    """One parameter or buffer: where it hangs, not the tensor itself."""

    module: nn.Module
    name: str
    kind: Literal["parameter", "buffer"]
    qualified: str

    @property
    def table(self) -> dict[str, Any]:
        """The dictionary of the module that holds the tensor."""
        return self.module._parameters if self.kind == "parameter" else self.module._buffers

    def get(self) -> torch.Tensor:
        """Return the tensor as it is now."""
        tensor: torch.Tensor = self.table[self.name]
        return tensor


class ModelBlock(NamedTuple):
    """A module with tensors of its own. `bytes` counts tensors that no earlier block holds."""

    name: str
    module: nn.Module
    tensors: tuple[TensorRef, ...]
    bytes: int
    group: str = ""
    pinned: str = ""
    tied: str = ""
    patched: bool = False


@dataclass(frozen=True)
class Inventory:
    """The blocks of a model in the order of its modules, and its layer groups by name."""

    blocks: tuple[ModelBlock, ...]
    groups: dict[str, nn.Module] = field(default_factory=dict)
    # `tensor_key` of every tensor, in the order of the blocks, when the inventory was made
    keys: tuple[TensorKey, ...] = field(default=(), repr=False)

    @property
    def total_bytes(self) -> int:
        """Bytes of all blocks, each tensor once."""
        return sum(block.bytes for block in self.blocks)

    def allocation_blocks(
        self, seconds: Mapping[str, float] | None = None, often: Collection[str] = ()
    ) -> list[Any]:
        """Return the planner's blocks (`distorch.allocation.Block`).

        Args:
            seconds: what the layer groups compute in a step, as measured (`distorch.StreamedExecutor.group_seconds`);
                those that are spread are then spaced by it.
            often: groups that are come back to within a step (`distorch.StreamedExecutor.often`).
        """
        groups = planned_groups([b.group for b in self.blocks], often)
        sizes = [(group, b.bytes) for b, group in zip(self.blocks, groups, strict=True)]
        costs = block_costs(sizes, seconds or {})
        return [
            Block(
                name=b.name,
                bytes=b.bytes,
                group=group,
                pinned=b.pinned,
                tied=b.tied,
                patched=b.patched,
                cost=cost,
            )
            for b, group, cost in zip(self.blocks, groups, costs, strict=True)
        ]


def walk(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield (name, module) for each module once, parents first, without recursion. The model's own name is ""."""
    seen: set[int] = set()
    stack: list[tuple[str, nn.Module]] = [("", model)]
    while stack:
        name, module = stack.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        yield name, module
        prefix = f"{name}." if name else ""
        children = [(prefix + n, c) for n, c in module._modules.items() if c is not None]
        stack.extend(reversed(children))


def tensor_key(tensor: torch.Tensor) -> TensorKey:
    """Return what two tensors have in common that are one: the same elements of the same memory.

    Views of other parts of that memory are tensors of their own: each is copied, and counted, by itself. (The engine
    keeps the tensors of a layer group in one slab, a checkpoint may keep all in one storage.) A tensor that is made of
    others has no memory of its own, whatever its storage says: theirs counts.
    """
    if is_composite(tensor) and hasattr(tensor, "__tensor_flatten__"):
        return "parts", *map(tensor_key, parts_of(tensor))
    try:
        own = not is_composite(tensor) or tensor.untyped_storage().nbytes() > 0
        address = tensor.data_ptr() if own else 0
        if address:
            return tensor.device, address, tensor.shape, tensor.stride(), tensor.dtype
    except (RuntimeError, NotImplementedError):
        pass  # a wrapper without storage of its own, or a sparse tensor
    return "object", id(tensor)


def stay_reason(name: str, module: nn.Module) -> str:
    """Say why a module has to stay on the compute device; "" when it may go anywhere.

    Heads of text encoders, whose weight code reads directly, and tensor classes of which not all can be moved.
    """
    if isinstance(module, nn.Embedding) or _HEAD_NAMES.search(name):
        return "embedding: its weight is read to choose the device"
    for tensor in (*module._parameters.values(), *module._buffers.values()):
        if tensor is not None and not can_rebuild(tensor):
            return f"{type(tensor).__name__} does not say how it is made from its bytes"
    return ""


def _device_tellers(model: nn.Module) -> set[nn.Module]:
    """Return the modules that hold the first parameter of one that says by it where it is (`model.device`).

    The classes of transformers and diffusers do, and send their inputs there.
    """
    tellers = set()
    for _, module in walk(model):
        if isinstance(getattr(type(module), "device", None), property):
            owners = (
                m for _, m in walk(module) if any(p is not None for p in m._parameters.values())
            )
            tellers.add(next(owners, module))
    return tellers


class _Ties:
    """Unites blocks that share a tensor."""

    def __init__(self) -> None:
        self.first: dict[TensorKey, str] = {}
        self.parent: dict[str, str] = {}

    def find(self, name: str) -> str:
        while self.parent.get(name, name) != name:
            name = self.parent[name]
        return name

    def note(self, key: TensorKey, block: str) -> bool:
        """Return whether the tensor is new; if not, tie its first holder and this block."""
        if key not in self.first:
            self.first[key] = block
            return True
        a, b = self.find(self.first[key]), self.find(block)
        self.parent.setdefault(a, a)
        self.parent[b] = a
        return False


def _tensors(name: str, module: nn.Module) -> list[TensorRef]:
    prefix = f"{name}." if name else ""
    refs = []
    for key, parameter in module._parameters.items():
        if parameter is not None:
            refs.append(TensorRef(module, key, "parameter", prefix + key))
    for key, buffer in module._buffers.items():
        if isinstance(buffer, torch.Tensor):
            refs.append(TensorRef(module, key, "buffer", prefix + key))
    return refs


def inventory(
    model: nn.Module,
    *,
    patches: Any = None,
    pin: Pin | None = stay_reason,
    groups: Grouping = group_names,
) -> Inventory:
    """List the blocks of `model`.

    Args:
        model: any module; nothing in it is changed.
        patches: what has qualified parameter names as keys; their blocks are marked `patched`.
        pin: says for a block why it must stay on the compute device; None lets every block go anywhere.
        groups: the layer group of each block; by default the outermost repeated module of its name.

    Raises:
        ValueError: a tensor has no bytes that could be placed (on the device `meta`, or a lazy module's), or a group is
            no module.
    """
    patched = set(patches or ())
    tellers = _device_tellers(model) if pin else set()
    ties = _Ties()
    found: list[tuple[str, nn.Module, tuple[TensorRef, ...], int, str, bool]] = []
    keys: list[TensorKey] = []
    modules: dict[str, nn.Module] = {}
    for name, module in walk(model):
        modules[name] = module
        refs = _tensors(name, module)
        if not refs:
            continue
        label = name or "(root)"
        size = 0
        for ref in refs:
            tensor = ref.get()
            if isinstance(tensor, nn.parameter.UninitializedTensorMixin):
                raise ValueError(
                    f"{ref.qualified} has no shape yet: run the lazy module once before placing it"
                )
            if tensor.is_meta:
                raise ValueError(
                    f"{ref.qualified} is on the device 'meta': load its weights before placing it"
                )
            keys.append(key := tensor_key(tensor))
            if ties.note(key, label):
                size += tensor_bytes(tensor)
        reason = pin(label, module) if pin else ""
        if not reason and module in tellers:
            reason = "its first parameter is read to choose the device"
        hit = any(ref.qualified in patched for ref in refs)
        found.append((label, module, tuple(refs), size, reason, hit))
    tied_names = {ties.find(name) for name in ties.parent}
    names = list(groups([label for label, *_ in found]))
    unknown = [name for name in names if name and name not in modules]
    if unknown or len(names) != len(found):
        raise ValueError(
            f"groups: {unknown[0]!r} is no module" if unknown else "groups: one a block"
        )
    blocks = []
    for (label, module, owned, size, reason, hit), group in zip(found, names, strict=True):
        root = ties.find(label)
        tied = root if root in tied_names else ""
        blocks.append(ModelBlock(label, module, owned, size, group, reason, tied, hit))
    named = {group: modules[group] for group in dict.fromkeys(names) if group}
    return Inventory(tuple(blocks), named, tuple(keys))
