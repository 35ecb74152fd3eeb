# SPDX-License-Identifier: Apache-2.0
"""Bytes over each link on simulated devices: DisTorch beside the predecessor's way and accelerate's, in the same run.

Seconds mean nothing there, so there are none. Each way loads a small diffusion transformer, runs a few steps and unloads;
the simulated devices count every byte. The results of all ways are compared bit for bit with the resident model's, and
a way of ours that moves more than a rival's is an error.
"""

from __future__ import annotations

import gc
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch

Row = tuple[str, float, str, str]

STEPS = 3
DEVICE = "sim:0"


@dataclass(frozen=True)
class Bytes:
    """What one way moved: while loading, in one step (the last), while unloading; to and from the device."""

    load_in: int
    load_out: int
    step_in: int
    step_out: int
    unload_out: int


def _modules() -> tuple[ModuleType, ModuleType]:
    """Import `dit` and `ways`, which lie in bench/gpu."""
    folder = str(Path(__file__).parent / "gpu")
    if folder not in sys.path:
        sys.path.append(folder)
    import dit
    import ways

    return dit, ways


def compare(size: str = "flux-12b", share: float = 0.5) -> tuple[dict[str, Bytes], int]:
    """Run every way on the tiny model of this size; returns their bytes and those of the blocks that are away.

    Raises:
        RuntimeError: a way's result differs from the resident model's, or ours moved more than a rival's.
    """
    import distorch_sim

    dit, ways = _modules()
    gc.collect()
    distorch_sim.install([256 << 20])
    shape = dit.TINY[size]
    expected = None
    found: dict[str, Bytes] = {}
    streamed_bytes = 0
    for name, way in ways.WAYS.items():
        model = dit.build(shape, torch.float32)
        away = ways.spread(dit.groups(model), share) if name != "resident" else []
        streamed_bytes = ways.group_bytes(model, away)
        args = dit.inputs(shape, 16, DEVICE, torch.float32, text_tokens=8)
        result, found[name] = _run(way, model, away, args)
        expected = result if expected is None else expected
        if not torch.equal(result, expected):
            raise RuntimeError(f"{name} does not give the resident model's result")
        del model
        gc.collect()
    _check(found)
    return found, streamed_bytes


def _run(way, model, away, args) -> tuple[torch.Tensor, Bytes]:  # type: ignore[no-untyped-def]
    import distorch_sim

    def moved() -> tuple[int, int]:
        counts = distorch_sim.copied("cpu", DEVICE), distorch_sim.copied(DEVICE, "cpu")
        distorch_sim.reset_counters()
        return counts

    moved()
    with torch.inference_mode():
        with way(model, DEVICE, away):
            load = moved()
            for _ in range(STEPS):
                moved()
                result = model(*args)
            step = moved()
            result = result.cpu()
            moved()
        unload = moved()
    return result, Bytes(*load, *step, unload[1])


def _check(found: dict[str, Bytes]) -> None:
    ours = found["streamed"]
    for name, rival in found.items():
        if name in ("streamed", "resident"):
            continue
        for phase in ("load_in", "load_out", "step_in", "step_out", "unload_out"):
            if getattr(ours, phase) > getattr(rival, phase):
                raise RuntimeError(
                    f"streaming moves {getattr(ours, phase)} bytes ({phase}), {name} "
                    f"{getattr(rival, phase)}"
                )


def main(moment: bool = False) -> list[Row]:
    """Return the rows of bench/run.py; `moment` changes nothing: there is no time in them."""
    del moment
    torch.set_num_threads(
        1
    )  # tiny models: threads that wait for each other cost more than they bring
    rows: list[Row] = []
    for size in ("flux-12b", "wan-14b"):
        for share in (0.5, 1.0):
            found, away = compare(size, share)
            for name in ("streamed", "per_leaf", "accelerate"):
                each = found[name]
                label = (
                    f"back {each.step_out}, load {each.load_in}+{each.load_out}, "
                    f"unload {each.unload_out}; away {away}"
                )
                row = f"bytes a step: tiny {size}, {share:.0%} away, {name}"
                rows.append((row, float(each.step_in), "bytes", label))
    return rows


if __name__ == "__main__":
    for name, value, unit, label in main():
        print(f"{name:48} {value:10.0f} {unit}  {label}")
