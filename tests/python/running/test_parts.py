# SPDX-License-Identifier: Apache-2.0
"""Tensors of classes of their own travel as what they are: quantised data with scales, bytes with notes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from placing import plan_of
from torch import nn

from distorch import parts
from distorch.model_blocks import inventory
from distorch.patching import DiffPatch, PatchError
from distorch.placing import place
from distorch.run import StreamedExecutor
from distorch.slabs import ALIGNMENT, layout, pack, runs, slab_of, views


class Scaled(torch.Tensor):
    """Eight-bit data with a scale, of torch's wrapper kind."""

    @staticmethod
    def __new__(cls, data: torch.Tensor, scale: torch.Tensor, name: str) -> Any:
        return torch.Tensor._make_wrapper_subclass(
            cls, data.shape, dtype=scale.dtype, device=data.device
        )

    def __init__(self, data: torch.Tensor, scale: torch.Tensor, name: str) -> None:
        self._data, self._scale, self.name_of_layout = data, scale, name

    def __tensor_flatten__(self) -> tuple[list[str], Any]:
        self._made_when_asked = self._scale
        return ["_data", "_made_when_asked"], self.name_of_layout

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, torch.Tensor], name: Any, *_: Any) -> Any:
        return Scaled(inner["_data"], inner["_made_when_asked"], name)

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        if function is torch.ops.aten.detach.default:
            # As comfy-kitchen's does: the scale is copied.
            return Scaled(args[0]._data, args[0]._scale.clone(), args[0].name_of_layout)
        full = [a.full() if isinstance(a, Scaled) else a for a in args]
        return function(*full, **(kwargs or {}))

    def full(self) -> torch.Tensor:
        return self._data.to(self._scale.dtype) * self._scale


class Noted(torch.Tensor):
    """Bytes with notes about them; claims another shape than it stores."""

    tensor_type: str
    tensor_shape: torch.Size
    patches: list[Any]

    @property
    def shape(self) -> torch.Size:
        return self.tensor_shape


def scaled(seed: int = 0) -> Scaled:
    data = torch.arange(24, dtype=torch.int8).reshape(4, 6) + seed
    return Scaled(data, torch.tensor(0.5 + seed), "rows")


def noted(*, parameter: bool = False) -> Noted:
    result: Any = torch.arange(40, dtype=torch.uint8).as_subclass(Noted)
    if parameter:
        result = nn.Parameter(result, requires_grad=False)
    result.tensor_type, result.tensor_shape = "Q8", torch.Size([4, 8])
    result.patches = [(torch.ones(2), "key")]
    return result


def test_parts_are_the_plain_tensors_that_hold_the_bytes() -> None:
    weight = scaled()
    assert [type(p) for p in parts.parts_of(weight)] == [torch.Tensor, torch.Tensor]
    assert parts.tensor_bytes(weight) == 24 + 4
    raw = noted()
    (part,) = parts.parts_of(raw)
    assert type(part) is torch.Tensor
    assert (part.shape, part.data_ptr()) == ((40,), raw.data_ptr())
    assert parts.tensor_bytes(nn.Parameter(torch.ones(3))) == 12


@pytest.mark.parametrize("parameter", [False, True])
def test_a_quantised_tensor_is_made_again_from_other_bytes(parameter: bool) -> None:
    weight: torch.Tensor = scaled()
    if parameter:
        weight = nn.Parameter(weight, requires_grad=False)
    weight.note = "kept"
    others = [p.clone() for p in parts.parts_of(weight)]
    result = parts.rebuilt(weight, others)
    assert type(result) is Scaled
    assert isinstance(result, nn.Parameter) is parameter
    assert (result.name_of_layout, result.note) == ("rows", "kept")
    assert [a.data_ptr() for a in parts.parts_of(result)] == [b.data_ptr() for b in others]
    assert result._scale is not weight._scale
    assert torch.equal(result.full(), weight.full())


@pytest.mark.usefixtures("sim")
@pytest.mark.parametrize("inference", [False, True])
def test_a_quantised_tensor_is_made_in_the_mode_that_it_was_made_in(inference: bool) -> None:
    """ComfyUI makes a parameter of it in inference mode, where one from outside of it cannot be detached."""
    with torch.inference_mode(inference):
        source = Scaled(torch.ones(4, 4, dtype=torch.int8), torch.tensor(0.5), "rows")
    with torch.inference_mode(False):
        (packed,) = pack([source])
        moved = parts.moved(source, "sim:1")
    for made in (packed, moved):
        assert made.is_inference() is inference
        with torch.inference_mode(inference):
            assert torch.equal(nn.Parameter(made, requires_grad=False).full().cpu(), source.full())


def test_bytes_with_notes_keep_their_notes_and_their_patches() -> None:
    raw = noted(parameter=True)
    other = torch.zeros(40, dtype=torch.uint8)
    result = parts.rebuilt(raw, [other])
    assert type(result) is Noted
    assert isinstance(result, nn.Parameter)
    assert (result.tensor_type, result.shape) == ("Q8", (4, 8))
    assert result.patches is raw.patches
    assert result.data_ptr() == other.data_ptr()


def test_a_class_that_hides_tensors_is_not_made_again() -> None:
    class Hiding(torch.Tensor):
        state: Any

    tensor = torch.ones(3).as_subclass(Hiding)
    tensor.state = {"absmax": torch.ones(1)}
    assert not parts.can_rebuild(tensor)
    tensor.state = (1, "blockwise", torch.float16, None)
    assert parts.can_rebuild(tensor)
    assert parts.can_rebuild(scaled())
    assert parts.can_rebuild(noted())
    assert not parts.can_rebuild(Scaled(torch.ones(4, 6).t(), torch.ones(()), "columns"))


