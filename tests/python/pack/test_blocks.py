# SPDX-License-Identifier: Apache-2.0
"""Which blocks a model has, and which of them may travel."""

from __future__ import annotations

import gc
import weakref

import torch
from comfy_standin import CastLinear, Model


def test_every_tensor_is_in_one_block(pack) -> None:
    model = Model()
    blocks = pack.load("patches.placing.blocks").find_blocks(model)
    keys = [held.key for block in blocks for held in block.tensors]
    tensors = [*dict(model.named_parameters()), *dict(model.named_buffers())]
    assert sorted(keys) == sorted(tensors)
    assert sum(b.bytes for b in blocks) == sum(t.nbytes for t in model.state_dict().values())


def test_what_stays_says_why(pack) -> None:
    reasons = {b.name: b.pinned for b in pack.load("patches.placing.blocks").find_blocks(Model())}
    assert reasons["blocks.0.up"] == ""
    assert reasons["blocks.0 (own)"] == "parameter beside submodules"
    assert reasons["norm"] == "the layer does not cast its weights"
    assert reasons["model (buffers)"] == "buffer"
    assert reasons["table"].startswith("embedding")


def test_small_blocks_stay(pack) -> None:
    reasons = {
        b.name: b.pinned for b in pack.load("patches.placing.blocks").find_blocks(Model(size=16))
    }
    assert reasons["blocks.0.up"] == "small"


def test_only_weight_and_bias_travel(pack) -> None:
    model = torch.nn.Sequential(CastLinear(128, 128))
    model[0].input_scale = torch.nn.Parameter(torch.ones(1), requires_grad=False)
    blocks = pack.load("patches.placing.blocks").find_blocks(model)
    assert {b.name: [c.name for c in b.tensors] for b in blocks} == {
        "0": ["weight", "bias"],
        "0 (own)": ["input_scale"],
    }
    assert blocks[1].pinned == "not moved by the layer's cast"


def test_tied_blocks_stay_together(pack) -> None:
    model = torch.nn.ModuleDict({"table": CastLinear(128, 128), "head": CastLinear(128, 128)})
    model["head"].weight = model["table"].weight
    free = pack.load("patches.placing.blocks").find_blocks(model)
    assert [b.tied for b in free] == ["table", "table"]
    assert [b.pinned for b in free] == ["", ""]


def test_the_wanted_dtype_decides_the_size(pack) -> None:
    model = torch.nn.Sequential(CastLinear(128, 128, bias=False))
    model[0].weight_comfy_model_dtype = torch.float16
    (block,) = pack.load("patches.placing.blocks").find_blocks(model)
    assert block.bytes == 128 * 128 * 2
    assert block.tensors[0].host_copy_on(torch.device("cpu")).dtype == torch.float16
    assert block.tensors[0].original.dtype == torch.float32


def test_blocks_do_not_keep_the_model_alive(pack) -> None:
    model = Model()
    model.record = pack.load("patches.placing.blocks").find_blocks(model)
    gone = weakref.ref(model)
    gc.collect()
    gc.disable()
    try:
        del model
        assert gone() is None  # without the collector: the record makes no cycle
    finally:
        gc.enable()
