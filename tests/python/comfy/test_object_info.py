# SPDX-License-Identifier: Apache-2.0
"""All 75 ids of ComfyUI-MultiGPU, as `/object_info` tells of them, beside its own, input by input.

Its own are those of a server that runs it (its folder in DISTORCH_PREDECESSOR_PATH); both have the GGUF pack and
stand-ins for the others. Devices differ: it sees no simulated ones.
"""

from __future__ import annotations

import os
import pathlib
from typing import Any

import pytest
import stand_ins
from comfy_harness import ComfyServer, versions
from comfy_harness.server import Version

PREDECESSOR = pathlib.Path(os.environ.get("DISTORCH_PREDECESSOR_PATH", "/nowhere"))
pytestmark = [
    pytest.mark.comfy,
    pytest.mark.skipif(
        not (PREDECESSOR / "wrappers.py").is_file(), reason="DISTORCH_PREDECESSOR_PATH is not set"
    ),
    pytest.mark.skipif(
        not os.environ.get("COMFYUI_GGUF_PATH"), reason="COMFYUI_GGUF_PATH is not set"
    ),
    pytest.mark.skipif(not versions(), reason="COMFYUI_PATH is not set"),
]

#: The name that its folder is copied under: ours steps aside for it, and ComfyUI reads folders in no order.
NAME = "ComfyUI-MultiGPU"
#: What we have behind theirs.
NEW = {"keep_loaded", "execution_mode", "expert_mode_allocations"}
#: The core's loaders that have the newer node API in later versions: there the predecessor's own inputs get lost, ours not.
LOST = {
    f"{n}CLIPLoader{e}" for n in ("Triple", "Quadruple") for e in ("MultiGPU", "DisTorch2MultiGPU")
}
#: Files of each kind, so that no choice is empty.
FOLDERS = ("diffusion_models", "text_encoders", "clip_vision", "vae", "vae_approx", "controlnet")
FOLDERS += ("checkpoints", "wav2vec2", "LLM", "mmaudio", "pulid", "xlabs_controlnets")
Info = dict[str, dict[str, Any]]


def object_info(version: Version, base: pathlib.Path, *packs: pathlib.Path) -> Info:
    """What a ComfyUI says with our pack, the GGUF pack, the stand-ins, and these."""
    for folder in FOLDERS:
        path = base / "models" / folder
        path.mkdir(parents=True)
        (path / "a.safetensors").touch()
    (base / "models" / "diffusion_models" / "a.gguf").touch()
    (base / "models" / "LLM" / "a").mkdir()
    others = [pathlib.Path(os.environ["COMFYUI_GGUF_PATH"]), *stand_ins.write(base / "written")]
    server = ComfyServer(version, base, packs=[*packs, *others])
    try:
        return dict(server.get("/object_info"))
    finally:
        server.stop()


def of(info: Info, pack: str) -> Info:
    return {n: i for n, i in info.items() if i["python_module"].rpartition(".")[2] == pack}


@pytest.fixture(scope="module")
def predecessor(tmp_path_factory: pytest.TempPathFactory) -> Info:
    """What the predecessor's nodes ask for, on the newest ComfyUI: it does not load on the oldest."""
    base = tmp_path_factory.mktemp("predecessor")
    (base / NAME).symlink_to(PREDECESSOR.resolve())
    newest = versions(dynamic=False)[0]
    found = of(object_info(newest, base, base / NAME), NAME)
    if not found and newest.number < (0, 25):
        pytest.skip(
            "the predecessor does not load on this ComfyUI: name a newer one first in COMFYUI_PATH"
        )
    return found


@pytest.fixture(scope="module", params=versions(dynamic=False) or [None], ids=str)
def both(
    request: pytest.FixtureRequest, predecessor: Info, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Info, Info]:
    """What is said of the predecessor's nodes and of ours."""
    return predecessor, of(object_info(request.param, tmp_path_factory.mktemp("ours")), "DisTorch")


def is_devices(row: list[Any]) -> bool:
    return isinstance(row[0], list) and "cpu" in row[0]


def shape(row: list[Any]) -> dict[str, Any]:
    """What of an input a saved workflow depends on: its type, default and range."""
    options = row[1] if len(row) > 1 else {}
    kept = {key: options[key] for key in ("default", "min", "max", "step") if key in options}
    kind = "choice" if isinstance(row[0], list) else row[0]
    if is_devices(row):
        kept.pop("default", None)  # "cuda:0" there, or the first that it sees
    if isinstance(row[0], list) and kept.get("default") in row[0][:1]:
        kept.pop("default")  # the first is chosen anyway
    if kept.get("default", 0) is None:
        kept.pop("default")
    return {"type": kind, **kept}


def test_the_predecessor_has_75_ids_and_so_have_we(both: tuple[Info, Info]) -> None:
    theirs, ours = both
    assert len(theirs) == 75
    assert sorted(set(theirs) - set(ours)) == []
    assert sorted(set(ours) - set(theirs)) == ["DisTorchDevice", "DisTorchPlan", "DisTorchUnload"]


def test_every_input_is_theirs_and_in_their_order(both: tuple[Info, Info]) -> None:
    theirs, ours = both
    compared, wrong = 0, []
    for name, info in theirs.items():
        for part in ("required", "optional"):
            wanted, have = info["input"].get(part, {}), ours[name]["input"].get(part, {})
            more = {key for key in have if key not in wanted}
            if part == "optional" and name in LOST and not wanted:
                assert "device" in more, name
                continue
            if not more <= NEW or list(have)[: len(wanted)] != list(wanted):
                wrong.append((name, part, list(wanted), list(have)))
                continue
            for key, row in wanted.items():
                compared += 1
                if shape(row) != shape(have[key]):
                    wrong.append((name, key, shape(row), shape(have[key])))
                if is_devices(row) != is_devices(have[key]):
                    wrong.append((name, key, row[0], have[key][0]))
    assert wrong == []
    assert compared > 440


def test_every_output_is_theirs(both: tuple[Info, Info]) -> None:
    theirs, ours = both
    keys = ("output", "output_name", "output_is_list", "output_node")
    wrong = [
        (name, key, info[key], ours[name][key])
        for name, info in theirs.items()
        for key in keys
        if info[key] != ours[name][key]
    ]
    assert wrong == []
