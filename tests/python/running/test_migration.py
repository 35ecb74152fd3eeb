# SPDX-License-Identifier: Apache-2.0
"""Groups that run where they are stored: same bits, exactly the activations that have to cross, clean after errors."""

from __future__ import annotations

import collections
import dataclasses
import gc
from typing import Any

import distorch_sim
import pytest
import torch
from placing import Layer, State, plan_of
from torch import nn

from distorch.model_blocks import inventory
from distorch.nested import map_tensors
from distorch.placed import PlacedModel
from distorch.placing import place, place_string
from distorch.run import StreamedExecutor
from distorch.run.travelling import TravellingTensor, travelling

pytestmark = pytest.mark.usefixtures("sim")


class Deep(nn.Module):
    """Eight layers; a conditioning tensor that all of them take."""

    def __init__(self, layer: type[nn.Module] = Layer) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layer(32) for _ in range(8))
        self.head = nn.Linear(32, 7)

    def forward(self, x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x, gate={"value": gate})
        return self.head(x)


@pytest.fixture
def model() -> Deep:
    torch.manual_seed(3)
    return Deep().eval()


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(4))


@pytest.fixture
def gate() -> torch.Tensor:
    return torch.rand(32, generator=torch.Generator().manual_seed(5))


def placed_on(model: nn.Module, homes: dict[int, str], compute: str = "sim:0") -> PlacedModel:
    """Place the layers named in `homes` there, all else on the compute device."""
    assignment = {}
    for block in inventory(model).blocks:
        layer = int(block.group.split(".")[1]) if block.group else -1
        assignment[block.name] = homes.get(layer, compute)
    return place(model, plan_of(assignment), compute=compute)


def middle(device: str) -> dict[int, str]:
    return dict.fromkeys((2, 3, 4, 5), device)


def test_consecutive_groups_hand_over_and_shared_inputs_are_sent_once(
    model: Deep, x: torch.Tensor, gate: torch.Tensor
) -> None:
    with torch.inference_mode():
        expected = model(x, gate)
        executor = StreamedExecutor(placed_on(model, middle("sim:1")), modes={"sim:1": "migrate"})
        assert torch.equal(model(x, gate).cpu(), expected)
        assert executor.migrated == {}, "the first step learns"
        # The second learns which inputs are shared.
        assert torch.equal(model(x, gate).cpu(), expected)
        assert executor.migrated == {"sim:1": [f"layers.{i}" for i in (2, 3, 4, 5)]}
        assert executor.streamed == []
        for _ in range(3):
            distorch_sim.reset_counters()
            assert torch.equal(model(x, gate).cpu(), expected)
            assert distorch_sim.copied("sim:0", "sim:1") == x.nbytes + gate.nbytes
            assert distorch_sim.copied("sim:1", "sim:0") == x.nbytes
            assert distorch_sim.copied("cpu", "sim:1") == 0
        assert executor.bytes_per_step == 0
        assert executor.slot_bytes == 0


@pytest.mark.parametrize(
    "homes",
    [
        {0: "sim:1", 1: "sim:2", 2: "sim:1", 3: "sim:2", 7: "sim:1"},
        {i: "sim:1" if i < 4 else "sim:2" for i in range(8)},
        {1: "cpu", 3: "sim:1", 4: "sim:1", 6: "cpu"},
    ],
)
@pytest.mark.parametrize("inference", [True, False])
def test_any_mixture_of_donors_gives_the_same_bits(
    model: Deep, x: torch.Tensor, gate: torch.Tensor, homes: dict[int, str], inference: bool
) -> None:
    with torch.inference_mode(inference), torch.no_grad():
        expected = model(x, gate)
        placed = placed_on(model, homes)
        StreamedExecutor(placed, modes={"sim:1": "migrate", "sim:2": "migrate", "cpu": "stream"})
        for step in range(4):
            assert torch.equal(model(x, gate).cpu(), expected), step
        placed.verify()


def test_the_host_computes_when_the_user_says_so(
    model: Deep, x: torch.Tensor, gate: torch.Tensor
) -> None:
    with torch.inference_mode():
        expected = model(x, gate)
        executor = StreamedExecutor(placed_on(model, middle("cpu")), modes={"cpu": "migrate"})
        for _ in range(3):
            assert torch.equal(model(x, gate).cpu(), expected)
        assert list(executor.migrated) == ["cpu"]


def test_the_mode_in_the_string_is_followed(
    model: Deep, x: torch.Tensor, gate: torch.Tensor
) -> None:
    with torch.inference_mode():
        expected = model(x, gate)
        placed = place_string(model, "sim:0,30%;sim:1,*,mode=migrate", compute="sim:0")
        executor = StreamedExecutor(placed)
        for _ in range(3):
            assert torch.equal(model(x, gate).cpu(), expected)
        assert len(executor.migrated["sim:1"]) >= 4
        with pytest.raises(ValueError, match="mode of sim:1 must be auto, stream or migrate"):
            StreamedExecutor(placed, modes={"sim:1": "fly"})


