# SPDX-License-Identifier: Apache-2.0
"""Asks CUDA what the engine relies on and what has only been read of. Each answer is written down, whatever it is.

probes.py --json FILE [--dry-run]

Nothing here can fail but a probe itself: an answer other than the expected one is the finding.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from runtime import MIB, Pages, Runtime, StandIn, open_runtime

ALLOCATORS = {"native": "", "expandable": "expandable_segments:True", "async": "backend:cudaMallocAsync"}  # fmt: skip


def border(cuda: Runtime) -> dict[str, Any]:
    """Register two segments side by side and copy across their border, and beside it."""
    size = 4 * MIB
    with Pages(2 * size) as pages:
        pages.fill()
        codes = [cuda.register(pages.address + i * size, size) for i in range(2)]
        device = torch.zeros(2 * size, dtype=torch.uint8, device=cuda.device)
        found: dict[str, Any] = {"registered": [cuda.name(c) for c in codes]}
        for name, begin in (("across the border", size - 65536), ("inside a segment", 65536)):
            code = cuda.copy(device.data_ptr(), pages.address + begin, 131072)
            found[name] = cuda.name(code)
            waited = cuda.synchronize()
            if waited:
                found[name + ", when waited for"] = cuda.name(waited)
            if code == 0:
                arrived = bytes(device[:131072].cpu().numpy())
                found[name + ", right bytes"] = arrived == pages.bytes(begin, 131072)
            cuda.take_error()
        for i in range(2):
            cuda.unregister(pages.address + i * size)
    return found


def registration_rate(cuda: Runtime) -> dict[str, Any]:
    """Return GB/s of registering pages that were touched before, and that were not; and of unregistering."""
    size = 4 * MIB if cuda.pretended else 1024 * MIB
    found: dict[str, Any] = {"bytes": size}
    for name, touched in (("touched", True), ("untouched", False)):
        with Pages(size) as pages:
            if touched:
                pages.fill()
            begin = time.perf_counter()
            code = cuda.register(pages.address, size)
            middle = time.perf_counter()
            found[name] = cuda.name(code)
            found[f"{name}, GB/s"] = round(size / 2**30 / (middle - begin), 3)
            cuda.unregister(pages.address)
            found[f"{name}, back, GB/s"] = round(size / 2**30 / (time.perf_counter() - middle), 3)
    return found


def refused(cuda: Runtime) -> dict[str, Any]:
    """Register what is registered already; look at what is left of the error, and whether torch stumbles over it."""
    with Pages(MIB) as pages:
        pages.fill()
        cuda.register(pages.address, MIB)
        code = cuda.register(pages.address, MIB)
        found = {"refused with": cuda.name(code), "left behind": cuda.name(cuda.peek_error())}
        try:
            torch.ones(8, device=cuda.device).sum().item()
            found["torch's next kernel"] = "ran"
        except RuntimeError as error:
            found["torch's next kernel"] = str(error).splitlines()[0]
        found["left behind then"] = cuda.name(cuda.take_error())
        found["left behind once it was taken"] = cuda.name(cuda.peek_error())
        cuda.unregister(pages.address)
        unmapped = cuda.register(pages.address + (1 << 40), MIB)
        found["memory that is not there"] = cuda.name(unmapped)
        cuda.take_error()
    return found


def pointer_kinds(cuda: Runtime) -> dict[str, Any]:
    """Return what CUDA says of memory of each kind; 0 unregistered, 1 host, 2 device."""
    pinned = torch.empty(4096, dtype=torch.uint8, pin_memory=not cuda.pretended)
    there = torch.empty(4096, dtype=torch.uint8, device=cuda.device)
    with Pages(MIB) as pages:
        found = {"pageable": cuda.pointer_kind(pages.address)}
        cuda.register(pages.address, MIB)
        found["registered"] = cuda.pointer_kind(pages.address)
        cuda.unregister(pages.address)
        found["unregistered again"] = cuda.pointer_kind(pages.address)
    found["pinned by torch"] = cuda.pointer_kind(pinned.data_ptr())
    found["torch's on the device"] = cuda.pointer_kind(there.data_ptr())
    return found


def host_time(cuda: Runtime) -> dict[str, Any]:
    """Return microseconds of host time for each call that a streamed group makes."""
    module = getattr(torch, cuda.device.split(":")[0])
    stream, event = module.Stream(device=cuda.device), module.Event()
    event.record(stream)
    source = torch.empty(MIB, dtype=torch.uint8, pin_memory=not cuda.pretended)
    target = torch.empty(MIB, dtype=torch.uint8, device=cuda.device)

    def copy() -> None:
        with module.stream(stream):
            target.copy_(source, non_blocking=True)

    calls: dict[str, Callable[[], object]] = {
        "event recorded": lambda: event.record(stream),
        "stream waits for event": lambda: stream.wait_event(event),
        "copy of 1 MiB, by torch on its stream": copy,
    }
    found = {}
    for name, call in calls.items():
        call()
        module.synchronize()
        begin = time.perf_counter()
        for _ in range(500):
            call()
        found[name] = round((time.perf_counter() - begin) / 500 * 1e6, 2)
        module.synchronize()
    return found


def how_much(cuda: Runtime, seconds: float = 4.0) -> dict[str, Any]:
    """Register one piece after the other until it is refused or the time is up."""
    piece = 4 * MIB if cuda.pretended else 2048 * MIB
    limits = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    found: dict[str, Any] = {"RLIMIT_MEMLOCK": limits, "host memory": total}
    held: list[Pages] = []
    begin, code = time.perf_counter(), 0
    # Half of the memory at most: the machine is to live on.
    while time.perf_counter() - begin < seconds and (len(held) + 1) * piece <= total // 2:
        pages = Pages(piece)
        code = cuda.register(pages.address, piece)
        if code:
            pages.close()
            break
        held.append(pages)
        if cuda.pretended and len(held) == 4:
            break
    found["registered at once"] = len(held) * piece
    found["ended by"] = cuda.name(code) if code else "time, or half of the host's memory"
    for pages in held:
        cuda.unregister(pages.address)
        pages.close()
    cuda.take_error()
    return found


def allocators(cuda: Runtime) -> dict[str, Any]:
    """Copy to torch's memory, and between the devices, under each of torch's allocators; each in a process of its own."""
    found = {}
    for name, configuration in ALLOCATORS.items():
        environment = {**os.environ, "PYTORCH_ALLOC_CONF": configuration}
        if not configuration:
            del environment["PYTORCH_ALLOC_CONF"]
        command = [sys.executable, str(Path(__file__).with_name("peers.py")), cuda.device.split(":")[0]]  # fmt: skip
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, timeout=40
        )
        try:
            found[name] = json.loads(done.stdout.splitlines()[-1])
        except (IndexError, ValueError):
            found[name] = {"failed": done.stderr.strip().splitlines()[-1:]}
        if cuda.pretended:
            break
    return found


PROBES = (border, refused, pointer_kinds, registration_rate, host_time, allocators, how_much)


def main() -> int:
    """Run the probes; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--dry-run", action="store_true")
    args = parser.parse_args()
    assert mmap.PAGESIZE == 4096
    if args.dry_run:
        import distorch_sim

        distorch_sim.install([2**28] * 2)
    cuda: Runtime = StandIn("sim:0") if args.dry_run else open_runtime("cuda:0")
    results: dict[str, Any] = {}
    failed = 0
    for probe in PROBES:
        try:
            results[probe.__name__] = probe(cuda)
        except Exception as error:
            failed += 1
            results[probe.__name__] = {"failed": f"{type(error).__name__}: {error}"}
        print(probe.__name__, json.dumps(results[probe.__name__]), flush=True)
        results["said"] = f"{len(PROBES) - failed} of {len(PROBES)} probes answered"
        args.json.write_text(json.dumps(results))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
