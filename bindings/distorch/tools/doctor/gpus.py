# SPDX-License-Identifier: Apache-2.0
"""GPUs: what torch was built for, the driver and its age, the links between GPUs."""

from __future__ import annotations

import os
import re
from typing import Any

from . import finding
from .finding import ABSENT, BROKEN, NOTE, OK, Case, Finding

#: CUDA's major version -> the oldest driver that runs it, on Linux and on Windows (NVIDIA's table of compatibility).
OLDEST_DRIVER = {11: ("450.80", "452.39"), 12: ("525.60", "528.33"), 13: ("580", "580")}


def cuda(_case: Case) -> Finding:
    """What torch can do with GPUs of NVIDIA and AMD."""
    import torch

    if torch.version.cuda is None and torch.version.hip is None:
        advice = "for NVIDIA GPUs: install a CUDA build of torch (https://pytorch.org/get-started)"
        return Finding("CUDA", ABSENT, "this torch was built without", advice)
    name, version = (
        ("CUDA", torch.version.cuda) if torch.version.cuda else ("ROCm", torch.version.hip)
    )
    count = torch.cuda.device_count()
    found = f"{version} (torch's), {count} device{'' if count == 1 else 's'}"
    if count:
        return Finding(name, OK, found)
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    advice = "no GPU or no driver; models then run on cpu"
    if hidden is not None:
        advice = f"CUDA_VISIBLE_DEVICES={hidden!r} may hide them: unset it"
    return Finding(name, ABSENT, found, advice)


def driver(_case: Case) -> Finding:
    """NVIDIA's driver, the GPUs that it sees, and whether it is new enough for torch's CUDA."""
    from distorch._load import core

    devices, version, problem = core().nvml_devices()
    if "was not found" in problem:
        advice = "with an NVIDIA GPU: install its driver, or start the container with --gpus all"
        return Finding("NVIDIA driver", ABSENT, problem, advice)
    if problem:
        status, advice = _on_nvml(problem)
        return Finding("NVIDIA driver", status, problem, advice)
    rows = [_gpu(device) for device in devices]
    found = f"{version}: {', '.join(rows) or 'no GPU'}"
    if too_old := _too_old(version):
        return Finding("NVIDIA driver", BROKEN, f"{found}; {too_old[0]}", too_old[1])
    silent = [_on_nvml(device.problem) for device in devices if device.problem]
    status = max((status for status, _ in silent), key=(OK, ABSENT, BROKEN).index, default=OK)
    advice = "; ".join(dict.fromkeys(advice for _, advice in silent if advice))
    return Finding("NVIDIA driver", status, found, advice)


def _too_old(version: str) -> tuple[str, str] | None:
    """What is wrong with a driver of that version, and what to do; None if torch can use it."""
    import torch

    major = int(str(torch.version.cuda or "0").split(".")[0])
    oldest = OLDEST_DRIVER.get(major, ("0", "0"))[finding.on_windows()]
    if not re.match(r"\d+", version) or _numbers(version) >= _numbers(oldest):
        return None
    return (
        f"torch's CUDA {torch.version.cuda} needs driver {oldest} or later",
        f"install NVIDIA's driver {oldest} or later (https://www.nvidia.com/drivers), or a torch for an older CUDA",
    )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", version)[:2])


def _gpu(device: Any) -> str:
    name = device.name or f"GPU {device.index}"
    return f"{name} ({device.problem})" if device.problem else str(name)


# NVML's error -> what it makes of the driver, and what to do.
_NVML_ERRORS = {
    "3": (OK, ""),  # memory that is the host's, as in GB10: torch tells it
    "4": (ABSENT, "give this user, or the container, access to the GPU (--gpus all)"),
    "9": (BROKEN, "load the driver: `nvidia-smi` says what is wrong with it"),
    "15": (BROKEN, "a GPU is lost, the others work: reset it or reboot the machine"),
    "17": (ABSENT, "give this user, or the container, access to the GPU (--gpus all)"),
    "18": (BROKEN, "after an update of the driver: reboot; in a container: start it anew"),
}


def _on_nvml(problem: str) -> tuple[str, str]:
    """The status and the advice for what NVML said."""
    code = re.search(r"NVML error (\d+)", problem)
    unknown = (BROKEN, "`nvidia-smi` should say more; report this if it finds nothing wrong")
    return _NVML_ERRORS.get(code[1] if code else "", unknown)


def peers(_case: Case) -> Finding:
    """Whether GPUs reach each other's memory; where they do not, copies take two ways over the host."""
    import torch

    count = torch.cuda.device_count()
    pairs = [(a, b) for a in range(count) for b in range(count) if a < b]
    if not pairs:
        return Finding("peer access", OK, "fewer than two GPUs: nothing to reach")
    apart = [
        f"cuda:{a} and cuda:{b}"
        for a, b in pairs
        if not (torch.cuda.can_device_access_peer(a, b) and torch.cuda.can_device_access_peer(b, a))
    ]
    if not apart:
        return Finding("peer access", OK, f"all {len(pairs)} pairs")
    return Finding(
        "peer access",
        NOTE,
        f"none between {', '.join(apart)}: blocks cross by way of system memory",
        "`distorch links` measures what that costs; a donor that is not faster than cpu is not worth its memory",
    )


def accelerators(_case: Case) -> Finding:
    """Every device besides the cpu."""
    from distorch.devices import list_devices

    names = [f"{info.device} ({info.name})" for info in list_devices() if info.kind != "cpu"]
    if names:
        return Finding("accelerators", OK, ", ".join(names))
    advice = "`distorch demo` runs on simulated ones; `make` in a checkout builds them"
    return Finding("accelerators", ABSENT, "none", advice)
