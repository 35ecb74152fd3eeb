# SPDX-License-Identifier: Apache-2.0
"""The host's memory: how much there is, and how much of it may be pinned."""

from __future__ import annotations

import platform
import re
from pathlib import Path

from . import finding
from .finding import NOTE, OK, Case, Finding, gigabytes

#: Below these a diffusion model of today and its text encoder do not fit beside the system. A rule of thumb: a model needs
#: about the bytes of its file in system memory, and Flux in fp8 with T5 has 17 GB.
LITTLE, LITTLE_FREE = 16 << 30, 4 << 30


def figures() -> tuple[int, int, int]:
    """Total and available bytes as this process may use them, and the machine's total; without the core, Linux's own."""
    machine = _meminfo()
    try:
        from distorch._load import core

        total, available = core().host_memory()
    except ImportError:
        if not machine:
            raise
        total, available = machine["MemTotal"], machine["MemAvailable"]
    return int(total), int(available), machine.get("MemTotal", int(total))


def _meminfo() -> dict[str, int]:
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        return {}
    return {name: int(n) << 10 for name, n in re.findall(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE)}


def memory(_case: Case) -> Finding:
    """What there is, and whether it is little."""
    total, available, machine = figures()
    found = f"{gigabytes(available)} available of {gigabytes(total)}"
    if total < 0.95 * machine:
        found += f" (a container's limit; the machine has {gigabytes(machine)})"
    if total < LITTLE:
        advice = (
            "give more of the model to the GPUs in the allocation string, use smaller files (GGUF, fp8), "
            "switch keep_loaded off; in a container raise its limit (docker run --memory)"
        )
        return Finding("host memory", NOTE, f"{found}: little", advice)
    if available < LITTLE_FREE:
        return Finding(
            "host memory", NOTE, f"{found}: little is free", "close other programs before loading"
        )
    return Finding("host memory", OK, found)


def pinned(case: Case) -> Finding:
    """How much host memory may be pinned: what streams from pinned memory is about twice as fast."""
    import torch

    name = "pinned memory"
    if "--disable-pinned-memory" in (case.arguments or []):
        return Finding(
            name,
            NOTE,
            "ComfyUI was started with --disable-pinned-memory",
            "start ComfyUI without it: streaming from pageable memory is slower",
        )
    if torch.version.hip and (locked := _locked_limit()) is not None:
        found = f"at most {gigabytes(locked)} (ulimit -l)"
        return Finding(name, NOTE, found, "ulimit -l unlimited, in the shell that starts ComfyUI")
    total = figures()[0]
    if finding.on_windows():
        found = f"about half of {gigabytes(total)}: Windows refuses more"
        return Finding(
            name, NOTE, found, "give less to cpu in the allocation string than that half"
        )
    if "microsoft" in platform.release().lower():
        found = f"a part of {gigabytes(total)} that WSL decides on"
        return Finding(name, NOTE, found, "set memory= under [wsl2] in %UserProfile%\\.wslconfig")
    from distorch.run.pinning import default_cap

    return Finding(name, OK, f"up to {gigabytes(default_cap())}, three quarters of the memory")


def _locked_limit() -> int | None:
    """Bytes that this process may lock, None where there is no limit (or no such thing)."""
    try:
        import resource
    except ImportError:
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return None if soft == resource.RLIM_INFINITY else soft
