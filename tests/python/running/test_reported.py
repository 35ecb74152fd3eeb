# SPDX-License-Identifier: Apache-2.0
"""Models as people bring them, whose results were wrong or whose errors were obscure elsewhere: the plain run's bits."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import io
import pickle
from typing import Any

import pytest
import torch
from placing import plan_of
from torch import nn

import distorch
from distorch.model_blocks import inventory
from distorch.parts import rebuilt
from distorch.placed import PlacedModel, PlacementError
from distorch.placing import place
from distorch.slabs import views

pytestmark = pytest.mark.usefixtures("sim")


def spread_over(model: nn.Module, *homes: str) -> PlacedModel:
    """Put the layers in turn on these devices, the rest on the compute device."""
    names = [block.name for block in inventory(model).blocks]
    layers = sorted({name.split(".")[1] for name in names if name.startswith("layers.")}, key=int)
    home = {layer: homes[i % len(homes)] for i, layer in enumerate(layers)}
    plan = plan_of(
        {n: home[n.split(".")[1]] if n.startswith("layers.") else "sim:0" for n in names}
    )
    return place(model, plan, compute="sim:0")


class Slotted:
    __slots__ = ("frames", "last")

    def __init__(self) -> None:
        self.frames: list[torch.Tensor] = []
        self.last: torch.Tensor | None = None


@dataclasses.dataclass
class Record:
    mean: torch.Tensor
    notes: dict[str, Any]


class Remembering(nn.Module):
    """A layer that writes into everything it is given, as video VAEs and key-value caches do."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)

    def forward(
        self, x: torch.Tensor, frames: list[Any], store: Slotted, record: Record
    ) -> torch.Tensor:
        x = self.linear(x)
        if len(frames) > 3:
            x = x + frames[0]
            frames[0] = x * 0.5  # replaced
            frames[1].mul_(0.5)  # written in place
        frames.append(x.clone())
        store.last = x if store.last is None else torch.cat([store.last, x])[-4:]
        store.frames.append(store.last.sum(0))
        record.mean = record.mean + x.mean()
        record.notes.setdefault("seen", set()).add(round(float(x.mean()), 4))
        record.notes["last"] = (x, [x + 1])
        return x + store.frames[-1] + record.mean


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Remembering() for _ in range(6))

    def forward(
        self, x: torch.Tensor, frames: list[Any], store: Slotted, record: Record
    ) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x, frames, store, record)
        return x


def remembered(model: nn.Module, x: torch.Tensor, calls: int) -> list[Any]:
    """What the caller sees after some calls with the same containers."""
    frames, store, record = [torch.ones(16)], Slotted(), Record(torch.zeros(()), {})
    held = frames[0]
    seen: list[Any] = []
    for _ in range(calls):
        seen.append(model(x, frames, store, record).cpu())
    assert frames[0] is held or len(frames) > 4
    tensors = [*frames, store.last, *store.frames, record.mean, record.notes["last"][0]]
    tensors.append(record.notes["last"][1][0])
    return [*seen, record.notes["seen"], *[t.cpu() for t in tensors]]


@pytest.mark.parametrize("mode", ["none", "stream", "migrate"])
@pytest.mark.parametrize("homes", [["sim:1"], ["sim:1", "cpu", "sim:2"]])
def test_containers_that_layers_write_into_are_the_callers(mode: str, homes: list[str]) -> None:
    torch.manual_seed(0)
    model, x = Stack().eval(), torch.randn(2, 16)
    with torch.inference_mode():
        expected = remembered(model, x, 4)
        placed = spread_over(model, *homes)
        if mode != "none":
            distorch.StreamedExecutor(placed, modes=dict.fromkeys(homes, mode))
        got = remembered(model, x, 4)
        placed.unload()
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