@dataclasses.dataclass
class Pair:
    first: torch.Tensor
    second: torch.Tensor


class Nested(nn.Module):
    """Takes and returns every kind of container, and gives one input back untouched."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: Any, *, gate: dict[str, Any]) -> Any:
        if isinstance(x, torch.Tensor):
            x = (Pair(x, x + 1), [x * 2])
        pair, (third,) = x
        gate["seen"] = gate.get("seen", 0) + 1
        gate["last"] = pair.second
        return Pair(self.linear(pair.first) * gate["value"], pair.second), [third]


class Unpack(nn.Module):
    """The eight of them, with code between the groups that computes with what they return."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Nested(32) for _ in range(8))

    def forward(self, x: torch.Tensor, gate: torch.Tensor) -> Any:
        options: dict[str, Any] = {"value": gate}
        value: Any = x
        for i, layer in enumerate(self.layers):
            value = layer(value, gate=options)
            if i == 3:
                value[0].first += gate  # in place, between two groups
                value = (Pair(value[0].first, value[0].second[:, :]), value[1])
        assert options["seen"] == 8
        return value[0].first, value[0].second, value[1][0], options["last"]


def test_nested_values_and_code_between_groups(x: torch.Tensor, gate: torch.Tensor) -> None:
    torch.manual_seed(0)
    model = Unpack().eval()
    with torch.inference_mode():
        expected = model(x, gate)
        StreamedExecutor(
            placed_on(model, {i: f"sim:{i // 2 % 2 + 1}" for i in range(8)}),
            modes={"sim:1": "migrate", "sim:2": "migrate"},
        )
        for step in range(4):
            result = model(x, gate)
            for got, wanted in zip(result, expected, strict=True):
                assert type(got) is torch.Tensor, "what leaves the model is an ordinary tensor"
                assert got.device == torch.device("sim:0")
                assert torch.equal(got.cpu(), wanted), step


def test_dictionaries_and_lists_are_changed_where_they_are() -> None:
    inside = collections.defaultdict(list, {"x": torch.ones(1), "n": [torch.ones(1)]})
    result = map_tensors({"deep": inside}, lambda tensor, _: tensor + 1)["deep"]
    assert result is inside
    assert (result["x"].item(), result["n"][0].item(), result["new"]) == (2.0, 2.0, [])


