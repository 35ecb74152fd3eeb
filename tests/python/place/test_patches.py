# SPDX-License-Identifier: Apache-2.0
"""Patched weights: right to one rounding, and only where they are asked for."""

from __future__ import annotations

import pytest
import torch
from placing import Model, lora, plan_of, some_patches, spread
from torch import nn

from distorch._load import load_operators
from distorch.model_blocks import inventory
from distorch.patching import LoraPatch, raise_problem
from distorch.placing import place


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
def test_a_changed_strength_touches_patched_tensors_only(model: Model) -> None:
    placed = place(
        model, plan_of(spread(inventory(model))), compute="sim:0", patches=some_patches()
    )
    before = dict(model.named_parameters())
    stronger = {"layers.0.qkv.weight": [lora(96, 32, strength=1.0)]}
    placed.repatch(stronger)
    changed = {n for n, p in model.named_parameters() if p is not before[n]}
    assert changed == set(some_patches())
    torch.manual_seed(1)
    fresh = Model().eval()
    place(fresh, plan_of(spread(inventory(fresh))), compute="sim:0", patches=stronger)
    for (name, a), (_, b) in zip(model.named_parameters(), fresh.named_parameters(), strict=True):
        assert a.device == b.device, name
        assert torch.equal(a.cpu(), b.cpu()), name
    placed.repatch(None)
    assert model.layers[0].qkv.weight.device == before["layers.0.qkv.weight"].device


def test_what_an_operator_refuses_is_told_and_raised_with_its_type() -> None:
    """No exception may leave an operator: on Windows it would end the process."""
    operators = load_operators()
    weight, up, right = torch.zeros(4, 3), torch.zeros(4, 2), torch.zeros(2, 3)
    problem = operators.patch_weight(weight, torch.zeros(2, 3), up, right, [])
    assert problem == "ValueError: patch_weight: the scratch tensor has the wrong shape"
    with pytest.raises(ValueError, match=r"weight \(4, 3\) on cpu failed: patch_weight: the scra"):
        raise_problem(problem, weight)
    # What torch itself refuses: factors that cannot be multiplied.
    problem = operators.patch_weight(weight, torch.zeros(3, 3), up, torch.zeros(5, 3), [])
    assert problem.startswith("RuntimeError: torch_call_dispatcher")
    with pytest.raises(RuntimeError, match=r"weight \(4, 3\) on cpu failed: torch_call_disp"):
        raise_problem(problem, weight)
    problem = operators.right_factor(torch.zeros(2, 3), torch.zeros(2, 2, 9), torch.zeros(2, 26))
    assert problem == "ValueError: right_factor: the result's tensor has the wrong shape"
    raise_problem(operators.right_factor(up, torch.zeros(2, 4, 9), torch.zeros(2, 18)), weight)
