# SPDX-License-Identifier: Apache-2.0
"""Modules of every make run from elsewhere: those that cannot be called, those with hooks of their own."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable

import pytest
import torch
from placing import plan_of
from torch import nn

import distorch
from distorch.model_blocks import inventory
from distorch.on_demand import readers
from distorch.patching import DiffPatch
from distorch.placed import PlacedModel, PlacementError
from distorch.placing import place

pytestmark = pytest.mark.usefixtures("sim")


class Lists(nn.Module):
    """Reads parameters that hang in containers, which have no forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.scales = nn.ParameterList([torch.full((4,), 2.0), torch.full((4,), 3.0)])
        self.nested = nn.ModuleDict({"shift": nn.ParameterDict({"by": torch.ones(4)})})
        self.holder = nn.Module()
        self.holder.register_buffer("more", torch.full((4,), 5.0))
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x * self.scales[0] * self.scales[1] + self.nested["shift"]["by"] + self.holder.more
        return self.linear(x)


def everything_on(model: nn.Module, device: str) -> PlacedModel:
    names = [b.name for b in inventory(model).blocks]
    return place(model, plan_of(dict.fromkeys(names, device)), compute="sim:0")


def same_as_before(model: nn.Module, device: str) -> None:
    x = torch.randn(2, 4)
    with torch.no_grad():
        expected = model(x)
        placed = everything_on(model, device)
        assert torch.equal(model(x).cpu(), expected)
        placed.verify()
        placed.unload()
        assert torch.equal(model(x), expected)


@pytest.mark.parametrize("device", ["sim:1", "cpu"])
def test_parameters_in_containers_come_with_the_module_that_reads_them(device: str) -> None:
    same_as_before(nn.Sequential(Lists()), device)


def test_only_modules_that_can_be_called_bring_weights() -> None:
    model = nn.Sequential(Lists())
    blocks = inventory(model).blocks
    found = readers(model, {b.module: list(b.tensors) for b in blocks})
    assert {type(module) for module in found} == {Lists, nn.Linear}
    names = [ref.qualified for ref in found[model[0]]]
    assert sorted(names) == ["0.holder.more", "0.nested.shift.by", "0.scales.0", "0.scales.1"]


def old_weight_norm(module: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(module)


@pytest.mark.parametrize(
    "norm",
    [
        old_weight_norm,
        nn.utils.spectral_norm,
        nn.utils.parametrizations.weight_norm,
        nn.utils.parametrizations.spectral_norm,
        nn.utils.parametrizations.orthogonal,
    ],
)
def test_weights_that_are_computed_before_each_call(norm: Callable[[nn.Module], nn.Module]) -> None:
    same_as_before(nn.Sequential(norm(nn.Linear(4, 4))).eval(), "sim:1")


def test_the_models_own_parameters_survive_the_input_hook() -> None:
    model = Lists()
    model.own = nn.Parameter(torch.ones(4))
    same_as_before(model, "sim:1")


def test_what_the_model_writes_into_its_arguments_reaches_the_caller() -> None:
    class Fills(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor, seen: list[int], out: dict[str, object]) -> torch.Tensor:
            seen.append(1)
            out["y"] = self.linear(x)
            return x

    model = Fills()
    everything_on(model, "sim:1")
    seen: list[int] = []
    out: dict[str, object] = {}
    model(torch.ones(4), seen, out=out)
    assert seen == [1]
    assert list(out) == ["y"]


def test_running_statistics_outlive_the_placement() -> None:
    x = torch.randn(8, 4)
    model, unsplit = nn.BatchNorm1d(4), nn.BatchNorm1d(4)
    placed = everything_on(model, "sim:1")
    with torch.no_grad():
        model(x)
        unsplit(x)
    placed.unload()
    assert torch.equal(model.running_mean, unsplit.running_mean)
    assert model.num_batches_tracked.item() == 1


def test_a_model_that_did_not_run_is_unloaded_without_a_copy() -> None:
    import distorch_sim

    model = nn.BatchNorm1d(4)
    placed = everything_on(model, "sim:1")
    distorch_sim.reset_counters()
    placed.unload()
    assert distorch_sim.transfers() == {}


def test_a_model_is_placed_once() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    placed = everything_on(model, "sim:1")
    for part in (model, model[1], nn.Sequential(model)):
        with pytest.raises(PlacementError, match=r"is placed already: unload that model first$"):
            everything_on(part, "sim:2")
    placed.verify()
    placed.unload()
    everything_on(model, "sim:2").unload()


def test_a_module_five_thousand_deep_is_placed() -> None:
    model: nn.Module = nn.Linear(4, 4)
    inner = model
    for _ in range(5000):
        outer = nn.Module()
        outer.inner = model
        model = outer
    placed = everything_on(model, "sim:1")
    assert inner.weight.device == torch.device("sim:1")
    placed.unload()
    assert inner.weight.device.type == "cpu"
    while (
        model is not inner
    ):  # freed from the outside in: a chain of this length is too long for a recursion
        model = model._modules.pop("inner")


def test_an_unloaded_model_is_not_patched() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    placed = everything_on(model, "sim:1")
    placed.unload()
    with pytest.raises(PlacementError, match=r"^the model was unloaded$"):
        placed.repatch({"0.weight": [DiffPatch(torch.ones(4, 4))]})
    assert not placed.loaded
    assert model[0].weight.device.type == "cpu"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failing_callback_does_not_keep_the_model(error: type[BaseException]) -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    before = model[0].weight
    placed = everything_on(model, "sim:1")
    called = []

    def fail(_: PlacedModel) -> None:
        called.append("first")
        raise error("no")

    placed.on_unload(fail)
    placed.on_unload(lambda _: called.append("second"))
    with pytest.raises(error, match="no"):
        placed.unload()
    assert called == ["first", "second"]
    assert model[0].weight is before
    assert not model._forward_pre_hooks
    gc.collect()
    assert torch.sim.memory_allocated(1) == 0


class Coded(torch.Tensor):
    """A quantised weight that keeps its scale beside its bytes and does not say so by `__tensor_flatten__`."""


def test_a_class_that_is_not_known_stays_with_its_reason_and_may_be_told_otherwise() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    model[1].weight = nn.Parameter(torch.randn(16, 16).as_subclass(Coded), requires_grad=False)
    model[1].weight.scale = torch.full((), 0.5)
    reasons = {block.name: block.pinned for block in inventory(model).blocks}
    assert reasons == {"0": "", "1": "Coded does not say how it is made from its bytes"}
    with torch.no_grad():
        expected = model(torch.ones(1, 16)).as_subclass(torch.Tensor)
        placed = distorch.place_string(model, "sim:1,*#sim:0", compute="sim:0")
        assert placed.placement() == {"0": "sim:1", "1": "sim:0"}
        assert torch.equal(model(torch.ones(1, 16)).as_subclass(torch.Tensor).cpu(), expected)
        placed.unload()
        placed = distorch.place_string(model, "sim:1,*#sim:0", compute="sim:0", pin=lambda *_: "")
        assert placed.placement() == {"0": "sim:1", "1": "sim:1"}
        assert torch.equal(model(torch.ones(1, 16)).as_subclass(torch.Tensor).cpu(), expected)
        placed.unload()
