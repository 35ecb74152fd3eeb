# SPDX-License-Identifier: Apache-2.0
"""Random placements of small models, all of it from a seed: the bits of the resident model, the bytes of the plan."""

from __future__ import annotations

import collections
import random
from dataclasses import dataclass

import distorch_sim
import torch
from placing import State
from small_models import MODELS
from torch import nn

import distorch
from distorch.allocation import Options, PlanError
from distorch.model_blocks import inventory
from distorch.patching import DiffPatch, LoraPatch, Patches
from distorch.placed import bytes_per_device


@dataclass(frozen=True)
class Case:
    """What was drawn."""

    model: str
    text: str
    patches: int
    options: Options
    streamed: bool

    def __str__(self) -> str:
        how = "streamed" if self.streamed else "lent"
        return f"{self.model}, {self.text!r}, {self.patches} patches, {how}"


def _amount(rng: random.Random, of: int) -> str:
    return rng.choice(
        [f"{rng.randint(1, 33)}%", f"{rng.randint(0, of)}b", f"{rng.randint(0, of // 1024)}kb"]
    )


def _text(rng: random.Random, of: int) -> str:
    devices = rng.randint(1, 4)
    names = ["sim:0", *rng.sample(["sim:1", "sim:2", "cpu"], devices - 1)]
    if devices == 1:
        return rng.choice(["sim:0,*", "sim:0,30%;cpu,*", f"#sim:0;{of // 2}b;cpu"])
    form = rng.random()
    if form < 0.15:
        return f"#sim:0;{rng.randint(0, of)}b;{','.join(names[1:])}"
    if form < 0.4:
        entries = [f"{name},{rng.randint(1, 50)}%" for name in names]
    else:
        entries = [f"{name},{_amount(rng, of)}" for name in names]
        entries[-1] = f"{names[-1]},*"
    modes = ["", "", ",mode=stream", ",mode=migrate"]
    entries = [
        e + (rng.choice(modes) if not e.startswith(("sim:0", "cpu")) else "") for e in entries
    ]
    rng.shuffle(entries)
    return ";".join(entries)


def _patches(rng: random.Random, model: nn.Module) -> Patches:
    found: dict[str, list[LoraPatch | DiffPatch]] = collections.defaultdict(list)
    weights = [(n, p) for n, p in model.named_parameters() if p.dim() >= 1]
    for name, weight in rng.sample(weights, rng.randint(0, len(weights) // 3)):
        if weight.dim() == 2 and rng.random() < 0.8:
            rank = rng.randint(1, 4)
            down, up = torch.randn(rank, weight.shape[1]), torch.randn(weight.shape[0], rank)
            found[name].append(LoraPatch(down, up, alpha=rng.uniform(1, 8), strength=rng.random()))
        else:
            found[name].append(DiffPatch(torch.randn(weight.shape), rng.random()))
    return dict(found)


def _same(left: torch.Tensor, right: torch.Tensor) -> bool:
    left, right = (t.cpu().contiguous().flatten().view(torch.uint8) for t in (left, right))
    return torch.equal(left, right)  # the bits: a number that is none equals itself


def _expected(model: nn.Module, patches: Patches, value: torch.Tensor) -> torch.Tensor:
    resident = distorch.place_string(model, "sim:0,*", compute="sim:0", patches=patches)
    output = model(value.to("sim:0")).cpu()
    resident.unload()
    return output


def check(seed: int) -> Case | None:
    """Place, run, patch anew, run and unload one random case; None where the string asks for what does not fit.

    Raises AssertionError, which says what was drawn.
    """
    rng = random.Random(seed)
    torch.manual_seed(seed)
    distorch_sim.install([64 << 20] * 3)
    name = rng.choice(list(MODELS))
    make, feed = MODELS[name]
    with torch.inference_mode():
        # Weights that are lent ask for no gradient, and torch multiplies by one that does with another kernel where
        # the other factor is not contiguous: like is compared with like.
        model, value = make().eval(), feed()
    size = sum(bytes_per_device(inventory(model)).values())
    options = Options(
        order=rng.choice(["auto", "contiguous", "strided"]), slots=rng.choice([0, None])
    )
    first, second = _patches(rng, model), _patches(rng, model)
    case = Case(name, _text(rng, size), len(first), options, rng.random() < 0.7)
    found = State.of(model)
    with torch.inference_mode():
        expected = _expected(model, first, value)
        try:
            placed = distorch.place_string(
                model, case.text, compute="sim:0", patches=first, options=options
            )
        except PlanError:
            return None
        planned = {device: n for device, n in placed.plan.totals.items() if n}
        assert placed.bytes_per_device() == planned, f"{case}: the bytes are not the plan's"
        if case.streamed:
            placed.stream()
        for step in range(3):
            assert _same(model(value.to("sim:0")), expected), f"{case}: step {step} differs"
        placed.repatch(second)
        for _ in range(2):
            told = model(value.to("sim:0")).cpu()
        placed.unload()
        assert _same(told, _expected(model, second, value)), f"{case}: it differs with new patches"
    assert State.of(model) == found, f"{case}: unloaded, the model is not as found"
    return case
