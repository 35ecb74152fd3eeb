# SPDX-License-Identifier: Apache-2.0
"""What a module consists of."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from distorch.group_costs import block_costs
from distorch.model_blocks import inventory, walk
from distorch.same_tensors import FirstTensors


def nested(depth: int) -> nn.Module:
    module: nn.Module = nn.Linear(2, 2)
    for _ in range(depth):
        outer = nn.Module()
        outer.inner = module
        module = outer
    return module


def test_walk_goes_five_thousand_deep() -> None:
    assert sum(1 for _ in walk(nested(5000))) == 5001
    assert len(inventory(nested(5000)).blocks) == 1


def test_bytes_count_each_tensor_once_and_ties_are_named() -> None:
    model = nn.Module()
    model.a = nn.Linear(4, 4, bias=False)
    model.b = nn.Linear(4, 4, bias=False)
    model.c = nn.Linear(4, 4, bias=False)
    model.b.weight = model.a.weight
    model.view = nn.Module()
    model.view.register_buffer("part", model.c.weight.detach()[:2])
    blocks = {b.name: b for b in inventory(model).blocks}
    assert {n: b.bytes for n, b in blocks.items()} == {"a": 64, "b": 0, "c": 64, "view": 32}
    assert {n: b.tied for n, b in blocks.items()} == {"a": "a", "b": "a", "c": "", "view": ""}


def test_layers_in_one_storage_are_blocks_of_their_own_with_all_their_bytes() -> None:
    flat = torch.randn(300)
    model = nn.ModuleList(nn.Linear(10, 10, bias=False) for _ in range(3))
    for i, layer in enumerate(model):
        layer.weight.data = flat[100 * i : 100 * (i + 1)].view(10, 10)
    found = inventory(model)
    assert [b.bytes for b in found.blocks] == [400, 400, 400]
    assert [b.tied for b in found.blocks] == ["", "", ""]


def test_sparse_tensors_count_their_parts() -> None:
    module = nn.Module()
    module.register_buffer(
        "coo", torch.eye(3).to_sparse()
    )  # 2 x 3 indices of 8 bytes, 3 values of 4
    assert inventory(module).total_bytes == 60


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_compressed_tensors_count_their_parts() -> None:
    module = nn.Module()
    module.register_buffer("csr", torch.eye(3).to_sparse_csr())  # 4 + 3 indices, 3 values
    module.register_buffer("csc", torch.eye(3).to_sparse_csc())
    assert inventory(module).total_bytes == 2 * (7 * 8 + 3 * 4)


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_a_lazy_module_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"^0\.weight has no shape yet: run the lazy module once"):
        inventory(nn.Sequential(nn.LazyLinear(4)))


def test_modules_reached_twice_are_one_block() -> None:
    shared = nn.Linear(3, 3)
    model = nn.ModuleList([shared, nn.Sequential(shared)])
    assert [b.name for b in inventory(model).blocks] == ["0"]


def test_groups_pins_and_marks() -> None:
    model = nn.Module()
    model.embed = nn.Embedding(5, 4)
    model.layers = nn.ModuleList(
        nn.ModuleDict({"q": nn.Linear(4, 4), "k": nn.Linear(4, 4)}) for _ in range(3)
    )
    model.scale = nn.Parameter(torch.ones(4))
    found = inventory(model, patches={"layers.1.q.weight": []})
    by_name = {b.name: b for b in found.blocks}
    assert list(found.groups) == ["layers.0", "layers.1", "layers.2"]
    assert found.groups["layers.1"] is model.layers[1]
    assert by_name["layers.2.k"].group == "layers.2"
    assert by_name["(root)"].group == ""
    assert by_name["embed"].pinned.startswith("embedding")
    assert [n for n, b in by_name.items() if b.patched] == ["layers.1.q"]
    assert inventory(model, pin=None).blocks[1].pinned == ""
    assert found.total_bytes == 4 * (20 + 4 + 3 * 2 * 20)


def test_meta_tensors_are_refused_by_name() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"0\.weight is on the device 'meta'"):
        inventory(model)


def test_measured_seconds_are_shared_out_by_bytes() -> None:
    blocks = [("", 5), ("a.0", 30), ("a.0", 10), ("a.1", 20)]
    assert block_costs(blocks, {"a.0": 4e-6, "a.1": 1e-6}) == [0, 3000, 1000, 1000]
    assert block_costs(blocks, {"a.0.x": 3e-6, "a.0.y": 1e-6, "a.1": 1e-6}) == [0, 3000, 1000, 1000]
    assert block_costs(blocks, {"a.0": 4e-6}) == [0, 0, 0, 0], "one is not known"
    assert block_costs(blocks, {"a.0": 2.2e-6, "a.1": 1e-6}) == [0, 0, 0, 0], "noise"
    assert block_costs([("", 5)], {"b": 1.0}) == [0]


def test_groups_can_be_the_callers() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
    found = inventory(model, groups=lambda names: [n.partition(".")[0] for n in names])
    assert [b.group for b in found.blocks] == ["0", "1", "1"]
    assert found.groups == {"0": model[0], "1": model[1]}
    with pytest.raises(ValueError, match="groups: 'layers' is no module"):
        inventory(model, groups=lambda names: ["layers"] * len(names))
    with pytest.raises(ValueError, match="groups: one a block"):
        inventory(model, groups=lambda names: [])


def test_tensors_that_begin_at_one_address_are_told_apart_by_all_else() -> None:
    base, firsts = torch.zeros(4), FirstTensors()
    tensors = [base, base.view(2, 2), base[:], base[1:], base, base.view(2, 2), base[:2], base[1:]]
    assert [firsts.of(i, tensor) for i, tensor in enumerate(tensors)] == [0, 1, 0, 3, 0, 1, 6, 3]
    empty = [torch.empty(0), torch.empty(0)]
    assert [firsts.of(8 + i, tensor) for i, tensor in enumerate([*empty, empty[0]])] == [8, 9, 8]
