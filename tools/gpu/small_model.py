# SPDX-License-Identifier: Apache-2.0
"""A small streamed model to be run under sanitizers: pinned, pageable and dropped without being unloaded.

small_model.py --device cuda:0 --json FILE [--few] [--races]
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

import distorch


def run(device: str, steps: int, pin_cap: int | None, unload: bool) -> bool:
    """Stream a model for some steps; returns whether all results are those of the resident one."""
    torch.manual_seed(2)
    layers = [nn.Sequential(nn.Linear(192, 384), nn.GELU(), nn.Linear(384, 192)) for _ in range(6)]
    model = nn.Sequential(*layers).eval()
    x = torch.randn(8, 192).to(device)
    whole = distorch.place_string(model, f"{device},*", compute=device)
    expected = model(x).cpu()
    whole.unload()
    placed = distorch.place_string(model, "cpu,*", compute=device)
    executor = distorch.StreamedExecutor(placed, pin_cap=pin_cap)
    right = sum(torch.equal(model(x).cpu(), expected) for _ in range(steps)) == steps
    if unload:
        placed.unload()
    else:
        model(x)
    del model, placed, executor, layers
    gc.collect()
    torch.full((4096,), 7.0, device=device)
    return right


@contextlib.contextmanager
def watched(races: bool) -> Iterator[list[str]]:
    """Return a list that fills with the races that the simulated device's own checker finds, if asked for."""
    if not races:
        yield []
        return
    from distorch_sim.races import find_races

    with find_races() as found:
        yield found


def main() -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--few", action="store_true", help="few steps: under tools that are slow")
    parser.add_argument("--races", action="store_true", help="on a simulated device: find races")
    args = parser.parse_args()
    if args.device.startswith("sim"):
        import distorch_sim

        distorch_sim.install([2**28])
    right = []
    with torch.inference_mode(), watched(args.races) as races:
        for pin_cap, unload in ((None, True), (0, True), (None, False)):
            right.append(run(args.device, 3 if args.few else 8, pin_cap, unload))
    said = f"{sum(right)} of {len(right)} runs are right, {len(races)} races were found"
    print("\n".join([*races, said]))
    if args.json:
        args.json.write_text(json.dumps({"said": said, "races": races}))
    return 0 if all(right) and not races else 1


if __name__ == "__main__":
    sys.exit(main())