class RootOwned(nn.Module):
    """Has a parameter and a buffer of its own beside its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(16))
        self.register_buffer("shift", torch.rand(16))
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x * self.scale
        for layer in self.layers:
            x = layer(x) + self.shift
        return x * self.scale


@pytest.mark.parametrize("home", ["cpu", "sim:1"])
@pytest.mark.parametrize("mode", ["stream", "migrate"])
def test_what_the_model_itself_owns_is_lent_in_every_step(home: str, mode: str) -> None:
    torch.manual_seed(0)
    model, x = RootOwned().eval(), torch.randn(2, 16)
    with torch.inference_mode():
        expected = model(x)
        names = [block.name for block in inventory(model).blocks]
        placed = place(model, plan_of(dict.fromkeys(names, home)), compute="sim:0")
        distorch.StreamedExecutor(placed, modes={home: mode})
        for step in range(5):
            assert torch.equal(model(x).cpu(), expected), step
            assert model.scale.device == model.shift.device == torch.device(home)
            placed.verify()
        placed.unload()
        assert torch.equal(model(x), expected)


@pytest.mark.parametrize("mode", ["stream", "migrate", "auto"])
def test_a_language_model_generates_with_its_cache(mode: str) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
        pad_token_id=0, bos_token_id=1, eos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval()
    ids = torch.tensor([[1, 5, 9, 3]])
    settings = {
        "max_new_tokens": 10,
        "do_sample": False,
        "output_logits": True,
        "return_dict_in_generate": True,
    }
    with torch.inference_mode():
        expected = model.generate(ids, **settings)
        placed = distorch.place(model, f"sim:0,20kb;sim:1,*,mode={mode}", compute="sim:0")
        for _ in range(2):
            got = model.generate(ids.to("sim:0"), **settings)
            assert torch.equal(got.sequences.cpu(), expected.sequences)
            for a, b in zip(got.logits, expected.logits, strict=True):
                assert torch.equal(a.cpu(), b)
        placed.unload()


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(16, 16), nn.ReLU()) for _ in range(4))
        self.out = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.out(x)


@pytest.mark.parametrize("streamed", [False, True])
def test_weights_that_change_while_placed_are_seen_whole_and_kept(streamed: bool) -> None:
    torch.manual_seed(0)
    model, other, x = Layers().eval(), Layers().eval(), torch.randn(3, 16)
    with torch.no_grad():
        expected = other(x)
        placed = spread_over(model, "cpu", "sim:1", "sim:0")
        if streamed:
            distorch.StreamedExecutor(placed)
        for _ in range(3):
            model(x)
        before = model(x)
        with pytest.raises(PlacementError, match=r"Layers is placed: .*Leave assign out"):
            model.load_state_dict(other.state_dict(), assign=True)
        assert torch.equal(model(x), before)
        model.load_state_dict(other.state_dict())
        for step in range(3):
            assert torch.equal(model(x).cpu(), expected), step
        placed.unload()
        assert torch.equal(model(x), expected)
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True)
    )


@pytest.mark.parametrize("streamed", [False, True])
def test_a_merge_in_place_is_seen_whole_and_kept(streamed: bool) -> None:
    torch.manual_seed(0)
    model, x = Layers().eval(), torch.randn(3, 16)
    merged = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in merged.parameters():
            parameter.add_(0.25)
        expected = merged(x)
        placed = spread_over(model, "cpu", "sim:1")
        if streamed:
            distorch.StreamedExecutor(placed)
        for _ in range(3):
            model(x)
        for parameter in model.parameters():
            parameter.add_(0.25)
        for step in range(3):
            assert torch.equal(model(x).cpu(), expected), step
        placed.unload()
        assert torch.equal(model(x), expected)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    "move",
    [
        lambda m: m.to("sim:0"), lambda m: m.half(), lambda m: m.bfloat16(), lambda m: m.cpu(),
        lambda m: m.layers[1].double(), lambda m: nn.Sequential(m).to(torch.float64), lambda m: m.cuda(),
    ],
)  # fmt: skip
def test_a_placed_model_refuses_to_be_moved_or_converted(
    move: Any, streamed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.Tensor, "cuda", lambda tensor, *_: tensor.to("sim:0"))
    torch.manual_seed(0)
    model, x = Layers().eval(), torch.randn(3, 16)
    with torch.no_grad():
        expected = model(x)
        placed = spread_over(model, "cpu", "sim:1")
        if streamed:
            distorch.StreamedExecutor(placed)
        model(x)
        with pytest.raises(PlacementError, match=r"is placed.*Call unload\(\) first"):
            move(model)
        assert torch.equal(model(x).cpu(), expected)
        placed.verify()
        placed.unload()
        assert torch.equal(model(x), expected)
        model.half()
        assert model.out.weight.dtype == torch.float16


class Turned(nn.Module):
    """Its layers get their input as a motion module does: in another order of axes."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x.permute(0, 2, 1).contiguous().permute(0, 2, 1).transpose(0, 1)).transpose(
                0, 1
            )
        return x


