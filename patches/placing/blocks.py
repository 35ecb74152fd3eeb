# SPDX-License-Identifier: Apache-2.0
"""The blocks of a ComfyUI model: what may lie on another device, what may not and why.

A block is a leaf module whose weights ComfyUI's own casting fetches from wherever they are (it has
`comfy_cast_weights`). Only its `weight` and `bias` travel. All else stays on the compute device:
layers without the cast, parameters beside submodules, buffers, embeddings (text encoders read
the device from them), and weights so small that a copy costs more than it saves.
Nothing here imports ComfyUI.
"""

from __future__ import annotations

import dataclasses
import weakref

import torch

from distorch.parts import can_rebuild, device_names, is_composite, parts_of, plain_bytes
from distorch.slabs import as_parameter

#: Bytes below which a block stays: ComfyUI's DynamicVRAM draws the same line.
SMALL = 16 * 1024
TRAVELLERS = ("weight", "bias")


class BlockTensor:
    """One tensor of a module: a parameter or a buffer, and the host copy it was found with.

    The module is held weakly, so that a record on the model makes no cycle with it.
    """

    __slots__ = ("_module", "buffer", "dtype", "key", "name", "original", "wanted")

    def __init__(self, module: torch.nn.Module, name: str, key: str, *, buffer: bool) -> None:
        self._module = weakref.ref(module)
        self.name, self.key, self.buffer = name, key, buffer
        self.original: torch.Tensor = self.current
        self.wanted: torch.dtype | None = getattr(module, f"{name}_comfy_model_dtype", None)
        self.dtype = None if is_composite(self.original) else self.wanted

    @property
    def module(self) -> torch.nn.Module:
        module = self._module()
        assert module is not None, "the model is gone"
        return module

    @property
    def current(self) -> torch.Tensor:
        """The tensor that the module holds now."""
        module = self.module
        tensor = (module._buffers if self.buffer else module._parameters)[self.name]
        assert tensor is not None
        return tensor

    @property
    def sizes(self) -> list[int]:
        """Bytes of the plain tensors it is made of, in the dtype the model wants, whatever the file's is."""
        if self.dtype is None:
            return [plain_bytes(part) for part in parts_of(self.original)]
        return [self.original.numel() * self.dtype.itemsize]

    @property
    def bytes(self) -> int:
        """The sum of `sizes`."""
        return sum(self.sizes)

    @property
    def needs_cast(self) -> bool:
        """Whether the layer must cast because the tensor is kept as the file has it."""
        return self.dtype is None and self.wanted not in (None, self.original.dtype)

    def put(self, tensor: torch.Tensor) -> None:
        """Makes the module hold `tensor`; a pointer change."""
        module = self.module
        if self.buffer:
            module._buffers[self.name] = tensor
            return
        module._parameters[self.name] = as_parameter(tensor)

    def host_copy_on(self, device: torch.device) -> torch.Tensor:
        """The original on a device, in the dtype the model wants; itself where nothing changes."""
        source = self.original
        if self.dtype in (None, source.dtype):
            return source if source.device == device else source.to(device=device)
        return source.to(device=device, dtype=self.dtype)


@dataclasses.dataclass
class Block:
    """A module's tensors. `pinned` is the reason why it stays on the compute device, or ""."""

    name: str
    tensors: list[BlockTensor]
    pinned: str = ""
    tied: str = ""
    castable: bool = False

    @property
    def bytes(self) -> int:
        return sum(held.bytes for held in self.tensors)

    def devices(self) -> set[str]:
        """Names of the devices where its tensors are now."""
        return {name for held in self.tensors for name in device_names(held.current)}


def streamable(block: Block) -> bool:
    """Whether the engine can bring the block: tensors that can be made from their bytes, of a layer that casts."""
    return block.castable and not block.tied and all(can_rebuild(c.current) for c in block.tensors)


def find_blocks(model: torch.nn.Module) -> list[Block]:
    """Every tensor of the model exactly once, in the order of its modules."""
    blocks: list[Block] = []
    owners: dict[int, Block] = {}
    for name, module in model.named_modules():
        parameters = [n for n, p in module._parameters.items() if p is not None]
        buffers = [n for n, b in module._buffers.items() if b is not None]
        leaf = not any(True for c in module.children() for _ in c.parameters())
        castable = hasattr(module, "comfy_cast_weights") and leaf
        travel = [n for n in parameters if castable and n in TRAVELLERS]
        stay = [n for n in parameters if n not in travel]
        for names, reason in ((travel, ""), (stay, _why(leaf, castable))):
            tensors = [_tensor(module, name, n, buffer=False) for n in names]
            if tensors:
                suffix = " (own)" if reason and (travel or not leaf) else ""
                block = Block((name or "model") + suffix, tensors, reason, castable=not reason)
                _pin_or_tie(block, module, owners)
                blocks.append(block)
        if buffers:
            tensors = [_tensor(module, name, n, buffer=True) for n in buffers]
            blocks.append(Block(f"{name or 'model'} (buffers)", tensors, "buffer"))
    _pin_tied(blocks)
    return blocks


def _tensor(module: torch.nn.Module, path: str, name: str, *, buffer: bool) -> BlockTensor:
    return BlockTensor(module, name, f"{path}.{name}" if path else name, buffer=buffer)


def _why(leaf: bool, castable: bool) -> str:
    if not leaf:
        return "parameter beside submodules"
    return "not moved by the layer's cast" if castable else "the layer does not cast its weights"


def _pin_or_tie(block: Block, module: torch.nn.Module, owners: dict[int, Block]) -> None:
    if not block.pinned and isinstance(module, torch.nn.Embedding):
        block.pinned = "embedding: its device decides where the inputs go"
    elif not block.pinned and block.bytes < SMALL:
        block.pinned = "small"
        for held in block.tensors:
            held.dtype = None  # as DynamicVRAM does: kept as the file has it, cast at use
    for held in block.tensors:
        other = owners.setdefault(id(held.original), block)
        if other is not block:
            other.tied = other.tied or other.name
            block.tied = other.tied


def _pin_tied(blocks: list[Block]) -> None:
    """Blocks that share a tensor stay together: one that must stay keeps the others."""
    reasons = {b.tied: b.pinned for b in blocks if b.tied and b.pinned}
    for block in blocks:
        if block.tied and not block.pinned and block.tied in reasons:
            block.pinned = f"shares a tensor with {block.tied}"
