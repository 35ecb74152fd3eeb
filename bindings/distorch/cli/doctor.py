# SPDX-License-Identifier: Apache-2.0
"""`distorch doctor`: what was found on this machine, what was not, and what to do about it.

Every check is a row; a check that raises becomes a row that says so. Status: "ok"; "absent", for what DisTorch can
do without; "broken", for what it needs (the exit status is then 1).
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OK, ABSENT, BROKEN = "ok", "absent", "broken"


@dataclass(frozen=True)
class Finding:
    """One row: what was looked for, its status, what was found, and what to do (empty where nothing is)."""

    name: str
    status: str
    found: str
    advice: str = ""


def _python() -> Finding:
    return Finding("python", OK, f"{platform.python_version()} ({sys.executable})")


def _torch() -> Finding:
    if importlib.util.find_spec("torch") is None:
        return Finding("torch", BROKEN, "not installed", "pip install 'torch>=2.10'")
    import torch

    numbers = tuple(int(n) for n in torch.__version__.split("+")[0].split(".")[:2])
    if numbers < (2, 10):
        return Finding("torch", BROKEN, torch.__version__, "update it: pip install 'torch>=2.10'")
    return Finding("torch", OK, torch.__version__)


def _core() -> Finding:
    from distorch._load import core

    binary = core()
    return Finding(
        "distorch core",
        OK,
        f"{binary.__version__}, compiled by {binary.compiler} against torch {binary.built_with_torch}",
    )


def _operators() -> Finding:
    from distorch._load import load_operators

    return Finding("distorch operators", OK, f"ABI {int(load_operators().abi_version())}")


def _cuda() -> Finding:
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


def _driver() -> Finding:
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
    silent = [_on_nvml(device.problem) for device in devices if device.problem]
    status = max((status for status, _ in silent), key=(OK, ABSENT, BROKEN).index, default=OK)
    advice = "; ".join(dict.fromkeys(advice for _, advice in silent if advice))
    return Finding("NVIDIA driver", status, found, advice)


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


def _nccl() -> Finding:
    import torch

    if not torch.distributed.is_available() or not torch.distributed.is_nccl_available():
        advice = "it comes with CUDA builds of torch; copies between GPUs work without it"
        return Finding("NCCL", ABSENT, "this torch was built without", advice)
    return Finding("NCCL", OK, ".".join(str(n) for n in torch.cuda.nccl.version()))


def _accelerators() -> Finding:
    from distorch.devices import list_devices

    names = [f"{info.device} ({info.name})" for info in list_devices() if info.kind != "cpu"]
    if names:
        return Finding("accelerators", OK, ", ".join(names))
    advice = "`distorch demo` runs on simulated ones; `make` in a checkout builds them"
    return Finding("accelerators", ABSENT, "none", advice)


def _host_memory() -> Finding:
    from distorch._load import core
    from distorch.allocation import format_bytes

    total, available = core().host_memory()
    found = f"{format_bytes(available)} available of {format_bytes(total)}"
    return Finding("host memory", OK, found)


def _simulated() -> Finding:
    if importlib.util.find_spec("distorch_sim") is not None:
        return Finding("simulated devices", OK, "distorch_sim")
    advice = "only for tests and the demo: run `make` in a checkout"
    return Finding("simulated devices", ABSENT, "not built", advice)


def _packages() -> Finding:
    optional = {"rich": "monitor, e2e", "aiohttp": "e2e", "transformers": "demo"}
    found, missing = [], []
    for package, use in optional.items():
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(f"{package} (for: {use})")
    if not missing:
        return Finding("optional packages", OK, ", ".join(found))
    advice = "pip install " + " ".join(name.split()[0] for name in missing)
    return Finding("optional packages", ABSENT, "missing: " + ", ".join(missing), advice)


def _comfyui() -> Finding:
    paths = [Path(p) for p in os.environ.get("COMFYUI_PATH", "").split(os.pathsep) if p]
    if not paths:
        return Finding("ComfyUI", ABSENT, "COMFYUI_PATH is not set", "only its tests need that")
    broken = [str(p) for p in paths if not (p / "comfy" / "model_management.py").exists()]
    if broken:
        advice = (
            f"COMFYUI_PATH takes folders with a folder comfy in them, separated by {os.pathsep!r}"
        )
        return Finding("ComfyUI", BROKEN, f"no ComfyUI in {', '.join(broken)}", advice)
    return Finding("ComfyUI", OK, ", ".join(map(str, paths)))


# In the order printed; each with the advice for when it raises.
CHECKS: list[tuple[str, Callable[[], Finding], str]] = [
    ("python", _python, ""),
    ("torch", _torch, "pip install 'torch>=2.10'"),
    ("distorch core", _core, "build it: `make` in a checkout"),
    ("distorch operators", _operators, "build it for this torch: `make` in a checkout"),
    ("host memory", _host_memory, "report this"),
    ("CUDA", _cuda, "reinstall torch"),
    ("NVIDIA driver", _driver, "reinstall the driver"),
    ("NCCL", _nccl, "reinstall torch"),
    ("accelerators", _accelerators, "report this"),
    ("simulated devices", _simulated, "report this"),
    ("optional packages", _packages, "report this"),
    ("ComfyUI", _comfyui, "report this"),
]


def examine() -> list[Finding]:
    """Run every check; none stops the others."""
    findings = []
    for name, check, advice in CHECKS:
        try:
            findings.append(check())
        except Exception as error:  # a doctor reports whatever a broken installation raises
            findings.append(Finding(name, BROKEN, str(error).split("\n", 1)[0], advice))
    return findings


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `distorch doctor`."""
    parser.add_argument("--json", action="store_true", help="one JSON array")


def run(args: argparse.Namespace) -> int:
    """Print the findings; 1 if something needed is missing or broken, else 0."""
    findings = examine()
    if args.json:
        sys.stdout.write(json.dumps([dataclasses.asdict(f) for f in findings], indent=2) + "\n")
    else:
        width = max(len(finding.name) for finding in findings)
        for finding in findings:
            mark = finding.status.ljust(len(BROKEN))
            sys.stdout.write(f"{mark}  {finding.name.ljust(width)}  {finding.found}\n")
            if finding.advice:
                sys.stdout.write(f"{' ' * (len(BROKEN) + width + 4)}-> {finding.advice}\n")
    return 1 if any(finding.status == BROKEN for finding in findings) else 0
