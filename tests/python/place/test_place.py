# SPDX-License-Identifier: Apache-2.0
"""Placing a model: where everything goes, and which bytes move."""

from __future__ import annotations

import random

import distorch_sim
import pytest
import torch
from placing import DEVICES, Model, State, plan_of, some_patches, spread
from torch import nn

import distorch
from distorch.allocation import Device
from distorch.model_blocks import Inventory, inventory
from distorch.patching import DiffPatch, LoraPatch
from distorch.placed import PlacementError
from distorch.placing import Progress, place, place_string


@pytest.mark.usefixtures("sim")
def test_everything_lies_where_the_plan_says_and_the_output_is_the_same(
    model: Model, ids: torch.Tensor, blocks: Inventory
) -> None:
    gate = {"value": torch.rand(32)}
    with torch.inference_mode():
        expected = model(ids, gate=gate)
        assignment = spread(blocks)
        placed = place(model, plan_of(assignment), compute="sim:0")
        assert placed.placement() == assignment
        assert {t.device.type for t in model.layers[1].buffers()} <= {"sim", "cpu"}
        assert sum(placed.bytes_per_device().values()) == blocks.total_bytes
        result = model(ids, gate=gate)
        assert result.device == torch.device("sim:0")
        assert torch.equal(result.cpu(), expected)
        assert model.head.weight is model.embedding.weight
        placed.verify()


@pytest.mark.usefixtures("sim")
def test_unpatched_blocks_go_straight_home_and_host_blocks_do_not_move(
    model: Model, blocks: Inventory
) -> None:
    assignment = spread(blocks)
    originals = {n: id(p) for n, p in model.named_parameters()}
    distorch_sim.reset_counters()
    placed = place(model, plan_of(assignment), compute="sim:0")
    wanted = {d: sum(b.bytes for b in blocks.blocks if assignment[b.name] == d) for d in DEVICES}
    assert distorch_sim.transfers() == {("cpu", d): wanted[d] for d in DEVICES if d != "cpu"}
    assert dict(placed.transfers) == distorch_sim.transfers()
    for name, parameter in model.named_parameters():
        assert (id(parameter) == originals[name]) == (parameter.device.type == "cpu")


@pytest.mark.usefixtures("sim")
@pytest.mark.parametrize("factors_on", ["cpu", "sim:0"])
def test_load_moves_patched_and_resident_bytes_and_nothing_else(
    model: Model, factors_on: str
) -> None:
    patches = {
        name: [
            LoraPatch(p.down.to(factors_on), p.up.to(factors_on), p.alpha, p.strength)
            if isinstance(p, LoraPatch)
            else DiffPatch(p.diff.to(factors_on), p.strength)
            for p in items
        ]
        for name, items in some_patches().items()
    }
    blocks = inventory(model, patches=patches)
    assignment = spread(blocks)
    distorch_sim.reset_counters()
    placed = place(model, plan_of(assignment), compute="sim:0", patches=patches)
    tensors = {r.qualified: r.get() for b in blocks.blocks for r in b.tensors}
    resident = {
        r.qualified for b in blocks.blocks if assignment[b.name] == "sim:0" for r in b.tensors
    }
    up = {id(tensors[name]): tensors[name].nbytes for name in resident | set(patches)}
    factors = sum(p.nbytes for items in patches.values() for p in items)
    expected_factors = factors if factors_on == "cpu" else 0
    assert placed.factor_bytes == expected_factors
    assert distorch_sim.copied("cpu", "sim:0") == sum(up.values()) + expected_factors


@pytest.mark.usefixtures("sim")
def test_compute_device_holds_at_most_its_share_and_one_block() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(128, 128) for _ in range(24)]).eval()
    g = torch.Generator().manual_seed(1)
    patches = {
        f"{i}.weight": [LoraPatch(torch.randn(4, 128, generator=g).to("sim:0"), torch.randn(128, 4, generator=g).to("sim:0"))]
        for i in range(24)
    }  # fmt: skip
    blocks = inventory(model, patches=patches)
    assignment = {b.name: DEVICES[i % 4] for i, b in enumerate(blocks.blocks)}
    share = sum(b.bytes for b in blocks.blocks if assignment[b.name] == "sim:0")
    largest = max(b.bytes for b in blocks.blocks)
    before = torch.sim.memory_allocated(0)
    torch.sim.reset_peak_memory_stats(0)
    place(model, plan_of(assignment), compute="sim:0", patches=patches)
    assert torch.sim.memory_allocated(0) == before + share
    assert torch.sim.max_memory_allocated(0) <= before + share + largest


