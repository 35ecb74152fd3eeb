# SPDX-License-Identifier: Apache-2.0
"""ComfyUI's DynamicVRAM on simulated devices: stand-ins for the library it needs a GPU for.

A weight's slot is backed by a tensor on the device from its first fault until `free_memory`; host
buffers only know their size; files are mapped by Python's mmap. Pinning is off, as without CUDA.
"""

from __future__ import annotations

import ctypes
import mmap

import comfy.memory_management
import comfy.model_patcher
import comfy.ops
import comfy.pinned_memory
import comfy_aimdo.host_buffer
import comfy_aimdo.model_mmap
import comfy_aimdo.model_vbar
import comfy_aimdo.torch
import distorch_sim
import torch


class HostBuffer:
    def __init__(self, size: int, *_args: object, **_kwargs: object) -> None:
        self.size = int(size)

    def truncate(self, size: int, do_unregister: bool = True) -> None:
        self.size = int(size)


class ModelVBAR:
    """Slots of one model on one device; `(self, offset, bytes)` names a slot."""

    def __init__(self, size: int, device: int) -> None:
        self.device, self.max_size, self.offset = device, size, 0
        self.storage: dict[int, torch.Tensor] = {}
        self.generations: dict[int, int] = {}
        self.generation = 0

    def prioritize(self) -> None:
        pass

    def deprioritize(self) -> None:
        pass

    def alloc(self, num_bytes: int) -> tuple[ModelVBAR, int, int]:
        self.offset = (self.offset + 511) & ~511
        slot = (self, self.offset, int(num_bytes))
        self.offset += int(num_bytes)
        return slot

    def fault(self, offset: int, size: int) -> tuple[int, int] | None:
        if offset not in self.storage:
            try:
                self.storage[offset] = torch.empty(
                    size, dtype=torch.uint8, device=f"sim:{self.device}"
                )
            except torch.OutOfMemoryError:
                return None
            self.generation += 1
            self.generations[offset] = self.generation
        return (offset, self.generations[offset])

    def loaded_size(self) -> int:
        return sum(tensor.nbytes for tensor in self.storage.values())

    def free_memory(self, size_bytes: float) -> int:
        """Pages go as in the library, also while layers hold tensors that lie on them."""
        freed = 0
        while self.storage and freed < size_bytes:
            tensor = self.storage.pop(next(reversed(self.storage)))
            freed += tensor.nbytes
            distorch_sim.take_back(tensor.untyped_storage())
        return freed

    def set_watermark_limit(self, size_bytes: int) -> None:
        pass


class ModelMMAP:
    def __init__(self, path: str) -> None:
        with open(path, "rb") as file:  # noqa: PTH123 - the library takes str and bytes alike
            self.map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)

    def get(self) -> int:
        return ctypes.addressof(ctypes.c_uint8.from_buffer(self.map))

    def get_file_handle(self) -> None:
        return None

    def bounce(self) -> bool:
        return True


def _fault(slot: tuple) -> object:
    return slot[0].fault(slot[1], slot[2])


def _same(a: object, b: object) -> bool:
    return a is not None and a == b


def _move_first(load_list):
    """`param.data = other` refuses two device types of which one is PrivateUse1: move ahead of it."""

    def wrapper(self, for_dynamic=False, default_device=None):
        if default_device is not None:
            for module in self.model.modules():
                own = dict(module.named_parameters(recurse=False))
                if own and len(own) < sum(1 for _ in module.parameters()):
                    for name, param in own.items():
                        dtype = getattr(module, f"{name}_comfy_model_dtype", None)
                        moved = param.data.to(device=default_device, dtype=dtype)
                        setattr(module, name, torch.nn.Parameter(moved, requires_grad=False))
        return load_list(self, for_dynamic=for_dynamic, default_device=default_device)

    return wrapper


def install() -> None:
    """Switches DynamicVRAM on, as `main.py` does where a GPU supports it."""
    vbar = comfy_aimdo.model_vbar
    vbar.ModelVBAR, vbar.vbar_fault, vbar.vbar_signature_compare = ModelVBAR, _fault, _same
    vbar.vbar_unpin = lambda slot: None
    vbar.vbars_analyze = lambda device=None: 0
    vbar.vbars_reset_watermark_limits = lambda: None
    comfy_aimdo.host_buffer.HostBuffer = HostBuffer
    comfy_aimdo.model_mmap.ModelMMAP = ModelMMAP
    comfy_aimdo.control.analyze = lambda: None
    comfy_aimdo.torch.aimdo_to_tensor = lambda slot, device: slot[0].storage[slot[1]]
    comfy.pinned_memory.pin_memory = lambda *args, **kwargs: False
    comfy.pinned_memory.get_pin = lambda *args, **kwargs: None
    patcher = comfy.model_patcher.ModelPatcher
    patcher._load_list = _move_first(patcher._load_list)
    comfy.model_patcher.CoreModelPatcher = comfy.model_patcher.ModelPatcherDynamic
    comfy.memory_management.aimdo_enabled = True
