# SPDX-License-Identifier: Apache-2.0
"""Runs the program `copies` and reads what it has measured."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

GB = 2**30
Row = dict[str, Any]


class NotPossibleError(RuntimeError):
    """The run cannot be made here; `status` is the exit status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def measure_copies(path: Path, largest: int = 256 << 20) -> list[Row]:
    """Run bench/gpu/copies, or read what it has left in a file (.json); returns its rows.

    Raises NotPossibleError when it cannot be run.
    """
    if not path.exists():
        raise NotPossibleError(2, f"{path} is not there: build it by tools/compile_cuda.sh")
    if path.suffix == ".json":
        return [json.loads(line) for line in path.read_text().splitlines()]
    command = [str(path), "--largest", str(largest)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotPossibleError(
            3 if done.returncode == 3 else 1, f"{path.name} failed: {done.stderr.strip()}"
        )
    return [json.loads(line) for line in done.stdout.splitlines()]


def copies_table(rows: Sequence[Row]) -> list[str]:
    """Return the copies as lines: one a way and pair, one column a size, GB/s."""
    sizes = sorted({row["bytes"] for row in rows})
    kinds = dict.fromkeys((row["way"], row["source"], row["target"]) for row in rows)
    speed = {(r["way"], r["source"], r["target"], r["bytes"]): r["gbps"] for r in rows}
    lines = [f"{'GB/s':<32}" + "".join(f"{_size(size):>9}" for size in sizes)]
    for kind in kinds:
        name = f"{kind[0]:<12}{kind[1]} to {kind[2]}"
        cells = [speed.get((*kind, size)) for size in sizes]
        lines.append(
            f"{name:<32}" + "".join(f"{'-' if c is None else f'{c:.2f}':>9}" for c in cells)
        )
    return lines


def _size(size: int) -> str:
    for unit, name in ((GB, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if size >= unit:
            return f"{size // unit} {name}"
    return f"{size} B"


def peak_gbps(rows: Sequence[Row], device: str, way: str = "pinned") -> float:
    """Return the speed of copies from the host of at least 32 MiB: the fastest. `way`: "pinned" or "registered"."""
    found = [
        row["gbps"]
        for row in rows
        if row["way"] == way
        and (row["source"], row["target"]) == ("cpu", device)
        and row["bytes"] >= 32 << 20
    ]
    if not found:
        raise NotPossibleError(1, f"no {way} copy of 32 MiB or more to {device} was measured")
    return max(found)