@pytest.mark.usefixtures("sim")
def test_unload_copies_nothing_and_gives_everything_back(model: Model, ids: torch.Tensor) -> None:
    before = State.of(model)
    placed = place(
        model, plan_of(spread(inventory(model))), compute="sim:0", patches=some_patches()
    )
    with torch.inference_mode():
        model(ids)
    distorch_sim.reset_counters()
    placed.unload()
    assert distorch_sim.transfers() == {}
    assert State.of(model) == before
    assert before.device_bytes == (0, 0, 0)
    placed.unload()
    with pytest.raises(PlacementError, match="the model was unloaded"):
        placed.verify()


@pytest.mark.usefixtures("sim")
def test_a_thousand_random_placements_give_the_same_bits(ids: torch.Tensor) -> None:
    torch.manual_seed(1)
    model = Model(width=16, layers=1).eval()
    blocks = inventory(model)
    chance = random.Random(7)
    with torch.inference_mode():
        expected = model(ids)
        for _ in range(1000):
            assignment = {
                b.name: "sim:0" if b.pinned or b.tied else chance.choice(DEVICES)
                for b in blocks.blocks
            }
            placed = place(model, plan_of(assignment), compute="sim:0")
            assert torch.equal(model(ids).cpu(), expected)
            placed.unload()
    assert torch.sim.memory_allocated(1) == 0


