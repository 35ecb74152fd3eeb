# SPDX-License-Identifier: Apache-2.0
"""Simulated devices in the place of ComfyUI's GPUs: the functions a GPU back end would answer."""

from __future__ import annotations

import comfy.model_management as mm
import distorch_sim
import psutil
import torch


def _is_sim(device: object) -> bool:
    return getattr(device, "type", None) == "sim"


def _index(device: torch.device) -> int:
    return torch.sim.current_device() if device.index is None else device.index


def get_torch_device() -> torch.device:
    return torch.device("sim", torch.sim.current_device())


def get_all_torch_devices(exclude_current: bool = False) -> list[torch.device]:
    all_devices = [torch.device("sim", i) for i in range(torch.sim.device_count())]
    return [d for d in all_devices if not (exclude_current and d == get_torch_device())]


def get_free_memory(dev: torch.device | None = None, torch_free_too: bool = False):
    dev = get_torch_device() if dev is None else dev
    free = (
        torch.sim.mem_get_info(_index(dev))[0]
        if _is_sim(dev)
        else psutil.virtual_memory().available
    )
    return (free, 0) if torch_free_too else free


def get_total_memory(dev: torch.device | None = None, torch_total_too: bool = False):
    dev = get_torch_device() if dev is None else dev
    total = (
        torch.sim.mem_get_info(_index(dev))[1] if _is_sim(dev) else psutil.virtual_memory().total
    )
    return (total, total) if torch_total_too else total


def _no(*_args: object, **_kwargs: object) -> bool:
    return False


def install(capacities: list[int]) -> None:
    """Registers the devices and answers for them. float32 everywhere: results can be compared."""
    distorch_sim.install(capacities=capacities)
    mm.cpu_state = mm.CPUState.GPU
    mm.vram_state = mm.VRAMState.NORMAL_VRAM
    mm.total_vram = capacities[0] / 2**20
    mm.get_torch_device = get_torch_device
    if hasattr(mm, "get_all_torch_devices"):
        mm.get_all_torch_devices = get_all_torch_devices
    mm.get_free_memory = get_free_memory
    mm.get_total_memory = get_total_memory
    mm.get_torch_device_name = str
    if hasattr(mm, "synchronize"):
        mm.synchronize = lambda: None
    for name in dir(mm):
        if name.startswith(
            ("is_nvidia", "is_amd", "is_intel", "is_ascend", "is_mlu", "is_ixuca")
        ) or (name.startswith(("should_use_", "supports_fp8", "supports_nvfp4", "supports_mxfp8"))):
            setattr(mm, name, _no)
    mm.device_supports_non_blocking = _no
