# SPDX-License-Identifier: Apache-2.0
"""The first step: versions, `distorch doctor`, one placed model."""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn


def versions(device: str) -> dict[str, Any]:
    """Return what the figures of this run hold for."""
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": platform.platform(),
        "device": getattr(torch, device.split(":")[0]).get_device_name(device),
    }
    if device.startswith("cuda"):
        found["cuda"] = torch.version.cuda
    if device.startswith("cuda") and shutil.which("nvidia-smi"):
        query = "driver_version,pcie.link.gen.current,pcie.link.width.current"
        command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader", "--id=0"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        found["driver, PCIe generation and width"] = done.stdout.strip() or done.stderr.strip()
    return found


def placed_model(device: str) -> dict[str, Any]:
    """Place and stream a small model; returns what came of it. Raises AssertionError when its result is wrong."""
    import distorch

    model = nn.Sequential(*[nn.Sequential(nn.Linear(256, 256), nn.GELU()) for _ in range(6)]).eval()
    x = torch.randn(4, 256, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        whole = distorch.place_string(model, f"{device},*", compute=device)
        expected = model(x).cpu()
        whole.unload()
        placed = distorch.place_string(model, f"{device},20%;cpu,*", compute=device)
        executor = distorch.StreamedExecutor(placed)
        for _ in range(4):
            assert torch.equal(model(x).cpu(), expected), "the streamed model gives another result"
        found = {"streamed": len(executor.streamed), "notes": executor.notes}
        placed.unload()
    return found


def main() -> int:
    """Run the step; returns the exit status."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", required=True)
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    if args.device.startswith("sim"):
        import distorch_sim

        distorch_sim.install([2**28])
    elif not torch.cuda.is_available():
        print("torch finds no CUDA device here")
        return 1
    results: dict[str, Any] = {"versions": versions(args.device)}
    results["said"] = f"{results['versions']['device']}, torch {torch.__version__}"
    args.json.write_text(json.dumps(results))
    doctor = subprocess.run(
        [sys.executable, "-m", "distorch", "doctor"], capture_output=True, text=True, check=False
    )
    results["doctor"] = doctor.stdout.splitlines()
    print(doctor.stdout, doctor.stderr)
    args.json.write_text(json.dumps(results))
    results["placed"] = placed_model(args.device)
    args.json.write_text(json.dumps(results))
    return doctor.returncode


if __name__ == "__main__":
    sys.exit(main())
