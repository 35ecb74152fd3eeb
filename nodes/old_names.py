# SPDX-License-Identifier: Apache-2.0
"""The modules that scripts import from ComfyUI-MultiGPU, under their names in this pack.

    from .model_management_mgpu import force_full_system_cleanup      # <pack>.model_management_mgpu
    from .device_utils import comfyui_memory_load                     # <pack>.device_utils

Percentages are percentages there, fractions in our own modules. What was a step of the predecessor's own loading, and
never an interface, is not here.
"""

from __future__ import annotations

import sys
import types
from typing import Any

import comfy.model_management as mm

from distorch import caches

from ..patches.ejecting import cleanup
from ..patches.seams import devices


def check_cpu_memory_threshold(threshold_percent: float | None = None) -> bool:
    """Ask for a reset of the executor's caches if the host is fuller than that (0 to 100) and no prompt runs."""
    share = None if threshold_percent is None else threshold_percent / 100
    return cleanup.check_cpu_memory_threshold(share)


def get_device_list() -> list[str]:
    """The devices that ComfyUI has, "cpu" first; a new list each time."""
    return devices.names()


def is_accelerator_available() -> bool:
    """Whether there is a device besides the cpu."""
    return len(devices.names()) > 1


def is_device_compatible(device_string: str) -> bool:
    """Whether ComfyUI has this device."""
    return device_string in devices.names()


def get_device_type(device_string: str) -> str:
    """ "cuda" of "cuda:0"."""
    return device_string.partition(":")[0]


def parse_device_string(device_string: str) -> tuple[str, int | None]:
    """("cuda", 0) of "cuda:0"; the index is None where there is none."""
    kind, colon, index = device_string.partition(":")
    return kind, int(index) if colon else None


def soft_empty_cache_multigpu() -> caches.CacheReport:
    """Clear the allocator's cache of every device in use; the current device stays current."""
    return caches.clear_caches()


def soft_empty_cache_distorch2_patched(force: bool = False) -> Any:
    """ComfyUI's `soft_empty_cache`, which this pack extends."""
    return mm.soft_empty_cache(force)


def unload_all_models() -> None:
    """ComfyUI's `unload_all_models`, which this pack makes selective."""
    mm.unload_all_models()


MODULES: dict[str, dict[str, Any]] = {
    "model_management_mgpu": {
        "check_cpu_memory_threshold": check_cpu_memory_threshold,
        "force_full_system_cleanup": cleanup.force_full_system_cleanup,
        "multigpu_memory_log": cleanup.multigpu_memory_log,
        "trigger_executor_cache_reset": cleanup.trigger_executor_cache_reset,
        "_mgpu_patched_unload_all_models": unload_all_models,
    },
    "device_utils": {
        "comfyui_memory_load": cleanup.comfyui_memory_load,
        "get_device_list": get_device_list,
        "get_device_type": get_device_type,
        "is_accelerator_available": is_accelerator_available,
        "is_device_compatible": is_device_compatible,
        "parse_device_string": parse_device_string,
        "soft_empty_cache_distorch2_patched": soft_empty_cache_distorch2_patched,
        "soft_empty_cache_multigpu": soft_empty_cache_multigpu,
    },
}


def install(package: str) -> None:
    """Make `package.model_management_mgpu` and `package.device_utils` importable; a second call does nothing."""
    for name, functions in MODULES.items():
        full = f"{package}.{name}"
        if full in sys.modules:
            continue
        module = types.ModuleType(full, f"Names of ComfyUI-MultiGPU; see {__name__}.")
        module.__dict__.update(functions, logger=cleanup.log, mm=mm)
        sys.modules[full] = module
        setattr(sys.modules[package], name, module)


def uninstall(package: str) -> None:
    """Take them away."""
    for name in MODULES:
        if sys.modules.pop(f"{package}.{name}", None) is not None:
            delattr(sys.modules[package], name)