def test_a_slab_holds_all_parts_and_moves_in_one_copy() -> None:
    before = [scaled(), torch.ones(100), noted(parameter=True)]
    packed = pack(before)
    slab = slab_of(packed[0])
    assert slab is not None
    assert all(slab_of(t) is slab for t in packed)
    offsets, size = layout(packed)
    assert offsets == [[0, ALIGNMENT], [2 * ALIGNMENT], [4 * ALIGNMENT]]
    moves, moved = runs(packed)
    assert [(r.begin, r.at, r.size) for r in moves] == [(0, 0, size)]
    assert moved == size
    slot = slab.clone()
    seen = [parts.rebuilt(t, views(slot, at, t)) for t, at in zip(packed, offsets, strict=True)]
    assert torch.equal(seen[0].full(), before[0].full())
    assert torch.equal(seen[1], before[1])
    assert torch.equal(parts.parts_of(seen[2])[0], parts.parts_of(before[2])[0])
    assert slab_of(seen[0]) is None
    assert pack(packed) == packed  # what lies in a slab stays


class Reads(nn.Module):
    """Multiplies by a quantised weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(scaled(), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight


@pytest.mark.usefixtures("sim")
@pytest.mark.parametrize("home", ["sim:0", "sim:1", "cpu"])
def test_a_quantised_weight_is_placed_and_lent_with_all_its_parts(home: str) -> None:
    model = nn.Sequential(Reads()).eval()
    x = torch.ones(2, 4)
    with torch.inference_mode():
        expected = model(x)
        placed = place(
            model, plan_of({"0": home}), compute="sim:0", blocks=inventory(model, pin=None)
        )
        assert type(model[0].weight) is Scaled
        assert {str(p.device) for p in parts.parts_of(model[0].weight)} == {home}
        assert torch.equal(model(x).cpu(), expected)
        assert placed.on_demand_bytes == (0 if home == "sim:0" else 24 + 4)
        placed.unload()
        assert torch.equal(model(x), expected)


class Quantised(nn.Module):
    """A layer with an eight-bit weight, which it reads in full."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        data = torch.randint(-9, 9, (32, 32), dtype=torch.int8, generator=generator)
        weight = Scaled(data, torch.tensor(0.01 * (seed + 1)), "rows")
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = nn.Parameter(torch.randn(32, generator=generator))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x @ self.weight.full() + self.bias)


@pytest.mark.usefixtures("sim")
@pytest.mark.parametrize(("home", "mode"), [("cpu", ""), ("sim:1", "stream"), ("sim:1", "migrate")])
def test_quantised_layers_run_with_their_groups(home: str, mode: str) -> None:
    stack = [nn.Sequential(Quantised(2 * i), Quantised(2 * i + 1)) for i in range(6)]
    layers = nn.Sequential(*stack).eval()
    x = torch.randn(3, 32, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = layers(x)
        names = [b.name for b in inventory(layers).blocks]
        homes = {name: "sim:0" if name.startswith("0.") else home for name in names}
        placed = place(layers, plan_of(homes), compute="sim:0")
        executor = StreamedExecutor(placed, modes={"sim:1": mode} if mode else None)
        for _ in range(4):
            assert torch.equal(layers(x).cpu(), expected)
        groups = [str(i) for i in range(1, 6)]
        assert (executor.migrated.get("sim:1") or executor.streamed) == groups
        assert executor.notes == []
        assert placed.on_demand_bytes == 0
        if mode != "migrate":
            assert executor.bytes_per_step == 10 * (32 * 32 + 2 * ALIGNMENT)
        placed.unload()
        assert torch.equal(layers(x), expected)


@pytest.mark.usefixtures("sim")
def test_quantised_weights_of_one_shape_are_not_taken_for_one() -> None:
    """Each says that it has memory, at address 0."""
    model = nn.ModuleList(Reads() for _ in range(3))
    for seed, layer in enumerate(model):
        layer.weight = nn.Parameter(scaled(seed), requires_grad=False)
    model.append(Reads())
    model[3].weight = model[2].weight
    expected = [layer.weight.full() for layer in model]
    blocks = inventory(model, pin=None)
    assert [b.bytes for b in blocks.blocks] == [28, 28, 28, 0]
    assert [b.tied for b in blocks.blocks] == ["", "", "2", "2"]
    placed = place(model, plan_of(dict.fromkeys("0123", "sim:1")), compute="sim:0", blocks=blocks)
    assert placed.bytes_per_device() == {"sim:1": 3 * 28}
    assert all(torch.equal(a.weight.full().cpu(), b) for a, b in zip(model, expected, strict=True))
    assert model[3].weight is model[2].weight


def test_a_quantised_weight_is_not_patched() -> None:
    """The patch would go into a copy of it, and be lost."""
    model = nn.Sequential(Reads())
    patches = {"0.weight": [DiffPatch(torch.ones(4, 6))]}
    with pytest.raises(PatchError, match=r"^0\.weight: a weight of type Scaled cannot be patched$"):
        place(model, plan_of({"0": "cpu"}), compute="cpu", patches=patches)


def test_a_parameter_of_a_class_of_its_own_asks_for_gradients_as_before() -> None:
    class Own(nn.Parameter):
        pass

    weight = Own(torch.ones(3))
    assert parts.rebuilt(weight, [torch.zeros(3)]).requires_grad
    weight.requires_grad_(False)
    assert not parts.rebuilt(weight, [torch.zeros(3)]).requires_grad
