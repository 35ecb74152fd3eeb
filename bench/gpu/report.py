# SPDX-License-Identifier: Apache-2.0
"""Writes what bench/gpu/run.py has measured: as lines, as a table for a page, as JSON and as a picture."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import plot
import torch

ROOT = Path(__file__).resolve().parents[2]
_NAMES = {
    "per_leaf": "leaf by leaf",
    "accelerate": "accelerate",
    "diffusers": "diffusers",
    "comfy": "ComfyUI",
}


def context(device: str) -> dict[str, str]:
    """Return what the figures hold for; needs neither git nor nvidia-smi."""
    about = {
        "hardware": "simulated device: bytes, no seconds",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": datetime.now(timezone.utc).date().isoformat(),
    }
    if device.startswith("cuda"):
        about["hardware"] = torch.cuda.get_device_name(device)
        about["driver"] = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0")  # fmt: skip
    about["commit"] = _output("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD")
    return {key: value for key, value in about.items() if value}


def _output(*command: str) -> str:
    if shutil.which(command[0]) is None:
        return ""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def cells(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Return the table, its head first; "-" where there is no value."""
    seconds = not rows or rows[0]["unit"] == "s"
    rivals = [r for r in _NAMES if any(r in row["ratio"] or r in row["problems"] for row in rows)]
    head = ["model", "tokens", "away", "T", "C", "B/W", "bound/T", *[f"{r}/T" for r in rivals]]
    if not seconds:
        head[3:6] = ["bytes", "-", "away"]
    result = [head]
    for row in rows:
        link = row["link_seconds"] if seconds else row["streamed_bytes"]
        numbers = [row["values"].get("streamed"), row["compute_seconds"] if seconds else None, link]
        result.append(
            [
                row["size"],
                str(row["tokens"]),
                f"{row['share']:.0%}",
                *["-" if n is None else f"{n:.4f}" if seconds else f"{n:.0f}" for n in numbers],
                _ratio(row["fraction_of_bound"]),
                *[_ratio(row["ratio"].get(rival)) for rival in rivals],
            ]
        )
    return result


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return the lines that are printed."""
    found = cells(rows)
    widths = [max(len(row[i]) for row in found) for i in range(len(found[0]))]
    return ["  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)) for row in found]


def write(contents: dict[str, Any], files: Sequence[Path], picture: Path) -> None:
    """Write the results as JSON to `files` and the picture."""
    for path in (*files, picture):
        path.parent.mkdir(parents=True, exist_ok=True)
    for path in files:
        path.write_text(json.dumps(contents, indent=1) + "\n")
    bars = [
        {
            "label": f"{row['size']}\n{row['tokens']} tokens\n{row['share']:.0%} away",
            "values": row["values"],
            "bound": row["bound"],
        }
        for row in contents["rows"]
    ]
    about = contents["context"]
    unit = (
        "seconds" if contents["rows"] and contents["rows"][0]["unit"] == "s" else "bytes to the device"
    )  # fmt: skip
    title = f"One step on {about['hardware']}, {about['date']} (dashed: the bound)"
    picture.write_text(plot.svg(title, bars, unit))
