# SPDX-License-Identifier: Apache-2.0
"""Nodes of other packs: where our inputs stand among theirs, and whose nodes are there."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest


class Theirs:
    """A node of another pack."""

    FUNCTION, RETURN_TYPES = "work", ("WANVAE",)
    calls: list[dict[str, Any]]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {"a": ("INT", {}), "load_device": (["main_device", "offload_device"], {})},
            "optional": {"b": ("INT", {}), "device": (["gpu", "cpu"], {})},
            "hidden": {"id": "UNIQUE_ID"},
        }

    def work(self, **inputs: Any) -> tuple[str, str]:
        type(self).calls.append(inputs)
        return "made", "more than there was"


@pytest.fixture
def rows(comfy, pack, monkeypatch: pytest.MonkeyPatch):
    core = types.ModuleType("nodes")
    core.NODE_CLASS_MAPPINGS = {"Theirs": Theirs}
    core.NODE_DISPLAY_NAME_MAPPINGS = {}
    monkeypatch.setitem(sys.modules, "nodes", core)
    Theirs.calls = []
    return pack.load("nodes.other_packs")


def made(pack, rows, **row: Any) -> Any:
    return pack.load("nodes.others").on_a_device("Theirs", rows.Row({"vae": "WANVAE"}, **row))


def names(cls: Any) -> dict[str, list[str]]:
    return {part: list(inputs) for part, inputs in cls.INPUT_TYPES().items()}


@pytest.mark.parametrize(
    ("device", "required", "optional"),
    [
        ({}, ["a", "load_device"], ["b", "device"]),
        ({"behind": ""}, ["a", "load_device"], ["device", "b"]),
        ({"name": "c", "part": "required", "behind": "a"}, ["a", "c", "load_device"], None),
        ({"name": "c", "part": "required"}, ["a", "load_device", "c"], None),
        ({"name": "c", "part": "required", "instead": "load_device"}, ["a", "c"], None),
        ({"name": "c", "behind": "b", "instead": "device"}, None, ["b", "c"]),
        ({"name": "c", "behind": "gone"}, None, ["b", "device", "c"]),
    ],
)
def test_where_a_device_stands(pack, rows, device, required, optional) -> None:
    found = names(made(pack, rows, device=rows.DeviceInput(**device)))
    assert found["required"] == (required or ["a", "load_device"])
    assert found["optional"] == (optional or ["b", "device"])
    assert set(found) == {"required", "optional"}


@pytest.mark.parametrize(("asked", "given"), [("cpu", "cpu"), ("sim:1", "gpu"), ("cuda:7", "gpu")])
def test_what_their_own_device_input_gets(pack, rows, asked: str, given: str) -> None:
    device = rows.DeviceInput("load_device", instead="device", gives=("cpu", "gpu"), link=True)
    node = made(pack, rows, device=device, gives="load_device")
    assert node.RETURN_TYPES == ("WANVAE", "MULTIGPUDEVICE")
    used = "sim:0" if asked == "cuda:7" else asked
    assert node().override(load_device=asked, a=("a model",), b=(1, 2)) == ("made", used)
    assert Theirs.calls == [{"device": given, "a": "a model", "b": (1, 2)}]


def test_another_name_is_theirs_where_they_do_not_know_it(pack, rows) -> None:
    node = made(pack, rows, alias=("old", "b"))
    assert names(node)["optional"] == ["b", "old", "device"]
    node().override(old=3)
    node().override(old=3, b=4)
    node().override(old=None)
    assert Theirs.calls == [{"b": 3}, {"b": 4}, {}]
    assert names(made(pack, rows, alias=("device", "b")))["optional"] == ["b", "device"]


def test_a_node_whose_pack_has_failed_is_left_out(pack, rows, monkeypatch) -> None:
    core = sys.modules["nodes"]
    for name in (
        "comfy.sd",
        "comfy.utils",
        "comfy.cli_args",
        "folder_paths",
    ):  # which the tables of our own nodes import
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    table, nodes = pack.load("nodes.table"), pack.load("nodes")
    found = table.node_classes({}, ["comfyui-florence2-main", "x-flux-comfyui.disabled"])
    ours = {name for name in found if name.endswith("MultiGPU")}
    assert {"Florence2ModelLoaderMultiGPU", "DownloadAndLoadFlorence2ModelMultiGPU"} < ours
    assert not {n for n in ours if "Wan" in n or "Flux" in n or "GGUF" in n}
    core.NODE_CLASS_MAPPINGS = {**found, "Florence2ModelLoader": Theirs}
    nodes.drop_without_packs(found)
    assert "Florence2ModelLoaderMultiGPU" in core.NODE_CLASS_MAPPINGS
    assert "DownloadAndLoadFlorence2ModelMultiGPU" not in core.NODE_CLASS_MAPPINGS
    assert "UNetLoaderLP" in core.NODE_CLASS_MAPPINGS


def test_a_node_that_never_came_is_told(pack, rows, monkeypatch) -> None:
    monkeypatch.setattr(sys.modules["nodes"], "NODE_CLASS_MAPPINGS", {})
    with pytest.raises(RuntimeError, match=r"^the pack with the node Far has not been loaded$"):
        pack.load("nodes.wrapped").Later("Far", "MODEL")()


def test_all_other_packs_ids(pack, rows) -> None:
    assert {pack_: len(found) for pack_, found in rows.PACKS.items()} == {
        "ComfyUI-WanVideoWrapper": 20,
        "ComfyUI-Florence2": 2,
        "ComfyUI-LTXVideo": 1,
        "ComfyUI_bitsandbytes_NF4": 1,
        "x-flux-comfyui": 1,
        "ComfyUI-MMAudio": 3,
        "PuLID_ComfyUI": 3,
    }
