# SPDX-License-Identifier: Apache-2.0
"""One tensor under several names, and several tensors in one storage."""

from __future__ import annotations

import pytest
import torch
from placing import plan_of
from torch import nn

from distorch.model_blocks import inventory
from distorch.patching import DiffPatch
from distorch.placing import place, place_string

pytestmark = pytest.mark.usefixtures("sim")


class Twice(nn.Module):
    """One parameter under two names, and a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.ones(4))
        self.second = self.first
        self.bias = nn.Parameter(torch.zeros(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.first * self.second + self.bias


@pytest.mark.parametrize("home", ["cpu", "sim:0", "sim:1"])
@pytest.mark.parametrize("name", ["0.first", "0.second"])
def test_a_patch_under_either_name_patches_the_tensor(home: str, name: str) -> None:
    model = nn.Sequential(Twice())
    with torch.no_grad():
        placed = place(
            model,
            plan_of({"0": home}),
            compute="sim:0",
            patches={name: [DiffPatch(torch.ones(4))]},
        )
        assert model[0].first is model[0].second
        assert model(torch.ones(4)).tolist() == [4.0] * 4
        placed.repatch({"0.second": [DiffPatch(torch.ones(4), 2.0)]})
        assert model[0].first is model[0].second
        assert model(torch.ones(4)).tolist() == [9.0] * 4
        placed.repatch(None)
        assert model(torch.ones(4)).tolist() == [1.0] * 4
    placed.unload()
    assert model[0].first is model[0].second
    assert model[0].first.device.type == "cpu"


def test_a_patch_given_under_both_names_is_applied_once() -> None:
    model = nn.Sequential(Twice())
    patch = [DiffPatch(torch.ones(4))]
    place(
        model,
        plan_of({"0": "sim:1"}),
        compute="sim:0",
        patches={"0.first": patch, "0.second": patch},
    )
    assert model[0].first.tolist() == [2.0] * 4


def test_a_patch_of_a_tied_head_reaches_the_embedding() -> None:
    model = nn.ModuleDict({"table": nn.Embedding(5, 4), "head": nn.Linear(4, 5, bias=False)})
    model["head"].weight = model["table"].weight
    before = model["table"].weight.detach().clone()
    patches = {"head.weight": [DiffPatch(torch.ones(5, 4))]}
    names = [b.name for b in inventory(model).blocks]
    placed = place(model, plan_of(dict.fromkeys(names, "sim:1")), compute="sim:0", patches=patches)
    assert model["table"].weight is model["head"].weight
    assert torch.equal(model["table"].weight.detach().cpu(), before + 1)
    placed.repatch({})
    assert model["table"].weight is model["head"].weight
    assert torch.equal(model["table"].weight.detach().cpu(), before)


def test_views_of_one_storage_keep_their_caps() -> None:
    flat = torch.randn(3000)
    model = nn.Sequential(*(nn.Linear(10, 10, bias=False) for _ in range(30)))
    for i, layer in enumerate(model):
        layer.weight.data = flat[100 * i : 100 * (i + 1)].view(10, 10)
    x = torch.randn(2, 10)
    with torch.no_grad():
        expected = model(x)
        placed = place_string(model, "sim:0,4kb;sim:1,4kb;cpu,*", compute="sim:0")
        assert torch.equal(model(x).cpu(), expected)
    held = placed.bytes_per_device()
    assert held == {"sim:0": 4000, "sim:1": 4000, "cpu": 4000}
    assert torch.sim.memory_allocated(1) == 4000


def test_two_types_of_the_same_memory_stay_two_tensors() -> None:
    model = nn.Module()
    model.part = nn.Module()
    whole = torch.arange(4, dtype=torch.int32)
    model.part.register_buffer("whole", whole)
    model.part.register_buffer("bits", whole.view(torch.float32))
    place(model, plan_of({"part": "sim:1"}), compute="sim:0")
    assert model.part.whole.tolist() == [0, 1, 2, 3]
    assert torch.equal(model.part.bits.cpu().view(torch.int32), whole)
