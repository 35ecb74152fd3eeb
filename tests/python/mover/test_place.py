# SPDX-License-Identifier: Apache-2.0
"""Placing a model: where everything goes, which bytes move, and what a failure leaves behind."""

from __future__ import annotations

import random

import distorch_sim
import pytest
import torch
from placing import DEVICES, Layer, Model, State, plan_of, spread
from torch import nn

import distorch
from distorch.allocation import Device
from distorch.inventory import Inventory, inventory
from distorch.mover import Progress, place, place_string
from distorch.patching import DiffPatch, LoraPatch, PatchError, Patches
from distorch.placed import PlacementError

FAULT = r"injected|patching a weight .* on sim:0 failed"


def lora(out: int, inner: int, rank: int = 4, seed: int = 3, strength: float = 0.7) -> LoraPatch:
    g = torch.Generator().manual_seed(seed)
    down, up = torch.randn(rank, inner, generator=g), torch.randn(out, rank, generator=g)
    return LoraPatch(down, up, alpha=8.0, strength=strength)


def some_patches() -> Patches:
    return {
        "layers.0.qkv.weight": [lora(96, 32)],
        "layers.1.out.weight": [lora(32, 32, seed=4), lora(32, 32, rank=2, seed=5)],
        "layers.2.mlp.0.weight": [DiffPatch(torch.full((64, 32), 0.25), 0.5)],
        "layers.3.mlp.2.bias": [DiffPatch(torch.ones(32))],
    }


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
def test_patched_weights_equal_float64_within_one_rounding(model: Model) -> None:
    patches = some_patches()
    before = {n: p.detach().double().clone() for n, p in model.named_parameters()}
    place(model, plan_of(spread(inventory(model))), compute="sim:0", patches=patches)
    after = dict(model.named_parameters())
    for name, items in patches.items():
        expected = before[name]
        for p in items:
            delta = p.up.double() @ p.down.double() if isinstance(p, LoraPatch) else p.diff.double()
            expected = expected + p.scale * delta
        assert torch.allclose(after[name].cpu().double(), expected, rtol=0, atol=4e-6), name
    assert torch.equal(after["layers.3.out.weight"].cpu().double(), before["layers.3.out.weight"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_low_precision_weights_are_patched_in_float32_and_rounded_once(dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(0)
    model = nn.Linear(64, 48, bias=False)
    model.weight = nn.Parameter(torch.randn(48, 64, generator=g).to(dtype), requires_grad=False)
    weight = model.weight.float()
    patch = LoraPatch(
        torch.randn(8, 64, generator=g) / 8, torch.randn(48, 8, generator=g) / 8, 8.0, 1.5
    )
    placed = place(model, plan_of({"(root)": "cpu"}), compute="cpu", patches={"weight": [patch]})
    exact = weight.double() + patch.scale * (patch.up.double() @ patch.down.double())
    rounded = exact.to(torch.float32).to(dtype)
    # Equal but where float32 and float64 fall on different sides of a rounding boundary.
    different = (model.weight.float() != rounded.float()).float().mean().item()
    assert different < 0.01
    assert model.weight.dtype == dtype
    placed.unload()
    assert torch.equal(model.weight.float(), weight)


@pytest.mark.parametrize("middle", [False, True])
def test_convolutions_are_patched(middle: bool) -> None:
    g = torch.Generator().manual_seed(0)
    model = nn.Conv2d(6, 10, 3, bias=False)
    before = model.weight.detach().clone()
    up = torch.randn(10, 4, 1, 1, generator=g)
    if middle:
        down, mid = torch.randn(4, 6, 1, 1, generator=g), torch.randn(4, 4, 3, 3, generator=g)
        delta = torch.einsum("or,rshw,si->oihw", up[..., 0, 0], mid, down[..., 0, 0])
    else:
        down, mid = torch.randn(4, 6, 3, 3, generator=g), None
        delta = torch.einsum("or,rihw->oihw", up[..., 0, 0], down)
    patch = LoraPatch(down, up, alpha=2.0, strength=0.5, mid=mid)
    place(model, plan_of({"(root)": "cpu"}), compute="cpu", patches={"weight": [patch]})
    assert torch.allclose(model.weight, before + 0.25 * delta, atol=1e-5)


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
def test_a_changed_strength_touches_patched_tensors_only(model: Model) -> None:
    placed = place(
        model, plan_of(spread(inventory(model))), compute="sim:0", patches=some_patches()
    )
    before = dict(model.named_parameters())
    stronger = {"layers.0.qkv.weight": [lora(96, 32, strength=1.0)]}
    placed.repatch(stronger)
    changed = {n for n, p in model.named_parameters() if p is not before[n]}
    assert changed == set(some_patches())
    fresh = Model().eval()
    torch.manual_seed(1)
    fresh = Model().eval()
    place(fresh, plan_of(spread(inventory(fresh))), compute="sim:0", patches=stronger)
    for (name, a), (_, b) in zip(model.named_parameters(), fresh.named_parameters(), strict=True):
        assert a.device == b.device, name
        assert torch.equal(a.cpu(), b.cpu()), name
    placed.repatch(None)
    assert model.layers[0].qkv.weight.device == before["layers.0.qkv.weight"].device


def count_steps(model: Model) -> tuple[int, int]:
    """Return how many allocations and copies a load makes."""
    distorch_sim.reset_counters()
    placed = place(
        model, plan_of(spread(inventory(model))), compute="sim:0", patches=some_patches()
    )
    allocations = sum(distorch_sim.allocation_count(d) for d in DEVICES[:3])
    copies = distorch_sim.copy_count()
    placed.unload()
    return allocations, copies


@pytest.mark.usefixtures("sim")
@pytest.mark.parametrize("sticky", [False, True])
@pytest.mark.parametrize("kind", ["allocation", "copy"])
def test_a_fault_at_any_step_leaves_the_model_as_it_was(
    model: Model, kind: str, sticky: bool
) -> None:
    steps = count_steps(model)[kind == "copy"]
    assert steps > 30
    before = State.of(model)
    for nth in range(1, steps + 1):
        error = torch.OutOfMemoryError if kind == "allocation" else RuntimeError
        with (
            distorch_sim.faults(**{kind: nth}, sticky=sticky),
            pytest.raises(error, match=FAULT),
        ):
            place(model, plan_of(spread(inventory(model))), compute="sim:0", patches=some_patches())
        assert State.of(model) == before, nth
    placed = place(
        model, plan_of(spread(inventory(model))), compute="sim:0", patches=some_patches()
    )
    placed.verify()


@pytest.mark.usefixtures("sim")
@pytest.mark.parametrize("kind", ["allocation", "copy"])
def test_a_fault_while_repatching_leaves_the_model_as_it_was(model: Model, kind: str) -> None:
    placed = place(
        model, plan_of(spread(inventory(model))), compute="sim:0", patches=some_patches()
    )
    before, transfers = State.of(model), dict(placed.transfers)
    for nth in range(1, 5):
        with distorch_sim.faults(**{kind: nth}), pytest.raises(RuntimeError, match=FAULT):
            placed.repatch({"layers.0.qkv.weight": [lora(96, 32, strength=2.0)]})
        assert State.of(model) == before, nth
        assert dict(placed.transfers) == transfers


@pytest.mark.usefixtures("sim")
def test_unload_needs_neither_memory_nor_copies(model: Model) -> None:
    before = State.of(model)
    placed = place(
        model, plan_of(spread(inventory(model))), compute="sim:0", patches=some_patches()
    )
    with distorch_sim.faults(allocation=1, copy=1, sticky=True):
        placed.unload()
    assert State.of(model) == before


@pytest.mark.usefixtures("sim")
@pytest.mark.parametrize(
    ("patches", "message"),
    [
        (
            {"layers.9.x": [DiffPatch(torch.ones(1))]},
            r"layers\.9\.x: the model has no such parameter",
        ),
        (
            {"layers.0.qkv.weight": [LoraPatch(torch.ones(4, 31), torch.ones(96, 4))]},
            r"layers\.0\.qkv\.weight: a LoRA with up \(96, 4\), down \(4, 31\) does not fit a weight \(96, 32\)",
        ),
        (
            {"layers.0.qkv.bias": [DiffPatch(torch.ones(7))]},
            r"layers\.0\.qkv\.bias: a difference \(7,\) does not fit a weight \(96,\)",
        ),
    ],
    ids=["name", "lora", "diff"],
)
def test_a_patch_that_does_not_fit_is_refused_before_anything_moves(
    model: Model, patches: Patches, message: str
) -> None:
    before = State.of(model)
    distorch_sim.reset_counters()
    with pytest.raises(PatchError, match=message):
        place(model, plan_of(spread(inventory(model))), compute="sim:0", patches=patches)
    assert distorch_sim.transfers() == {}
    assert State.of(model) == before


@pytest.mark.usefixtures("sim")
def test_an_interrupt_while_loading_leaves_the_model_as_it_was(model: Model) -> None:
    before = State.of(model)

    def interrupt(progress: Progress) -> None:
        if progress.done_blocks == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        place(model, plan_of(spread(inventory(model))), compute="sim:0", progress=interrupt)
    assert State.of(model) == before


@pytest.mark.usefixtures("sim")
def test_an_error_while_running_puts_the_stored_weights_back(
    model: Model, ids: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.inference_mode():
        expected = model(ids)
        place(model, plan_of(spread(inventory(model))), compute="sim:0")
        before = State.of(model)
        real = Layer.forward

        def fail(self: Layer, x: torch.Tensor, **kwargs: object) -> torch.Tensor:
            real(self, x)
            if self is model.layers[2]:
                raise ValueError("in the middle")
            return real(self, x)

        with monkeypatch.context() as patch:
            patch.setattr(Layer, "forward", fail)
            with pytest.raises(ValueError, match="in the middle"):
                model(ids)
        assert State.of(model) == before
        assert torch.equal(model(ids).cpu(), expected)


@pytest.mark.usefixtures("sim")
def test_a_keyboard_interrupt_while_running_is_put_right_before_the_next_run(
    model: Model, ids: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.inference_mode():
        expected = model(ids)
        placed = place(model, plan_of(spread(inventory(model))), compute="sim:0")
        before = State.of(model)

        def interrupt(*_: object, **__: object) -> torch.Tensor:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(nn.functional, "gelu", interrupt)
            with pytest.raises(KeyboardInterrupt):
                model(ids)
        assert torch.equal(model(ids).cpu(), expected)
        assert State.of(model) == before
        placed.unload()
        assert torch.equal(model(ids), expected)


@pytest.mark.usefixtures("sim")
def test_running_out_of_memory_while_running_leaves_a_model_that_runs(
    model: Model, ids: torch.Tensor
) -> None:
    with torch.inference_mode():
        expected = model(ids)
        place(model, plan_of(spread(inventory(model))), compute="sim:0")
        before = State.of(model)
        for nth in (1, 4, 9, 20, 33):
            with distorch_sim.faults(allocation=nth), pytest.raises(torch.OutOfMemoryError):
                model(ids)
            assert State.of(model) == before, nth
        assert torch.equal(model(ids).cpu(), expected)


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
    monkeypatch.setattr("distorch.devices.to_allocation_devices", lambda **_: table)
    placed = place_string(model, "sim:0,30kb;cpu,*", compute="sim:0")
    assert placed.bytes_per_device()["cpu"] > 100
    placed.unload()
    with pytest.raises(distorch.PlanError, match="does not fit"):
        place_string(model, "sim:0,30kb;cpu,*", compute="sim:0", devices=table)
