# SPDX-License-Identifier: Apache-2.0
"""Every id of ComfyUI-MultiGPU (26, and 18 with the GGUF pack) passes ComfyUI's prompt validation.

Once with the defaults that `/object_info` tells, and once with those of the predecessor, on whose machines the
devices are called cuda:0 and so on. One prompt holds every id; its outputs go to nodes that save them.
"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import pytest
from comfy_harness import ComfyServer, Workflow, versions

pytestmark = [
    pytest.mark.comfy,
    pytest.mark.skipif(
        not os.environ.get("COMFYUI_GGUF_PATH"), reason="COMFYUI_GGUF_PATH is not set"
    ),
]

WITH_DEVICE = ["UNETLoader", "VAELoader", "CLIPLoader", "DualCLIPLoader", "TripleCLIPLoader"]
WITH_DEVICE += ["QuadrupleCLIPLoader", "CLIPVisionLoader", "CheckpointLoaderSimple"]
WITH_DEVICE += ["ControlNetLoader", "DiffusersLoader", "DiffControlNetLoader"]
GGUF = ["UnetLoaderGGUF", "UnetLoaderGGUFAdvanced", "CLIPLoaderGGUF", "DualCLIPLoaderGGUF"]
GGUF += ["TripleCLIPLoaderGGUF", "QuadrupleCLIPLoaderGGUF"]

FILES = [
    *(f"{folder}/a.safetensors" for folder in ("diffusion_models", "vae", "text_encoders")),
    *(f"{folder}/a.safetensors" for folder in ("clip_vision", "checkpoints", "controlnet")),
    "diffusion_models/a.gguf",
    "text_encoders/a.gguf",
    "diffusers/a/model_index.json",
]

LEGACY = {
    "device": "cuda:0",
    "virtual_vram_gb": 4.0,
    "use_other_vram": False,
    "expert_mode_allocations": "",
}
ADVANCED = {
    "unet_compute_device": "cuda:0",
    "unet_virtual_vram_gb": 4.0,
    "unet_donor_device": "cpu",
    "clip_compute_device": "cpu",
    "clip_virtual_vram_gb": 2.0,
    "clip_donor_device": "cpu",
    "vae_device": "cuda:0",
    "unet_expert_mode_allocations": "",
    "clip_expert_mode_allocations": "",
    "high_precision_loras": True,
    "eject_models": True,
}


def placement(name: str) -> dict[str, Any]:
    """What the predecessor adds to a loader with a placement."""
    encoder = "CLIP" in name
    return {
        "device" if encoder else "compute_device": "cuda:0",
        "virtual_vram_gb": 4.0,
        "donor_device": "cpu",
        "expert_mode_allocations": "",
        "eject_models": not encoder,
    }


#: Each id, with the predecessor's own inputs and their defaults.
IDS: dict[str, dict[str, Any]] = {
    "DeviceSelectorMultiGPU": {"device": "cuda:0"},
    "UNetLoaderLP": {},
    "CheckpointLoaderAdvancedMultiGPU": dict.fromkeys(
        ("unet_device", "clip_device", "vae_device"), "cuda:0"
    ),
    "CheckpointLoaderAdvancedDisTorch2MultiGPU": ADVANCED,
    **{f"{name}MultiGPU": {"device": "cuda:0"} for name in WITH_DEVICE + GGUF},
    **{f"{name}DisTorch2MultiGPU": placement(name) for name in WITH_DEVICE + GGUF},
    **{f"{name}DisTorchMultiGPU": LEGACY for name in GGUF},
}


@pytest.fixture(scope="module", params=versions(dynamic=False) or [None], ids=str)
def comfy(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ComfyServer]:
    """A server with the GGUF pack, and an empty file of each kind."""
    base = tmp_path_factory.mktemp("ids")
    for file in FILES:
        path = base / "models" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    pack = pathlib.Path(os.environ["COMFYUI_GGUF_PATH"])
    server = ComfyServer(request.param, base, packs=[pack])
    yield server
    server.stop()


VALIDATE = """
import asyncio, execution, json
_valid, _error, _outputs, _errors = asyncio.run(
    execution.validate_prompt("ids", json.loads({prompt!r}), None))
result = [_valid, _error, sorted(_outputs), _errors]
"""


def default(name: str, kind: Any, settings: dict[str, Any]) -> Any:
    """What a front end shows in a widget that nobody has touched."""
    if "default" in settings:
        return settings["default"]
    options = kind if isinstance(kind, list) else settings.get("options")
    assert options, f"{name}: nothing to choose from"
    return options[0]


def of_object_info(info: dict[str, Any], model: list[Any]) -> dict[str, Any]:
    """Every input of a node: links to `model`, defaults elsewhere."""
    return {
        name: model if kind == "MODEL" else default(name, kind, settings[0] if settings else {})
        for part in ("required", "optional")
        for name, (kind, *settings) in info["input"].get(part, {}).items()
    }


def refused(comfy: ComfyServer, inputs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What ComfyUI has against each of the ids, all of them in one prompt whose outputs are saved."""
    w, made = Workflow(), {}
    for kind, values in inputs.items():
        w.save(w.add(kind, **values), kind)
        made[str(len(w))] = kind
    valid, error, outputs, errors = comfy.evaluate(VALIDATE.format(prompt=json.dumps(w)))
    good = {made[node] for node in outputs}
    told = {w[node]["class_type"]: row["errors"] for node, row in errors.items() if row["errors"]}
    assert bool(valid) is bool(good), error
    return {kind: told.get(kind, error) for kind in inputs if kind not in good or kind in told}


def every_id(comfy: ComfyServer) -> dict[str, dict[str, Any]]:
    """The inputs of each id; the first is a model loader, for those that need a model."""
    known = comfy.get("/object_info")
    assert {name for name in IDS if name not in known} == set()
    return {name: of_object_info(known[name], ["1", 0]) for name in ["UNetLoaderLP", *IDS]}


def test_the_defaults_of_every_id_validate(comfy: ComfyServer) -> None:
    assert len(IDS) == 26 + 18
    assert refused(comfy, every_id(comfy)) == {}


def test_the_predecessors_defaults_are_ours_and_validate(comfy: ComfyServer) -> None:
    nodes = every_id(comfy)
    for name, theirs in IDS.items():
        ours = nodes[name]
        assert set(theirs) <= set(ours), name
        same = {key: value for key, value in theirs.items() if value != "cuda:0"}
        assert {key: ours[key] for key in same} == same, name
        new = {"keep_loaded", "execution_mode"}
        nodes[name] = {key: value for key, value in ours.items() if key not in new} | theirs
    assert refused(comfy, nodes) == {}


def test_a_wrong_default_would_be_found(comfy: ComfyServer) -> None:
    nodes = every_id(comfy)
    nodes["VAELoaderDisTorch2MultiGPU"]["virtual_vram_gb"] = 500.0
    nodes["CLIPLoaderGGUFMultiGPU"]["clip_name"] = "missing.gguf"
    found = refused(comfy, nodes)
    assert set(found) == {"VAELoaderDisTorch2MultiGPU", "CLIPLoaderGGUFMultiGPU"}
    assert "bigger than max" in found["VAELoaderDisTorch2MultiGPU"][0]["message"]
    assert "not in list" in found["CLIPLoaderGGUFMultiGPU"][0]["message"]
