# SPDX-License-Identifier: Apache-2.0
"""The steps of tools/gpu_check.sh: what each runs, for how long at most, on a GPU and in the dry run."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

TOOLS = Path(__file__).resolve().parent
ROOT = TOOLS.parents[1]
# torch's three ways of getting memory from the driver.
ALLOCATORS = {
    "native": "",
    "expandable": "expandable_segments:True",
    "async": "backend:cudaMallocAsync",
}
COPIES = ROOT / ".gpu/bin/copies"
# Models and the percent of their blocks that are on the host.
CASES = (("flux-12b", 50), ("flux-12b", 100), ("wan-14b", 100))


@dataclass(frozen=True)
class Step:
    """One step.

    Attributes:
        name: for the line it prints and the JSON.
        command: what is run. {json} stands for a file that it may leave its results in, {folder} for an empty folder, {out}
            for where the run's files go, {limit} for the seconds it has, {copies} for what the copies have shown, or the
            program that shows it.
        limit: seconds after which it is ended.
        environment: variables beside those there are.
        absent: why it cannot be run here, or "".
    """

    name: str
    command: tuple[str, ...]
    limit: float
    environment: Mapping[str, str] = field(default_factory=dict)
    absent: str = ""


def _python(file: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, str(TOOLS / file), *arguments)


def _pytest(*arguments: str) -> tuple[str, ...]:
    folder = str(ROOT / "tests/python")
    return (sys.executable, "-m", "pytest", "-q", "-m", "cuda", "--rootdir", folder, "-c", f"{folder}/pytest.ini", "--junitxml", "{json}", *arguments, f"{folder}/cuda")  # fmt: skip


def _no_copies() -> str:
    return "" if COPIES.exists() else f"{COPIES} is not there: nvcc was missing when the kit was made"  # fmt: skip


def _copies(dry_run: bool) -> Step:
    command = (str(COPIES), "--largest", str(256 << 20), "--json", "{json}")
    if dry_run:
        # There is no device: that it says so is all that can be seen.
        command = ("/bin/sh", "-c", f"{COPIES}; test $? = 3")
    return Step("copies", command, 40, absent=_no_copies())


def _sanitizers(device: str, dry_run: bool) -> list[Step]:
    model = _python("small_model.py", "--device", device, "--json", "{json}")
    if dry_run:
        found = [Step("sanitizer of torch", (*model, "--races"), 40)]
    else:
        found = [Step("sanitizer of torch", model, 40, {"TORCH_CUDA_SANITIZER": "1"})]
    program = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    absent = "" if Path(program).exists() else "compute-sanitizer is not on this machine"
    # Errors that are answered, as of a registration that was refused, are no findings. Without its cache every tensor is
    # an allocation of its own, so that a byte beside it is seen.
    tool = (program, "--report-api-errors", "no", "--error-exitcode", "9")
    uncached = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    found.append(Step("memcheck", (*tool, "--tool", "memcheck", *model, "--few"), 60, uncached, absent))  # fmt: skip
    # It looks at shared memory inside kernels: those of `copies` are the only ones that are ours.
    kernels = (*tool, "--tool", "racecheck", str(COPIES), "--largest", "65536", "--no-hold")
    found.append(Step("racecheck", kernels, 30, absent=absent or _no_copies()))
    return found


def steps(dry_run: bool) -> list[Step]:
    """Return all steps in their order; the limits are those of a GPU's run, which has nine minutes."""
    device = "sim:0" if dry_run else "cuda:0"
    pretend = ("--dry-run",) if dry_run else ()
    found = [
        Step("first", _python("first.py", "--device", device, "--json", "{json}"), 40),
        Step("probes", _python("probes.py", "--json", "{json}", *pretend), 60),
    ]
    for name, configuration in ALLOCATORS.items():
        variables = {"DISTORCH_FAIL_WITHOUT_CUDA": "1", "DISTORCH_ALLOCATOR": name}
        if configuration:
            variables["PYTORCH_ALLOC_CONF"] = configuration
        found.append(Step(f"tests, {name}", _pytest(), 50 if name == "native" else 35, variables))
        if dry_run:
            break  # a simulated device has one allocator
    found += [*_sanitizers(device, dry_run), _copies(dry_run)]
    found.append(Step("host time", _python("host_time.py", "--device", device, "--json", "{json}"), 20))  # fmt: skip
    found.append(Step("bench", _bench(dry_run), 300))
    return found


def _bench(dry_run: bool) -> tuple[str, ...]:
    command = (sys.executable, str(ROOT / "bench/gpu/run.py"), "--out", "{out}/bench", "--json", "{json}", "--plot", "{out}/results.svg", "--steps", "3")  # fmt: skip
    tokens = 64 if dry_run else 4608
    cases = ",".join(f"{model}:{tokens}:{share}" for model, share in CASES)
    if dry_run:
        return (*command, "--tiny", "--cases", cases)
    # A checkout of ComfyUI that is carried along is measured too.
    comfy = ("--comfy", str(ROOT / ".gpu/ComfyUI")) if (ROOT / ".gpu/ComfyUI").exists() else ()
    limits = ("--way-limit", "40", "--case-limit", "110", "--limit", "{limit}")
    return (*command, "--cases", cases, "--copies", "{copies}", *limits, *comfy)


def environment(step: Step) -> dict[str, str]:
    """Return the whole environment of a step."""
    return {**os.environ, "PYTHONUNBUFFERED": "1", **step.environment}
