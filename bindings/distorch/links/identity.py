# SPDX-License-Identifier: Apache-2.0
"""What identifies a device and its connections from one process to the next."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from distorch._load import core
from distorch.devices import by_cuda_index, canonical_name, is_initialized, parse_name


@dataclass(frozen=True)
class Machine:
    """What is the same for all processes: NVML's devices by CUDA's index, NVLink pairs, the driver's version."""

    nvml: dict[int, Any]
    nvlink_pairs: frozenset[tuple[int, int]]  # NVML's indices, the smaller first
    driver: str


def machine() -> Machine:
    """Return it, asked once and again when the process first uses CUDA: devices do not come and go."""
    return _machine(is_initialized("cuda"))


@functools.cache
def _machine(cuda_used: bool) -> Machine:
    del cuda_used  # decides how well the order of CUDA's devices is known
    return read_machine()


def forget() -> None:
    """Ask again the next time: links of GPUs that were idle show another speed."""
    _machine.cache_clear()


def read_machine() -> Machine:
    """Ask NVML; everything is empty without a driver."""
    devices, driver, _ = core().nvml_devices()
    pairs = core().nvml_nvlink_pairs() if devices else ()
    return Machine(by_cuda_index(devices), frozenset((int(a), int(b)) for a, b in pairs), driver)


def torch_version() -> str:
    """Return torch's version with the CUDA it was built for, as in "2.13.0+cu130"."""
    import torch

    return str(torch.__version__)


def key_of(device: str) -> str:
    """Return what names `device` in the cache: its UUID, or its canonical name where NVML does not know it; "cpu".

    Asks no device for its name: that would initialise it.
    """
    kind, index = parse_name(device)
    if kind == "cuda" and index in machine().nvml:
        return str(machine().nvml[index].uuid)
    return canonical_name(kind, index)


def pcie_text(device: Any) -> str:
    """Return "PCIe 4.0 x16", from NVML; "" where it does not tell. The generation is the most the link can do: an idle
    GPU falls back to a lower one. The width is as it is now: slots are often narrower than cards.
    """
    generation, width = _lanes(device)
    return f"PCIe {generation}.0 x{width}" if generation and width else ""


def link_kind(source: str, target: str) -> str:
    """Return what the link between two places is: "NVLink", "PCIe 4.0 x16" (the narrower end's), or ""."""
    ends = [device for device in (source, target) if device != "cpu"]
    known = machine()
    found = []
    for device in ends:
        kind, index = parse_name(device)
        if kind != "cuda" or index not in known.nvml:
            return ""
        found.append(known.nvml[index])
    if len(found) == 2:
        first, second = sorted(device.index for device in found)
        if (first, second) in known.nvlink_pairs:
            links = min(device.nvlinks for device in found)
            return f"NVLink x{links}" if links else "NVLink"
    texts = {_speed(device): pcie_text(device) for device in found}
    return texts[min(texts)] if all(texts.values()) else ""


def _speed(device: Any) -> float:
    """Lanes times the speed of one, which doubles with each generation: for comparing two ends only."""
    generation, width = _lanes(device)
    return width * 2.0**generation


def _lanes(device: Any) -> tuple[int, int]:
    """Return PCIe's generation and width; 0 where NVML does not tell."""
    generation = max(device.pcie_generation, device.pcie_current_generation)
    return int(generation), int(device.pcie_current_width or device.pcie_width)