@pytest.mark.parametrize("mode", ["", "stream", "migrate"])
def test_weights_that_ask_for_gradients_are_computed_by_the_same_kernels(mode: str) -> None:
    """torch folds a product or not by whether the weight asks, also where no gradient is computed."""
    torch.manual_seed(0)
    model, x = Turned().eval(), torch.randn(1, 256, 16)
    whole = copy.deepcopy(model).to("sim:0")
    with torch.inference_mode():
        expected = whole(x.to("sim:0")).cpu()
        placed = spread_over(model, "sim:1")
        if mode:
            distorch.StreamedExecutor(placed, modes={"sim:1": mode})
        for _ in range(3):
            assert torch.equal(model(x).cpu(), expected)
        placed.unload()
    assert all(p.requires_grad for p in model.parameters())


def test_a_backward_pass_through_a_slot_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the time of it the slot holds another group: torch is told that it was written."""
    weight, buffer = nn.Parameter(torch.randn(16)), torch.zeros(256, dtype=torch.uint8)
    in_slot = rebuilt(weight, views(buffer, [0], weight))
    result = (in_slot * in_slot).sum()
    torch.autograd.graph.increment_version([buffer])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        result.backward()

    told: list[Any] = []
    monkeypatch.setattr(torch.autograd.graph, "increment_version", told.append)
    model, x = Layers().eval().requires_grad_(False), torch.randn(3, 16)
    placed = spread_over(model, "cpu", "sim:1")
    executor = distorch.StreamedExecutor(placed)
    with torch.no_grad():
        model(x)
    assert told == []
    model(x)
    buffers = executor.engine._streamer.buffers
    assert len(told) == len(executor.engine.streamed)
    assert all(t is b for call in told for t, b in zip(call, buffers, strict=True))
    placed.unload()


class Adapter(nn.Module):
    """As LoRA libraries hang them around a layer."""

    def __init__(self, base: nn.Linear, device: str) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, 2, bias=False, device=device)
        self.up = nn.Linear(2, base.out_features, bias=False, device=device)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + self.up(self.down(x))


@pytest.mark.parametrize("streamed", [False, True])
def test_an_adapter_added_after_placing_runs_or_is_named(streamed: bool) -> None:
    torch.manual_seed(0)
    model, x = Layers().eval(), torch.randn(3, 16)
    with torch.no_grad():
        placed = spread_over(model, "cpu", "sim:1")
        if streamed:
            distorch.StreamedExecutor(placed)
        model(x)
        layer = model.layers[1][0]
        model.layers[1][0] = adapter = Adapter(layer, "cpu")
        message = r"two devices.*layers\.1\.0\.down \(and 1 more\) was added after Layers was placed.* cpu: call unload"
        for _ in range(2):
            with pytest.raises(RuntimeError, match=message):
                model(x)
        adapter.down.to("sim:0")
        adapter.up.to("sim:0")
        result = model(x).cpu()
        another = RuntimeError("another device")
        with contextlib.suppress(RuntimeError):
            try:
                raise another
            finally:
                model(x)
        assert str(another) == "another device", "an error on its way outside is not this model's"
        placed.unload()
        adapter.cpu()
        assert torch.equal(model(x), result)
        placed = distorch.place(model, "sim:0,1kb;cpu,*")
        assert torch.equal(model(x).cpu(), result)
        placed.unload()


@pytest.mark.parametrize(
    "action", [copy.deepcopy, pickle.dumps, lambda m: torch.save(m, io.BytesIO())]
)
def test_a_placed_model_says_how_it_can_be_copied(action: Any) -> None:
    model = Layers().eval()
    placed = spread_over(model, "cpu", "sim:1")
    with pytest.raises(PlacementError, match=r"Layers is placed.*Call unload\(\) first"):
        action(model)
    placed.unload()
    action(model)


def test_a_state_dict_of_a_streamed_model_is_saved_whole(tmp_path: Any) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    torch.manual_seed(0)
    model, x = Layers().eval(), torch.randn(3, 16)
    wanted = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.inference_mode():
        placed = spread_over(model, "cpu", "sim:1")
        distorch.StreamedExecutor(placed)
        model(x)
    saved = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
    safetensors.save_file(saved, tmp_path / "x.safetensors")
    loaded = safetensors.load_file(tmp_path / "x.safetensors")
    assert all(torch.equal(loaded[name], tensor) for name, tensor in wanted.items())
    one = io.BytesIO()
    torch.save(model.state_dict()["layers.0.0.bias"], one)
    assert one.tell() < 4096, "not the whole slab for a bias"


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("home", ["cpu", "sim:1"])
def test_channels_last_weights_keep_their_layout(home: str, streamed: bool) -> None:
    torch.manual_seed(0)

    class Convolutions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in self.layers:
                x = layer(x)
            return x

    model = Convolutions().eval().to(memory_format=torch.channels_last)
    x = torch.randn(2, 8, 12, 12).to(memory_format=torch.channels_last)
    strides = [layer.weight.stride() for layer in model.layers]
    with torch.inference_mode():
        expected = model(x)
        placed = spread_over(model, home)
        assert [layer.weight.stride() for layer in model.layers] == strides
        if streamed:
            distorch.StreamedExecutor(placed)
        for _ in range(3):
            assert torch.equal(model(x).cpu(), expected)
        placed.unload()
        assert [layer.weight.stride() for layer in model.layers] == strides
        assert torch.equal(model(x), expected)


class ReadsAChild(nn.Module):
    """Computes with its child's weight and its gathered expert's bias, and calls neither."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(16, 16, 3, groups=16, padding=1)
        self.experts = nn.ModuleList([nn.Linear(16, 16)])
        self.gathered = RootOwned()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mixed = nn.functional.conv1d(x.T[None], self.conv.weight, self.conv.bias, 1, 1, 1, 16)
        return self.experts[0](mixed[0].T) + self.gathered.scale


