# SPDX-License-Identifier: Apache-2.0
"""What a failure leaves behind: while loading, patching again, running, unloading."""

from __future__ import annotations

import distorch_sim
import pytest
import torch
from placing import DEVICES, Layer, Model, State, lora, plan_of, some_patches, spread
from torch import nn

from distorch.model_blocks import inventory
from distorch.patching import DiffPatch, LoraPatch, PatchError, Patches
from distorch.placing import Progress, place

FAULT = r"injected|patching a weight .* on sim:0 failed"


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
