# SPDX-License-Identifier: Apache-2.0
"""NVIDIA's GPUs by CUDA's index, without a CUDA context: which of NVML's (or nvidia-smi's) devices is `cuda:0`?

CUDA counts what CUDA_VISIBLE_DEVICES leaves, and by default the fastest card first; NVML counts all, by PCI bus. The
two are matched by UUID, which the CUDA driver tells for each of its indices. Without the driver's library the value of
CUDA_VISIBLE_DEVICES decides. All of this holds for a server of this machine that sees the devices as this process does.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import re
import shutil
import subprocess
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from distorch._load import core
from distorch.tools.monitor.answers import AnswerError
from distorch.tools.monitor.sample import DeviceSample

_MB = 2**20
_MEGABYTES = re.compile(r"\d{1,12}", re.ASCII)
_QUERY = "uuid,name,memory.total,memory.used,memory.free"


@dataclass(frozen=True)
class Gpu:
    """One GPU, or a slice of one, as NVML or nvidia-smi counts them; sizes in bytes, None where they are not told."""

    index: int
    uuid: str
    name: str
    total: int | None
    used: int | None
    free: int | None
    slice: int = -1  # -1: the card itself
    cut: bool = False  # into slices

    def sample(self, device: str) -> DeviceSample | None:
        """Return it as `device`; None where its memory is not told."""
        if self.total is None or self.used is None or self.free is None:
            return None
        # With what the driver keeps for itself, which nvidia-smi leaves out of `used`.
        taken = max(self.used, self.total - self.free)
        return DeviceSample(device, taken, self.free, self.total, name=self.name)


def nvml_gpus() -> list[Gpu]:
    """Return the machine's GPUs. Raises AnswerError with NVML's reason."""
    devices, _, reason = core().nvml_devices()
    if not devices:
        raise AnswerError(reason or "NVML knows no device")
    return [Gpu(d.index, d.uuid, d.name, d.total, d.used, d.free, d.slice, d.cut) for d in devices]


def smi_gpus(timeout: float = 5.0) -> list[Gpu]:
    """Return the machine's GPUs as `nvidia-smi` tells them. Raises AnswerError."""
    program = shutil.which("nvidia-smi")
    if program is None:
        raise AnswerError("nvidia-smi was not found")
    command = [program, f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits"]
    try:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace"
        )
    except OSError as error:
        raise AnswerError(f"nvidia-smi cannot be run: {error.strerror}") from None
    try:
        output, errors = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=1)  # a process stuck in the driver cannot be waited for
        raise AnswerError(f"nvidia-smi gave no answer within {timeout:g} s") from None
    if process.returncode:
        words = (errors or output).strip().splitlines()
        raise AnswerError(f"nvidia-smi: {words[0][:120] if words else process.returncode}")
    return _parse_smi(output)


def _parse_smi(output: str) -> list[Gpu]:
    gpus = []
    for index, line in enumerate(output.splitlines()):
        fields = [field.strip() for field in line.split(",")]
        figures = [int(f) * _MB if _MEGABYTES.fullmatch(f) else None for f in fields[-3:]]
        if len(fields) < 5 or None in figures:  # "[N/A]" where a card does not tell
            continue
        total, used, free = (f or 0 for f in figures)
        gpus.append(Gpu(index, fields[0], ", ".join(fields[1:-3]), total, used, free))
    if not gpus:
        raise AnswerError("nvidia-smi told the memory of no device")
    return gpus


def driver_uuids(library: Any = None) -> list[str] | None:
    """Return the UUID of each CUDA index, without "GPU-" or "MIG-"; None where the driver is not there or does not tell.

    The driver is initialised, but no context is made: no memory of a device is used.
    """
    try:
        cuda = library or ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
        if cuda.cuInit(0):
            return None
        ask = getattr(cuda, "cuDeviceGetUuid_v2", None) or cuda.cuDeviceGetUuid
        count, device = ctypes.c_int(0), ctypes.c_int(0)
        raw = (ctypes.c_ubyte * 16)()
        if cuda.cuDeviceGetCount(ctypes.byref(count)):
            return None
        found = []
        for index in range(count.value):
            if cuda.cuDeviceGet(ctypes.byref(device), index) or ask(ctypes.byref(raw), device):
                return None
            found.append(str(uuid.UUID(bytes=bytes(raw))))
        return found
    except (OSError, AttributeError):
        return None


_driver_uuids = functools.cache(driver_uuids)


def _bare(uuid: str) -> str:
    return uuid.lower().removeprefix("gpu-").removeprefix("mig-")


def by_cuda_index(
    gpus: Sequence[Gpu], uuids: Callable[[], list[str] | None] = _driver_uuids
) -> tuple[DeviceSample, ...]:
    """Return the visible GPUs as `cuda:N`. Raises AnswerError when none is visible."""
    known = uuids()
    by_uuid = {_bare(gpu.uuid): gpu for gpu in gpus if gpu.uuid}
    if known and any(_bare(u) in by_uuid for u in known):
        ordered = [by_uuid.get(_bare(u)) for u in known]
    else:
        ordered = [gpus[i] for i in _visible(gpus)]
    if not any(ordered):
        raise AnswerError("CUDA_VISIBLE_DEVICES leaves no device")
    samples = [g.sample(f"cuda:{i}") for i, g in enumerate(ordered) if g is not None]
    found = tuple(sample for sample in samples if sample is not None)
    if not found:
        raise AnswerError("the driver tells the memory of no device")
    return found


def _visible(gpus: Sequence[Gpu]) -> list[int]:
    """Return positions in `gpus`, in the order of CUDA_VISIBLE_DEVICES."""
    table = []
    for gpu in gpus:
        entry = core().NvmlDevice()
        entry.index, entry.slice, entry.cut, entry.uuid = gpu.index, gpu.slice, gpu.cut, gpu.uuid
        table.append(entry)
    return core().visible_nvml(table)
