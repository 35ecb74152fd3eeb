# SPDX-License-Identifier: Apache-2.0
"""Names and kinds of devices, and the device module (`torch.cuda`, …) that answers for each kind. Initialises no device."""

from __future__ import annotations

import functools
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from distorch import _load

if TYPE_CHECKING:
    import torch

# Kinds that torch or an add-on of it may bring. Others are found through the PrivateUse1 name.
KNOWN_KINDS = ("cuda", "xpu", "npu", "mlu", "hpu", "musa", "mps")
# The device module of a kind for which torch has none: where its add-on is loaded.
_ADD_ONS = {"privateuseone": "torch_directml"}


@functools.cache
def torch_kind(kind: str) -> str:
    """Return what torch calls devices of a kind that users know by its vendor's name: "cuda" for "corex"."""
    return _load.core().torch_kind(kind)


def parse_name(device: str) -> tuple[str, int]:
    """Split a device name; an accelerator without an index is index 0. Raises ValueError for what is no name.

    The kind is torch's: "directml:1" is ("privateuseone", 1).
    """
    kind, colon, index = device.strip().lower().partition(":")
    if not kind.isidentifier() or (colon and not index.isdigit()):
        raise ValueError(
            f"{device!r} is no device name; expected a kind and an index, such as 'cuda:0', or 'cpu'"
        )
    return torch_kind(kind), int(index or 0)


def canonical_name(kind: str, index: int) -> str:
    """Return "kind:index", or the bare kind where there is only one."""
    return kind if kind in ("cpu", "mps", "meta") else f"{kind}:{index}"


@functools.lru_cache(1024)
def name_of(device: torch.device | str) -> str:
    """Return a device's canonical name. Raises ValueError for a string that is no name.

    >>> name_of("CUDA")
    'cuda:0'
    """
    if isinstance(device, str):
        return canonical_name(*parse_name(device))
    return canonical_name(device.type, device.index or 0)


def device_module(kind: str) -> ModuleType | None:
    """Return `torch.<kind>`, or the add-on that stands for it; None where there is no such module."""
    import torch

    if kind == "cpu":
        return None
    module = getattr(torch, kind, None) or sys.modules.get(_ADD_ONS.get(kind, ""))
    return module if isinstance(module, ModuleType) else None


def accelerator_kinds() -> list[str]:
    """Return the kinds of accelerator that this torch knows, whether or not a device is there."""
    import torch

    kinds = [kind for kind in KNOWN_KINDS if device_module(kind) is not None]
    private = torch._C._get_privateuse1_backend_name()
    if private not in kinds and device_module(private) is not None:
        kinds.append(private)
    return kinds


def call(module: ModuleType | None, name: str, *args: Any) -> Any:
    """Call a function of a device module; None where there is no such function or it cannot answer."""
    function = getattr(module, name, None)
    if function is None:
        return None
    try:
        return function(*args)
    except (RuntimeError, AssertionError, NotImplementedError, AttributeError, TypeError, OSError):
        return None


def device_count(kind: str) -> int:
    """Return how many devices of a kind there are, without initialising one."""
    if kind == "cpu":
        return 1
    module = device_module(kind)
    if module is None:
        return 0
    if kind == "mps":
        import torch

        return int(torch.backends.mps.is_available())
    return int(call(module, "device_count") or 0)


def device_names() -> list[str]:
    """Return the names of all devices, accelerators first, "cpu" last."""
    kinds = [*accelerator_kinds(), "cpu"]
    return [canonical_name(kind, i) for kind in kinds for i in range(device_count(kind))]


def is_initialized(kind: str) -> bool:
    """Return whether this process has used devices of this kind."""
    module = device_module(kind)
    if module is None:
        return kind == "cpu"
    answer = call(module, "is_initialized")
    return True if answer is None else bool(answer)


def has_context(kind: str, index: int) -> bool:
    """Return whether this device (not only its kind) has been used: some backends make a context for each."""
    if not is_initialized(kind):
        return False
    if kind != "cuda":
        return True
    import torch

    return bool(torch.cuda.memory_reserved(index) > 0 or torch.cuda.current_device() == index)