class Writing(nn.Module):
    """Writes to its input; returns it, or nothing but a side effect."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: torch.Tensor, *, gate: dict[str, torch.Tensor]) -> torch.Tensor:
        x += self.linear(x)
        gate["value"].mul_(0.5)
        return x


@pytest.mark.parametrize("inference", [True, False])
def test_inputs_that_are_written_to(inference: bool, x: torch.Tensor, gate: torch.Tensor) -> None:
    torch.manual_seed(0)
    model = Deep(Writing).eval()
    with torch.inference_mode(inference), torch.no_grad():
        reference = gate.clone()
        expected = model(x.clone(), reference)
        StreamedExecutor(
            placed_on(model, {1: "sim:1", 2: "sim:1", 5: "sim:2"}),
            modes={"sim:1": "migrate", "sim:2": "migrate"},
        )
        for step in range(4):
            there = gate.to("sim:0")
            assert torch.equal(model(x.to("sim:0"), there).cpu(), expected), step
            assert torch.equal(there.cpu(), reference), step


class Turning(Deep):
    """Gives the layers from `turn` on another conditioning tensor."""

    turn = 8

    def forward(self, x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        for index, layer in enumerate(self.layers):
            x = layer(x, gate={"value": gate if index < self.turn else gate * 2})
        return self.head(x)


def test_a_shared_input_that_begins_to_change_is_sent_again(
    x: torch.Tensor, gate: torch.Tensor
) -> None:
    torch.manual_seed(3)
    model = Turning().eval()
    cases = [(gate, 8), (gate * 3, 8), (gate * 3, 4), (gate, 8)]
    with torch.inference_mode():
        expected = []
        for value, model.turn in cases:
            expected.append(model(x, value))
        model.turn = 8
        executor = StreamedExecutor(placed_on(model, middle("sim:1")), modes={"sim:1": "migrate"})
        for _ in range(4):
            model(x, gate)
        sent, _ = executor.engine.crossings["sim:1"]
        model(x, gate)
        assert executor.engine.crossings["sim:1"][0] == sent + x.nbytes + gate.nbytes, "sent once"
        for (value, model.turn), wanted in zip(cases, expected, strict=True):
            for step in range(3):
                assert torch.equal(model(x, value).cpu(), wanted), (model.turn, step)


def test_small_tensors_that_stay_get_a_copy_on_the_donor(
    x: torch.Tensor, gate: torch.Tensor
) -> None:
    torch.manual_seed(3)
    model = Deep().eval()
    with torch.inference_mode():
        expected = model(x, gate)
        assignment = {
            b.name: "sim:1" if b.group in ("layers.2", "layers.3") else "sim:0"
            for b in inventory(model).blocks
        }
        blocks = inventory(model, pin=lambda name, _: "small" if name.endswith("norm") else "")
        for block in blocks.blocks:
            if block.pinned:
                assignment[block.name] = "sim:0"
        placed = place(model, plan_of(assignment), compute="sim:0", blocks=blocks)
        executor = StreamedExecutor(placed, modes={"sim:1": "migrate"})
        before = torch.sim.memory_allocated(1)
        for _ in range(3):
            assert torch.equal(model(x, gate).cpu(), expected)
        assert list(executor.migrated) == ["sim:1"]
        assert torch.sim.memory_allocated(1) - before == 2 * 2 * 32 * 4
        placed.verify()
        executor.detach()
        gc.collect()
        assert torch.sim.memory_allocated(1) == before
        assert torch.equal(model(x, gate).cpu(), expected)


def test_a_group_of_which_a_part_stays_is_streamed(
    model: Deep, x: torch.Tensor, gate: torch.Tensor
) -> None:
    with torch.inference_mode():
        expected = model(x, gate)
        assignment = {
            b.name: "sim:1" if b.group == "layers.2" and b.name.endswith("qkv") else "sim:0"
            for b in inventory(model).blocks
        }
        executor = StreamedExecutor(
            place(model, plan_of(assignment), compute="sim:0"), modes={"sim:1": "migrate"}
        )
        for _ in range(3):
            assert torch.equal(model(x, gate).cpu(), expected)
        assert executor.migrated == {}
        assert executor.streamed == ["layers.2"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_on_the_donor_leaves_a_clean_state(
    model: Deep,
    x: torch.Tensor,
    gate: torch.Tensor,
    error: type[BaseException],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with torch.inference_mode():
        expected = model(x, gate)
        executor = StreamedExecutor(placed_on(model, middle("sim:1")), modes={"sim:1": "migrate"})
        for _ in range(3):
            model(x, gate)
        before = State.of(model)
        real = Layer.forward
        for bad in range(8):

            def fail(self: Layer, *args: Any, bad: int = bad, **kwargs: Any) -> torch.Tensor:
                if self is model.layers[bad]:
                    raise error("here")
                return real(self, *args, **kwargs)

            with monkeypatch.context() as patch:
                patch.setattr(Layer, "forward", fail)
                with pytest.raises(error, match="here"):
                    model(x, gate)
            executor.recover()
            assert torch.sim.current_device() == 0
            assert State.of(model) == before, bad
            assert torch.equal(model(x, gate).cpu(), expected), bad


def test_no_room_on_the_donor_for_activations(
    model: Deep, x: torch.Tensor, gate: torch.Tensor
) -> None:
    with torch.inference_mode():
        expected = model(x, gate)
        StreamedExecutor(placed_on(model, middle("sim:1")), modes={"sim:1": "migrate"})
        for _ in range(3):
            model(x, gate)
        failed = 0
        for nth in range(1, 40, 3):
            try:
                with distorch_sim.faults(allocation=nth):
                    assert torch.equal(model(x, gate).cpu(), expected)
            except torch.OutOfMemoryError:
                failed += 1
            assert torch.equal(model(x, gate).cpu(), expected), nth
            assert torch.sim.current_device() == 0
        assert failed > 0


def test_nothing_grows(model: Deep, x: torch.Tensor, gate: torch.Tensor) -> None:
    with torch.inference_mode():
        StreamedExecutor(placed_on(model, middle("sim:1")), modes={"sim:1": "migrate"})
        for _ in range(4):
            model(x, gate)
        gc.collect()
        before = [torch.sim.memory_allocated(i) for i in range(3)]
        gc.disable()
        try:
            for _ in range(5):
                model(x, gate)
            assert [torch.sim.memory_allocated(i) for i in range(3)] == before
        finally:
            gc.enable()


class Hollow(nn.Module):
    """Its groups are containers whose children are called one by one, as those of a U-Net."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.ModuleList([Layer(32), Layer(32)]) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            for layer in block:
                x = layer(x)
        return x


