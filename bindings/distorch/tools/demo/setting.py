# SPDX-License-Identifier: Apache-2.0
"""Where the demo runs, what it asks for, and the least that must move for it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from distorch.model_blocks import Inventory
from distorch.placed import PlacedModel
from distorch.tools.demo.model import DemoError

MB = 2**20


@dataclass(frozen=True)
class Setting:
    """Where the demo runs: the compute device, an allocation string, and what each device may take in bytes."""

    compute: str
    donors: tuple[str, ...]
    string: str
    caps: dict[str, int]
    simulated: bool


def choose_setting(total: int) -> Setting:
    """Use CUDA devices where there are any, else three simulated ones of which the first cannot hold the model."""
    count = torch.cuda.device_count()
    if count:
        compute, donors = "cuda:0", tuple(f"cuda:{i}" for i in range(1, min(count, 3)))
    else:
        try:
            import distorch_sim
        except ImportError as error:
            raise DemoError(
                "there is no GPU, and the simulated one is not built; run `make demo` in a checkout"
            ) from error
        distorch_sim.install([72 * MB, 24 * MB, 24 * MB])
        compute, donors = "sim:0", ("sim:1", "sim:2")
    first = int(total * 0.64) // MB
    caps = {compute: first * MB, **dict.fromkeys(donors, 12 * MB), "cpu": 0}
    entries = [f"{device},{caps[device] // MB}mb" for device in (compute, *donors)]
    return Setting(compute, donors, ";".join([*entries, "cpu,*"]), caps, not count)


class FixedPlan:
    """A plan made by hand."""

    def __init__(self, placement: dict[str, str]) -> None:
        self.placement = placement


def least_transfers(placed: PlacedModel, blocks: Inventory) -> dict[tuple[str, str], int]:
    """Return the fewest bytes each link must carry: patched weights pass the compute device, all others go straight."""
    least: dict[tuple[str, str], int] = {}

    def add(source: str, target: str, count: int) -> None:
        if source != target and count:
            least[source, target] = least.get((source, target), 0) + count

    seen: set[int] = set()
    for block in blocks.blocks:
        home = placed.assignment[block.name]
        for ref in block.tensors:
            tensor = ref.get()
            if id(tensor) in seen:
                continue
            seen.add(id(tensor))
            if ref.qualified in placed.patches:
                add("cpu", placed.compute, tensor.nbytes)
                add(placed.compute, home, tensor.nbytes)
            else:
                add("cpu", home, tensor.nbytes)
    return least