@pytest.mark.parametrize("home", ["cpu", "sim:1"])
def test_a_weight_of_a_child_that_is_not_called_is_there_within_a_group(home: str) -> None:
    torch.manual_seed(0)
    model, x = nn.Module(), torch.randn(5, 16)
    model.layers = nn.ModuleList(ReadsAChild() for _ in range(3))
    model.forward = lambda x: model.layers[2](model.layers[1](model.layers[0](x)))
    with torch.inference_mode():
        expected = model(x)
        placed = spread_over(model, home)
        for step in range(2):
            assert torch.equal(model(x).cpu(), expected), step
        placed.verify()
        placed.unload()


class SaysWhereItIs(nn.Module):
    """Sends its inputs to the device of its first parameter, as the classes of transformers and diffusers do."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Linear(16, 16)
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.to(self.device) + 1  # on a donor this would compute there, and go on there
        for layer in self.layers:
            x = layer(x * torch.ones(16, device=self.device))
        return x


def test_what_a_model_takes_for_its_device_is_the_compute_device() -> None:
    torch.manual_seed(0)
    model, x = SaysWhereItIs().eval(), torch.randn(5, 16)
    reasons = {block.name: block.pinned for block in inventory(model).blocks}
    assert reasons["tower"] == "its first parameter is read to choose the device"
    assert [name for name, reason in reasons.items() if reason] == ["tower"]
    assert not any(block.pinned for block in inventory(model, pin=None).blocks)
    with torch.inference_mode():
        expected = model(x)
        placed = distorch.place(model, "sim:0,6kb;sim:1,*", compute="sim:0")
        assert placed.placement()["tower"] == "sim:0"
        for _ in range(2):
            assert torch.equal(model(x).cpu(), expected)
        placed.unload()


class BringsToItsType(nn.Module):
    """Brings a layer to the type that it is to have, before it is used."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))
        self.type = torch.float32

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer.to(self.type)(x)
        return x


