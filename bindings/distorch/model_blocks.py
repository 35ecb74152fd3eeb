# SPDX-License-Identifier: Apache-2.0
"""What a `torch.nn.Module` consists of: blocks, their bytes, the layer groups they belong to, and what must stay.

A *block* is a module that owns parameters or buffers directly, also one that has children. A *layer group* is a
repeated module (one transformer layer), found by name as for files (`distorch.allocation.group_names`). Bytes count each
tensor once, at the first block that holds it; blocks that share one carry the same `tied` key, because they can only
move together. Works on graphs of any depth and with modules that are reached by several paths.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import nn

from distorch.allocation import Block, group_names
from distorch.devices import name_of
from distorch.group_costs import block_costs, planned_groups
from distorch.parts import PLAIN_TYPES, can_rebuild, tensor_bytes
from distorch.same_tensors import FirstTensors

# A block's name and module -> why it has to stay on the compute device, or "" when it may go anywhere.
Pin = Callable[[str, nn.Module], str]

# Names of blocks -> for each the name of the module that is its layer group, or "".
Grouping = Callable[[Sequence[str]], Sequence[str]]

_HEAD_NAMES = frozenset(
    ("shared", "wte", "wpe", "embed_tokens", "embed_positions", "embeddings", "token_embedding",
     "position_embedding", "word_embeddings", "position_embeddings", "token_type_embeddings")
)  # fmt: skip


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
        module = self.module
        table: Any = module._parameters if self.kind == "parameter" else module._buffers
        tensor: torch.Tensor = table[self.name]
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
    # Of every tensor, in the order of the blocks: the index of the first that was the same when the inventory was made
    # (`same_tensors`). And where the bytes were then, each tensor once.
    same: tuple[int, ...] = field(default=(), repr=False)
    held: dict[str, int] = field(default_factory=dict, repr=False)

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
            Block(b.name, b.bytes, group, b.pinned, b.tied, b.patched, "", cost)
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
        if not module._modules:
            continue
        prefix = f"{name}." if name else ""
        children = [(prefix + n, c) for n, c in module._modules.items() if c is not None]
        stack.extend(reversed(children))


def modules_of(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the modules of `walk`, in its order."""
    seen: set[nn.Module] = set()
    stack = [model]
    while stack:
        module = stack.pop()
        if module in seen:
            continue
        seen.add(module)
        yield module
        if module._modules:
            stack += [c for c in reversed(module._modules.values()) if c is not None]


def stay_reason(name: str, module: nn.Module) -> str:
    """Say why a module has to stay on the compute device; "" when it may go anywhere.

    Heads of text encoders, whose weight code reads directly, and tensor classes of which not all can be moved.
    """
    if isinstance(module, nn.Embedding) or name.rpartition(".")[2] in _HEAD_NAMES:
        return "embedding: its weight is read to choose the device"
    for tensor in (*module._parameters.values(), *module._buffers.values()):
        if tensor is not None and type(tensor) not in PLAIN_TYPES and not can_rebuild(tensor):
            return f"{type(tensor).__name__} does not say how it is made from its bytes"
    return ""


def _device_tellers(modules: Iterable[nn.Module]) -> set[nn.Module]:
    """Return the modules that hold the first parameter of one of these that says by it where it is (`model.device`).

    The classes of transformers and diffusers do, and send their inputs there.
    """
    tellers = set()
    classes: dict[type, bool] = {}
    for module in modules:
        kind = type(module)
        if kind not in classes:
            classes[kind] = isinstance(getattr(kind, "device", None), property)
        if classes[kind]:
            owners = (
                m for m in modules_of(module) if any(p is not None for p in m._parameters.values())
            )
            tellers.add(next(owners, module))
    return tellers


class _Ties:
    """Unites blocks that share a tensor."""

    def __init__(self) -> None:
        self.parent: dict[str, str] = {}

    def find(self, name: str) -> str:
        while self.parent.get(name, name) != name:
            name = self.parent[name]
        return name

    def unite(self, first: str, block: str) -> None:
        """Tie the first holder of a tensor and another."""
        a, b = self.find(first), self.find(block)
        self.parent.setdefault(a, a)
        self.parent[b] = a


def _tensors(name: str, module: nn.Module) -> list[tuple[TensorRef, torch.Tensor]]:
    prefix = f"{name}." if name else ""
    tensors: list[tuple[TensorRef, torch.Tensor]] = []
    for key, parameter in module._parameters.items():
        if parameter is not None:
            tensors.append((TensorRef(module, key, "parameter", prefix + key), parameter))
    for key, buffer in module._buffers.items():
        if isinstance(buffer, torch.Tensor):
            tensors.append((TensorRef(module, key, "buffer", prefix + key), buffer))
    return tensors


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
    named = list(walk(model))
    tellers = _device_tellers([module for _, module in named]) if pin else set()
    ties, firsts = _Ties(), FirstTensors()
    found: list[tuple[str, nn.Module, tuple[TensorRef, ...], int, str, bool]] = []
    same: list[int] = []
    owners: list[str] = []
    held: dict[torch.device, int] = defaultdict(int)
    modules = dict(named)
    for name, module in named:
        tensors = _tensors(name, module)
        if not tensors:
            continue
        label = name or "(root)"
        size = 0
        for ref, tensor in tensors:
            plain = type(tensor) in PLAIN_TYPES
            if not plain and isinstance(tensor, nn.parameter.UninitializedTensorMixin):
                raise ValueError(
                    f"{ref.qualified} has no shape yet: run the lazy module once before placing it"
                )
            if tensor.is_meta:
                raise ValueError(
                    f"{ref.qualified} is on the device 'meta': load its weights before placing it"
                )
            here = len(same)
            same.append(first := firsts.of(here, tensor))
            owners.append(label)
            if first == here:
                strided = plain and tensor.layout is torch.strided
                bytes_of = tensor.nbytes if strided else tensor_bytes(tensor)
                size += bytes_of
                held[tensor.device] += bytes_of
            else:
                ties.unite(owners[first], label)
        reason = pin(label, module) if pin else ""
        if not reason and module in tellers:
            reason = "its first parameter is read to choose the device"
        refs = tuple([ref for ref, _ in tensors])
        hit = bool(patched) and any(ref.qualified in patched for ref in refs)
        found.append((label, module, refs, size, reason, hit))
    tied_names = {ties.find(name) for name in ties.parent}
    names = list(groups([label for label, *_ in found]))
    unknown = [name for name in names if name and name not in modules]
    if unknown or len(names) != len(found):
        raise ValueError(
            f"groups: {unknown[0]!r} is no module" if unknown else "groups: one a block"
        )
    blocks = []
    for (label, module, owned, size, reason, hit), group in zip(found, names, strict=True):
        tied = root if tied_names and (root := ties.find(label)) in tied_names else ""
        blocks.append(ModelBlock(label, module, owned, size, group, reason, tied, hit))
    layers = {group: modules[group] for group in dict.fromkeys(names) if group}
    by_name = {name_of(device): size for device, size in held.items()}
    return Inventory(tuple(blocks), layers, tuple(same), by_name)
