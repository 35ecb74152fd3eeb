# SPDX-License-Identifier: Apache-2.0
"""What was found on this machine, what was not, and what to do about it. Works without the compiled core and without torch.

Every check is a row; a check that raises becomes a row that says so.
"""

from __future__ import annotations

from collections.abc import Callable

from distorch._load import LoadError

from . import comfyui, gpus, host, installation
from .finding import ABSENT, BROKEN, NOTE, OK, Case, Finding, find_comfyui

__all__ = ["ABSENT", "BROKEN", "CHECKS", "NOTE", "OK", "Case", "Finding", "examine", "find_comfyui"]

# In the order printed; each with the advice for when it raises.
CHECKS: list[tuple[str, Callable[[Case], Finding], str]] = [
    ("python", installation.python, ""),
    ("torch", installation.torch, "pip install --force-reinstall torch"),
    ("distorch core", installation.core, installation.reinstall()),
    ("distorch operators", installation.operators, installation.reinstall()),
    ("host memory", host.memory, "report this"),
    ("pinned memory", host.pinned, "see: torch"),
    ("CUDA", gpus.cuda, "see: torch"),
    ("NVIDIA driver", gpus.driver, "see: distorch core"),
    ("peer access", gpus.peers, "see: torch"),
    ("accelerators", gpus.accelerators, "see: distorch core"),
    ("simulated devices", installation.simulated, "report this"),
    ("optional packages", installation.packages, "report this"),
    ("ComfyUI", comfyui.folder, "report this"),
    ("ComfyUI's Python", installation.environment, "is the server's address right?"),
    ("DisTorch's folder", comfyui.pack, "report this"),
    ("ComfyUI-MultiGPU", comfyui.predecessor, "report this"),
    ("DynamicVRAM", comfyui.dynamic_vram, "is the server's address right?"),
    ("all GPUs in ComfyUI", comfyui.hidden_gpus, "is the server's address right?"),
]


def examine(case: Case) -> list[Finding]:
    """Run every check; none stops the others."""
    findings = []
    for name, check, advice in CHECKS:
        try:
            findings.append(check(case))
        except Exception as error:  # a doctor reports whatever a broken installation raises
            findings.append(_raised(name, error, advice))
    return findings


def _raised(name: str, error: Exception, advice: str) -> Finding:
    """What follows from a part that is missing, which has a row of its own, is no fault of its own."""
    if isinstance(error, ImportError) and name not in (
        "torch",
        "distorch core",
        "distorch operators",
    ):
        if error.name == "torch":
            return Finding(name, ABSENT, "not known without torch", "see: torch")
        if isinstance(error, LoadError):
            return Finding(
                name, ABSENT, "not known without the compiled core", "see: distorch core"
            )
    return Finding(name, BROKEN, str(error).split("\n", 1)[0], advice)