class ReadsChildren(nn.Module):
    """Modules whose fast paths read the weights of their children, and recurrent ones, which keep a second list."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.lstm = nn.LSTM(16, 16, batch_first=True)
        self.norm = nn.utils.parametrizations.weight_norm(nn.Linear(16, 16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.encoder(x)
        x = self.attention(x, x, x)[0]
        return self.norm(self.lstm(x)[0])


@pytest.mark.usefixtures("sim")
@pytest.mark.parametrize("home", ["sim:1", "cpu"])
def test_modules_that_read_their_childrens_weights(home: str) -> None:
    torch.manual_seed(0)
    model = ReadsChildren().eval()
    x = torch.randn(2, 5, 16)
    with torch.inference_mode():
        expected = model(x)
        placed = place(
            model, plan_of({b.name: home for b in inventory(model).blocks}), compute="sim:0"
        )
        assert torch.equal(model(x).cpu(), expected)
        placed.unload()
        assert torch.equal(model(x), expected)


@pytest.mark.usefixtures("sim")
def test_buffers_written_while_running_are_kept() -> None:
    model = nn.BatchNorm1d(4).train()
    x = torch.randn(16, 4)
    expected = nn.BatchNorm1d(4).train()
    expected(x)
    place(model, plan_of({"(root)": "sim:1"}), compute="sim:0")
    with torch.no_grad():
        model(x)
    assert model.running_mean.device == torch.device("sim:1")
    assert torch.equal(model.running_mean.cpu(), expected.running_mean)
    assert model.num_batches_tracked.item() == 1


@pytest.mark.usefixtures("sim")
def test_a_missing_block_and_a_wrong_place_are_named(model: Model, blocks: Inventory) -> None:
    assignment = spread(blocks)
    del assignment["layers.1.out"]
    with pytest.raises(PlacementError, match=r"the plan has no place for layers\.1\.out"):
        place(model, plan_of(assignment), compute="sim:0")
    placed = place(model, plan_of(spread(blocks)), compute="sim:0")
    model.layers[3].out.weight = nn.Parameter(torch.zeros(32, 32))
    model.layers[3].out.bias = nn.Parameter(torch.zeros(32))
    with pytest.raises(PlacementError, match=r"block layers\.3\.out is on cpu, the plan says sim:"):
        placed.verify()


@pytest.mark.usefixtures("sim")
def test_the_host_is_refused_before_the_first_copy(
    model: Model, blocks: Inventory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distorch.hostmemory.available_bytes", lambda: 100)
    assignment = dict.fromkeys(spread(blocks), "cpu")
    distorch_sim.reset_counters()
    with pytest.raises(MemoryError, match=r"cpu: \d+ bytes asked for patched blocks, 100 free"):
        place(model, plan_of(assignment), compute="sim:0", patches=some_patches())
    assert distorch_sim.transfers() == {}


@pytest.mark.usefixtures("sim")
def test_progress_tells_blocks_and_bytes(model: Model, blocks: Inventory) -> None:
    seen: list[Progress] = []
    place(model, plan_of(spread(blocks)), compute="sim:0", progress=seen.append)
    assert [p.done_blocks for p in seen] == list(range(1, len(blocks.blocks) + 1))
    assert seen[-1].done_bytes == seen[-1].bytes == blocks.total_bytes
    assert f"block {len(blocks.blocks)}/{len(blocks.blocks)}" in str(seen[-1])


@pytest.mark.usefixtures("sim")
def test_a_string_places_within_its_caps(model: Model, ids: torch.Tensor) -> None:
    with torch.inference_mode():
        expected = model(ids)
        placed = place_string(model, "sim:0,30kb;sim:1,20kb;sim:2,25%;cpu,*", compute="sim:0")
        totals = placed.bytes_per_device()
        assert totals["sim:0"] <= 30 * 1024
        assert totals["sim:1"] <= 20 * 1024
        assert set(totals) == set(DEVICES)
        assert torch.equal(model(ids).cpu(), expected)
        placed.unload()
    with pytest.raises(distorch.AllocationError, match=r"sim:7"):
        place_string(model, "sim:7,1gb;cpu,*", compute="sim:0")
    with pytest.raises(distorch.PlanError):
        place_string(model, "sim:0,1b;sim:1,1b", compute="sim:0", options=None)
    assert torch.sim.memory_allocated(0) < 2**20


@pytest.mark.usefixtures("sim")
def test_a_model_that_fills_the_host_may_stay_there(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = [Device("sim:0", 64 << 20, 64 << 20), Device("cpu", 16 << 30, 100)]
    monkeypatch.setattr("distorch.device_table.device_table", lambda *_: table)
    placed = place_string(model, "sim:0,30kb;cpu,*", compute="sim:0")
    assert placed.bytes_per_device()["cpu"] > 100
    placed.unload()
    with pytest.raises(distorch.PlanError, match="does not fit"):
        place_string(model, "sim:0,30kb;cpu,*", compute="sim:0", devices=table)


class Layered(nn.Module):
    """Eight layers of two blocks of 64 KB; its input is a part of the first."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(128, 128, bias=False), nn.Linear(128, 128, bias=False))
            for _ in range(8)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.mark.usefixtures("sim")
@pytest.mark.parametrize(
    ("text", "resident", "slots"),
    [("sim:0,640kb;cpu,*", 5, 2), ("sim:0,640kb;sim:1,256kb;cpu,*", 3, 3), ("sim:0,2mb", 16, 0)],
)
def test_weights_and_slots_of_a_string_stay_within_its_cap(text, resident, slots) -> None:
    model, x = Layered().eval(), torch.rand(4, 128)
    with torch.no_grad():
        expected = model(x)
    placed = distorch.place(model, f"{text}#sim:0")
    assert placed.compute == "sim:0"
    assert placed.plan.slots == slots
    assert placed.bytes_per_device()["sim:0"] == resident << 16
    with torch.no_grad():
        assert torch.equal(model(x.to("sim:0")).cpu(), expected)
    if slots:
        assert placed.executor.engine.slots == slots
        assert placed.executor.slot_bytes <= placed.plan.slot_bytes
    cap = placed.plan.caps["sim:0"]
    assert placed.bytes_per_device()["sim:0"] + placed.plan.staging["sim:0"] <= cap
    placed.unload()


@pytest.mark.usefixtures("sim")
def test_the_string_says_where_the_model_runs() -> None:
    placed = distorch.place(Layered(), "sim:1,*#sim:1")
    assert placed.compute == "sim:1"
    placed.unload()
    placed = distorch.place(Layered(), "sim:1,*#sim:1", compute="sim:0")
    assert placed.compute == "sim:0"
    placed.unload()
