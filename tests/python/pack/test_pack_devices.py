# SPDX-License-Identifier: Apache-2.0
"""The devices of another pack's modules: told for a call, as before after it, whatever happens in it."""

from __future__ import annotations

import sys
import types

import pytest
import torch


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch):
    """Makes a module of the pack "other" with these globals."""

    def make(name: str, **globals_: object) -> types.ModuleType:
        made = types.ModuleType(name)
        made.__dict__.update(globals_)
        monkeypatch.setitem(sys.modules, name, made)
        return made

    return make


def on(name: str) -> torch.device:
    """Not a constant: the name "sim" is there once the stand-in is."""
    return torch.device(name)


def seen(*modules: types.ModuleType) -> list[tuple[str, str]]:
    names = ("device", "offload_device")
    return [tuple(str(vars(m).get(name)) for name in names) for m in modules]


def test_every_module_of_the_pack_and_no_other(pack, comfy, module) -> None:
    seams = pack.load("patches.seams.pack_devices")
    root = module("other", device="a text")
    inner = module("other.nodes", device=on("sim:0"), offload_device=on("cpu"))
    deep = module("other.a.b", device=on("sim:0"))
    beside = module("others", device=on("sim:0"))
    before = seen(root, inner, deep, beside)
    pack.load("patches.seams.devices").install()
    with seams.on_devices("other", "sim:1", "sim:2"):
        assert seen(root, inner, deep, beside) == [
            ("a text", "None"),
            ("sim:1", "sim:2"),
            ("sim:1", "None"),
            ("sim:0", "None"),
        ]
        assert comfy.mm.get_torch_device() == on("sim:1")
        assert comfy.mm.unet_offload_device() == on("sim:2")
        assert torch.sim.current_device() == 1
    assert seen(root, inner, deep, beside) == before
    assert comfy.mm.get_torch_device() == on("sim:0")
    assert torch.sim.current_device() == 0


def test_where_blocks_wait_is_told_to_one_module_only(pack, comfy, module) -> None:
    seams = pack.load("patches.seams.pack_devices")
    sampler = module("other.sampler", device=on("sim:0"), offload_device=on("cpu"))
    utils = module("other.utils", device=on("sim:0"), offload_device=on("cpu"))
    with seams.on_devices("other", "sim:1", "sim:2", computes="other.sampler"):
        assert seen(sampler, utils) == [("sim:1", "sim:2"), ("sim:1", "cpu")]
        assert comfy.mm.unet_offload_device() == on("cpu")
    assert seen(sampler, utils) == [("sim:0", "cpu"), ("sim:0", "cpu")]


def test_a_module_that_is_imported_in_the_call_does_not_keep_its_device(
    pack, comfy, module
) -> None:
    seams = pack.load("patches.seams.pack_devices")
    pack.load("patches.seams.devices").install()
    late: list[types.ModuleType] = []

    def call() -> None:
        with seams.on_devices("other", "sim:1"):
            devices = {"device": comfy.mm.get_torch_device()}
            late.append(
                module("other.late", **devices, offload_device=comfy.mm.unet_offload_device())
            )
            assert late[0].device == on("sim:1")
            raise ValueError("the call failed")

    with pytest.raises(ValueError, match="the call failed"):
        call()
    assert seen(*late) == [("sim:0", "cpu")]
    assert torch.sim.current_device() == 0