def test_groups_that_are_not_called_are_split(x: torch.Tensor) -> None:
    torch.manual_seed(3)
    model = Hollow().eval()
    with torch.inference_mode():
        expected = model(x)
        assignment = {
            b.name: "sim:1" if b.name.startswith("blocks.1") else "cpu"
            for b in inventory(model).blocks
        }
        placed = place(model, plan_of(assignment), compute="sim:0")
        executor = StreamedExecutor(placed, modes={"sim:1": "migrate"})
        assert executor.streamed == ["blocks.0", "blocks.1", "blocks.2"]
        for _ in range(3):
            assert torch.equal(model(x).cpu(), expected)
        assert executor.streamed == [f"blocks.{i}.{k}" for i in (0, 2) for k in (0, 1)]
        assert executor.migrated == {"sim:1": ["blocks.1.0", "blocks.1.1"]}
        lent = placed.on_demand_bytes
        assert torch.equal(model(x).cpu(), expected)
        assert placed.on_demand_bytes == lent, "nothing comes module by module any more"


def test_auto_measures_and_then_takes_the_faster_way(
    model: Deep, x: torch.Tensor, gate: torch.Tensor
) -> None:
    """A link so slow that the weights of a layer take longer than a step of this machine can."""
    with torch.inference_mode():
        expected = model(x, gate)
        placed = placed_on(model, middle("sim:1"))
        executor = StreamedExecutor(placed, links={"sim:1": 1e-6})
        for _ in range(3):
            assert torch.equal(model(x, gate).cpu(), expected)
            assert executor.decision is None
        assert torch.equal(model(x, gate).cpu(), expected)
        decision = executor.decision
        assert decision is not None
        assert decision.modes == {"sim:1": "migrate"}
        assert list(executor.migrated) == ["sim:1"]
        activations = 2 * x.nbytes + gate.nbytes
        assert decision.step_seconds == pytest.approx(
            decision.compute_seconds + activations / (1e-6 * 2**30), rel=1e-6
        )
        assert decision.lines[0].startswith("sim:1: migrate, a step takes ")
        assert torch.equal(model(x, gate).cpu(), expected)


def test_the_step_of_groups_that_migrate_as_asked_is_predicted(
    model: Deep, x: torch.Tensor, gate: torch.Tensor
) -> None:
    with torch.inference_mode():
        executor = StreamedExecutor(
            placed_on(model, middle("sim:1")), modes={"sim:1": "migrate"}, links={"sim:1": 1e-6}
        )
        for _ in range(5):
            model(x, gate)
    decision, profile = executor.decision, executor.engine.profile
    assert decision is not None
    assert decision.lines == ("sim:1: migrate, as asked",)
    assert [group.name for group in profile.groups] == [f"layers.{i}" for i in range(8)]
    assert all(group.seconds > 0 for group in profile.groups)
    assert decision.compute_seconds == profile.step_seconds > sum(executor.group_seconds.values())
    assert list(executor.group_seconds) == [f"layers.{i}" for i in (0, 1, 6, 7)]
    activations = 2 * x.nbytes + gate.nbytes
    assert decision.step_seconds == pytest.approx(
        decision.compute_seconds + activations / (1e-6 * 2**30), rel=1e-6
    )


@pytest.mark.parametrize(
    ("links", "line"),
    [
        ({"sim:1": 1e6}, "sim:1: stream, a step takes "),
        ({}, "sim:1: stream, its link was not measured"),
    ],
)
def test_auto_streams_where_that_is_free_or_unknown(
    model: Deep, x: torch.Tensor, gate: torch.Tensor, links: dict[str, float], line: str
) -> None:
    with torch.inference_mode():
        executor = StreamedExecutor(placed_on(model, middle("sim:1")), links=links)
        for _ in range(5):
            model(x, gate)
        assert executor.decision is not None
        assert executor.decision.lines[0].startswith(line)
        assert executor.migrated == {}


def test_a_travelling_tensor_behaves_like_one_of_the_compute_device() -> None:
    fetched: list[int] = []
    data = torch.arange(6.0).view(2, 3).to("sim:1")
    with torch.inference_mode():
        tensor = travelling(data, torch.device("sim:0"), fetched.append)
        assert isinstance(tensor, TravellingTensor)
        assert tensor.device == torch.device("sim:0")
        assert tensor.shape == (2, 3)
        assert tensor.on(torch.device("sim:1")) is data
        assert fetched == []
        assert torch.equal((tensor + 1).cpu(), data.cpu() + 1)
        assert fetched == [24]
        tensor += 1
        assert tensor.on(torch.device("sim:1")) is None, "what was written is at home"
        assert torch.equal(tensor.home().cpu(), torch.arange(6.0).view(2, 3) + 1)
        assert fetched == [24]
        spread = travelling(data.t(), torch.device("sim:0"), fetched.append)
        assert spread.stride() == spread.home().stride()