@pytest.mark.parametrize("streamed", [False, True])
def test_a_layer_may_be_brought_to_the_type_that_it_has(streamed: bool) -> None:
    torch.manual_seed(0)
    model, x = BringsToItsType().eval(), torch.randn(5, 16)
    with torch.no_grad():
        expected = model(x)
        placed = spread_over(model, "cpu", "sim:1")
        if streamed:
            distorch.StreamedExecutor(placed)
        for _ in range(3):
            assert torch.equal(model(x).cpu(), expected)
        model.type = torch.float16
        with pytest.raises(PlacementError, match=r"cannot be moved, converted"):
            model(x)
        placed.unload()


class WritesSlices(nn.Module):
    """Writes into slices of the tensors of a list that it is given, and returns the list."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self.linear, self.index = nn.Linear(16, 16), index

    def forward(self, x: torch.Tensor, states: list[torch.Tensor]) -> Any:
        x = self.linear(x) + states[1][:, self.index]
        states[0][:, self.index] = x[0]
        states[1][:, self.index].copy_(x[1])
        return x, states


@pytest.mark.parametrize("inference", [False, True])
def test_a_slice_written_on_a_donor_comes_home(inference: bool) -> None:
    torch.manual_seed(0)
    model, x = nn.Module(), torch.randn(2, 16)
    model.layers = nn.ModuleList(WritesSlices(i) for i in range(4))

    def forward(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        states = [torch.zeros(16, 4, device=x.device), torch.ones(16, 4, device=x.device)]
        for layer in model.layers:
            x, states = layer(x, states)
        return x, *states

    model.forward = forward
    with torch.inference_mode(inference), torch.no_grad():
        expected = model(x)
        placed = spread_over(model, "sim:1", "sim:1", "cpu")
        executor = distorch.StreamedExecutor(placed, modes={"sim:1": "migrate"})
        for step in range(3):
            got = model(x)
            assert all(map(torch.equal, [t.cpu() for t in got], expected)), step
        assert list(executor.migrated) == ["sim:1"]
        placed.unload()


def test_a_device_without_events_is_waited_for_in_the_steps_that_are_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The host's clock would measure how fast kernels are queued."""
    waited: list[str] = []
    monkeypatch.setattr("distorch.run.profile.synchronize", waited.append)
    model, x = Layers().eval(), torch.randn(3, 16)
    placed = spread_over(model, "cpu", "sim:1")
    executor = distorch.StreamedExecutor(placed)
    counts = []
    with torch.no_grad():
        for _ in range(6):
            before = len(waited)
            model(x)
            counts.append(len(waited) - before)
    assert executor.engine.profile.complete
    assert set(waited) == {"sim:0"}
    assert max(counts) == 2 * len(executor.engine.streamed)
    assert counts[-2:] == [0, 0]
    placed.unload()
