# SPDX-License-Identifier: Apache-2.0
"""Functions of ComfyUI that are wrapped, and given back."""

from __future__ import annotations

import sys
import threading
import types

import pytest
import torch

from distorch.allocation import parse


def sim1() -> torch.device:
    return torch.device("sim", 1)


def module_with(function):
    module = types.ModuleType("core")
    module.ask = function
    return module


def test_a_seam_wraps_and_gives_back(pack) -> None:
    def ask(value=1, *, more=0):
        return value + more

    core = module_with(ask)
    seam = pack.load("patches.seams.seam").FunctionSeam(
        core, "ask", lambda original, *a, **k: 10 * original(*a, **k), "a test"
    )
    seam.install()
    seam.install()
    assert core.ask(2, more=1) == 30
    assert core.ask.__wrapped__ is ask
    seam.uninstall()
    seam.uninstall()
    assert core.ask is ask


def test_a_seam_under_another_wrapper_becomes_transparent(pack) -> None:
    core = module_with(lambda: "core")
    seam = pack.load("patches.seams.seam").FunctionSeam(
        core, "ask", lambda original: "ours", "a test"
    )
    seam.install()
    ours = core.ask
    core.ask = lambda: f"theirs({ours()})"
    core.ask.__wrapped__ = ours
    theirs = core.ask
    seam.uninstall()
    assert core.ask is theirs
    assert core.ask() == "theirs(core)"
    seam.install()
    assert core.ask is theirs  # still in the chain: not wrapped twice
    assert core.ask() == "theirs(ours)"


def test_a_device_is_chosen_inside_the_block_only(pack, comfy) -> None:
    devices = pack.load("patches.seams.devices")
    before = comfy.mm.get_torch_device
    devices.install()
    try:
        with devices.chosen(devices.Choice(model=sim1())):
            assert comfy.mm.get_torch_device() == sim1()
            assert comfy.mm.text_encoder_device() == torch.device("cpu")
        assert comfy.mm.get_torch_device() == torch.device("sim", 0)
        with pytest.raises(KeyError), devices.chosen(devices.Choice(model=sim1())):
            raise KeyError("a loader failed")
        assert comfy.mm.get_torch_device() == torch.device("sim", 0)
    finally:
        devices.uninstall()
    assert comfy.mm.get_torch_device is before


def test_other_threads_see_the_core_device(pack, comfy) -> None:
    devices = pack.load("patches.seams.devices")
    devices.install()
    seen: list[torch.device] = []
    with devices.chosen(devices.Choice(model=sim1())):
        thread = threading.Thread(target=lambda: seen.append(comfy.mm.get_torch_device()))
        thread.start()
        thread.join()
    devices.uninstall()
    assert seen == [torch.device("sim", 0)]


def test_device_names_come_from_the_core(pack, comfy) -> None:
    devices = pack.load("patches.seams.devices")
    comfy.mm.get_all_torch_devices = lambda: [torch.device("sim", i) for i in (10, 2, 0)]
    assert devices.computing() == ["cpu", "sim:0", "sim:2", "sim:10"]
    assert devices.names() == ["cpu", "sim:0", "sim:2", "sim:10", "sim:1"]
    del comfy.mm.get_all_torch_devices  # as before 0.25
    assert devices.names() == ["cpu", "sim:0", "sim:1", "sim:2"]
    comfy.mm.get_torch_device = lambda: torch.device("mps")
    assert devices.computing() == ["cpu", "mps"]
    assert devices.names() == ["cpu", "mps", "sim:0", "sim:1", "sim:2"]


def test_patchers_are_ordinary_inside_the_block_only(pack, comfy, monkeypatch) -> None:
    non_dynamic = pack.load("patches.seams.non_dynamic")

    class Dynamic(comfy.patcher.ModelPatcher):
        def is_dynamic(self) -> bool:
            return True

    comfy.patcher.CoreModelPatcher = Dynamic

    def fails() -> None:
        assert comfy.patcher.CoreModelPatcher is comfy.patcher.ModelPatcher
        raise OSError("no file")

    with pytest.raises(OSError, match="no file"), non_dynamic.non_dynamic():
        fails()
    assert comfy.patcher.CoreModelPatcher is Dynamic
    sd = types.ModuleType("comfy.sd")
    sd.CLIP = sd.VAE = lambda: comfy.patcher.CoreModelPatcher
    monkeypatch.setitem(sys.modules, "comfy.sd", sd)
    monkeypatch.setattr(sys.modules["comfy"], "sd", sd, raising=False)
    made = sd.CLIP
    with non_dynamic.non_dynamic(but=["VAE"]):
        assert sd.CLIP() is comfy.patcher.ModelPatcher
        assert sd.VAE() is Dynamic, "what is not placed stays dynamic"
        assert comfy.patcher.CoreModelPatcher is comfy.patcher.ModelPatcher
    assert sd.VAE is sd.CLIP is made
    assert comfy.patcher.CoreModelPatcher is Dynamic
    del comfy.patcher.CoreModelPatcher  # a ComfyUI without DynamicVRAM
    with non_dynamic.non_dynamic():
        pass
    assert not hasattr(comfy.patcher, "CoreModelPatcher")


def test_a_dynamic_model_is_refused_by_name(pack, comfy) -> None:
    patcher = comfy.model()
    patcher.is_dynamic = lambda: True
    adopt = pack.load("patches.placing.adopt")
    request = pack.load("patches.placing.request").Request(
        "sim:0", parse("sim:0,*#sim:0", kinds=["sim"])
    )
    with pytest.raises(RuntimeError, match=r"DynamicVRAM(.|\n)*--disable-dynamic-vram"):
        adopt.adopt(patcher, request)
