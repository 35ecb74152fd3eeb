# SPDX-License-Identifier: Apache-2.0
"""The workflows of ComfyUI-MultiGPU (its folder in DISTORCH_PREDECESSOR_PATH): each validates whole, with stand-ins for other
packs, and those that need none run on small models, with the outputs of plain ComfyUI.

For a run, files are the small ones, cuda:N is sim:N, and what no small model can do is left out: prompts that are encoded
for a model of another width are replaced by random ones, and decoding has latents of its own. Every node of ours runs, with
the settings of the workflow.
"""

from __future__ import annotations

import copy
import json
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import pytest
import stand_ins
import torch
from comfy_harness import ComfyServer, versions

PREDECESSOR = pathlib.Path(os.environ.get("DISTORCH_PREDECESSOR_PATH", "/nowhere"))
API = sorted((PREDECESSOR / "ci" / "example_workflows_api").glob("*.json"))
SAVED = sorted((PREDECESSOR / "example_workflows").glob("*.json"))
pytestmark = [
    pytest.mark.comfy,
    pytest.mark.skipif(not API, reason="DISTORCH_PREDECESSOR_PATH is not set"),
    pytest.mark.skipif(
        not os.environ.get("COMFYUI_GGUF_PATH"), reason="COMFYUI_GGUF_PATH is not set"
    ),
    pytest.mark.skipif(not versions(), reason="COMFYUI_PATH is not set"),
]
Prompt = dict[str, dict[str, Any]]
FILE = re.compile(r".*\.(safetensors|sft|gguf|pt|pth|bin|png|jpg|jpeg|webp|mp4|webm)$")
FOLDERS = ("diffusion_models", "text_encoders", "vae", "checkpoints", "loras", "clip_vision")
FOLDERS += ("controlnet", "LLM")


def api(path: pathlib.Path) -> Prompt:
    return dict(json.loads(path.read_text()))


def read_saved(path: pathlib.Path) -> Prompt:
    """A saved workflow as far as validating needs it: classes and links; widgets by name where the file has them."""
    workflow = json.loads(path.read_text())
    links = {row[0]: [str(row[1]), row[2]] for row in workflow["links"]}
    skip = {"MarkdownNote", "Note", "PrimitiveNode"}
    found: Prompt = {}
    for node in workflow["nodes"]:
        if node["type"] in skip or node.get("mode", 0) == 2:
            continue
        linked = {i["name"]: links.get(i.get("link")) for i in node.get("inputs", [])}
        found[str(node["id"])] = {
            "class_type": node["type"],
            "inputs": {name: link for name, link in linked.items() if link},
            "values": list(node.get("widgets_values") or [])
            if isinstance(node.get("widgets_values"), list)
            else dict(node.get("widgets_values") or {}),
        }
    for row in found.values():  # a primitive's value is the widget's
        row["inputs"] = {n: link for n, link in row["inputs"].items() if link[0] in found}
    return found


# A pack that has every class of the workflows that nobody else has: any inputs, any outputs.
ANYTHING = """
class Any(str):
    __slots__ = ()
    __hash__ = str.__hash__
    def __ne__(self, other):
        return False
def node(inputs, output):
    class Anything:
        CATEGORY, FUNCTION, OUTPUT_NODE = "stand-in", "work", output
        RETURN_TYPES = (Any("*"),) * 8
        @classmethod
        def INPUT_TYPES(cls):
            return {{"required": {{}}, "optional": {{name: (Any("*"), {{}}) for name in inputs}}}}
        def work(self, **inputs):
            return (None,) * 8
    return Anything
NODE_CLASS_MAPPINGS = {{name: node(*row) for name, row in {rows!r}.items()}}
"""


def anything(folder: pathlib.Path, known: set[str]) -> pathlib.Path:
    """Writes that pack for the classes that are not known."""
    rows: dict[str, tuple[list[str], bool]] = {}
    for prompt in [*map(api, API), *map(read_saved, SAVED)]:
        for row in prompt.values():
            if row["class_type"] not in known:
                names = rows.setdefault(
                    row["class_type"], ([], "VHS_VideoCombine" in row["class_type"])
                )[0]
                names += [name for name in row["inputs"] if name not in names]
    path = folder / "distorch_test_anything"
    path.mkdir(parents=True)
    (path / "__init__.py").write_text(ANYTHING.format(rows=rows))
    return path


def write_files(base: pathlib.Path, values: Any) -> None:
    """An empty file in every folder for each one that is named."""
    for value in values:
        if isinstance(value, str) and FILE.match(value):
            for folder in (*(base / "models" / f for f in FOLDERS), base / "input"):
                path = folder / value.replace("\\", "/")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()


@pytest.fixture(scope="module", params=versions(dynamic=False), ids=str)
def whole(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ComfyServer]:
    """A server that knows every class of the workflows, and has every file."""
    base = tmp_path_factory.mktemp("whole")
    for path in API:
        for row in api(path).values():
            write_files(base, row["inputs"].values())
    for path in SAVED:
        for row in read_saved(path).values():
            values = row["values"]
            write_files(base, values.values() if isinstance(values, dict) else values)
    packs = [pathlib.Path(os.environ["COMFYUI_GGUF_PATH"]), *stand_ins.write(base / "written")]
    (base / "first").mkdir()
    first = ComfyServer(request.param, base / "first", packs=packs)
    try:
        known = set(first.get("/object_info"))
    finally:
        first.stop()
    server = ComfyServer(request.param, base, packs=[*packs, anything(base / "any", known)])
    yield server
    server.stop()


VALIDATE = """
import asyncio, execution, json
_found = asyncio.run(execution.validate_prompt("whole", json.loads({prompt!r}), None))
result = [_found[0], _found[1], {{k: [e["message"] + ": " + e["details"] for e in v["errors"]]
                                 for k, v in _found[3].items()}}]
"""


def refused(server: ComfyServer, prompt: Prompt) -> Any:
    """What ComfyUI has against a prompt; nothing: an empty list."""
    valid, error, nodes = server.evaluate(VALIDATE.format(prompt=json.dumps(prompt)))
    return [] if valid and not any(nodes.values()) else [nodes, error]


@pytest.mark.parametrize("path", API, ids=lambda p: p.stem)
def test_an_api_workflow_validates_whole(whole: ComfyServer, path: pathlib.Path) -> None:
    assert len(API) == 15
    assert refused(whole, api(path)) == []


@pytest.mark.parametrize("path", SAVED, ids=lambda p: p.stem)
def test_a_saved_workflow_validates_whole(whole: ComfyServer, path: pathlib.Path) -> None:
    """Its widgets are put back in the order of our inputs, as the front end does (test_front_end.py does it there)."""
    assert len(SAVED) == 18
    info, prompt = whole.get("/object_info"), read_saved(path)
    ours = 0
    for row in prompt.values():
        values = row.pop("values")
        known = info[row["class_type"]]
        is_ours = known["python_module"].endswith("DisTorch")
        ours += is_ours
        names = widgets(known)
        if isinstance(values, dict):
            given = values
        else:  # a seed has a second widget behind it
            slots = [slot for name in names for slot in (name, *["then"] * (name == "seed"))]
            assert not is_ours or len(values) <= len(slots), row["class_type"]
            given = dict(zip(slots, values, strict=False))
        for name in names:
            if name not in row["inputs"]:
                row["inputs"][name] = (
                    given[name] if is_ours and name in given else default(known, name)
                )
        needed = [n for n in known["input"].get("required", {}) if n not in row["inputs"]]
        assert needed == [], (row["class_type"], needed)
    assert ours >= 1
    assert refused(whole, prompt) == []


def widgets(info: dict[str, Any]) -> list[str]:
    kinds = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
    return [
        name
        for part in ("required", "optional")
        for name, (kind, *_) in info["input"].get(part, {}).items()
        if isinstance(kind, list) or kind in kinds
    ]


def default(info: dict[str, Any], name: str) -> Any:
    kind, *rest = {**info["input"].get("optional", {}), **info["input"].get("required", {})}[name]
    options = rest[0] if rest else {}
    choices = kind if isinstance(kind, list) else options.get("options") or [""]
    fallback = {"INT": 1, "FLOAT": 1.0, "BOOLEAN": False}.get(str(kind), choices[0])
    return options.get("default", fallback)


# What runs on small models

#: Classes whose output is a prompt, or made of one, for a model that has no small encoder here.
PROMPTS = {"CLIPTextEncode", "FluxGuidance", "ConditioningZeroOut", "TextEncodeQwenImageEditPlus"}
LATENTS = {"EmptySD3LatentImage", "EmptyHunyuanLatentVideo", "EmptyLatentImage"}
LATENTS |= {"EmptyMochiLatentVideo"}
#: What is added to a core loader's name.
OURS = re.compile(r"(DisTorch2)?MultiGPU$")


def runnable(path: pathlib.Path) -> bool:
    """Whether a workflow needs no other pack."""
    classes = {row["class_type"] for row in api(path).values()}
    return not any("GGUF" in c or "Wan" in c or "Florence" in c for c in classes)


def small(prompt: Prompt) -> Prompt:
    """The workflow for small models: see the head of this file."""
    kinds = {row["class_type"] for row in prompt.values()}
    checkpoint = any("Checkpoint" in kind for kind in kinds)
    flux = "ModelSamplingFlux" in kinds
    shape = "1,4,8,8" if checkpoint else "1,16,8,8" if flux else "1,16,1,8,8"
    width = {"width": 64, "pooled": 32} if flux else {"width": 4096, "pooled": 0}
    made: Prompt = {}
    for key, old in prompt.items():
        row = copy.deepcopy(old)
        kind, inputs = row["class_type"], row["inputs"]
        if kind in LATENTS or kind == "LTXVImgToVideo":
            row = node("DistorchTestLatent", shape=shape)
        elif kind in PROMPTS and not checkpoint:
            row = node("DistorchTestConditioning", tokens=8, **width, seed=int(key))
            if kind == "CLIPTextEncode":  # the encoder is ours and runs, too
                made[f"more{key}.0"] = node(
                    "CLIPTextEncode", clip=inputs["clip"], text=inputs["text"]
                )
                made[f"more{key}.1"] = node(
                    "DistorchTestSave", value=[f"more{key}.0", 0], name=f"text {key}"
                )
        elif kind == "VAEDecode":
            if not checkpoint:
                made[f"more{key}.0"] = node(
                    "DistorchTestSave", value=inputs["samples"], name="latent"
                )
                made[f"more{key}.1"] = node("DistorchTestLatent", shape="1,4,8,8")
                inputs["samples"] = [f"more{key}.1", 0]
            made[f"more{key}.2"] = node("DistorchTestSave", value=[key, 0], name="image")
        elif kind.startswith("Save"):
            continue
        made[key] = row
        for name, value in row["inputs"].items():
            row["inputs"][name] = here(name, value, flux=flux)
        if "type" in row["inputs"] and "CLIP" in kind:
            # SD 3 has the encoders that are given; of others a missing one would compute with what is in memory.
            row["inputs"]["type"] = "sd3" if "Dual" in kind else "stable_diffusion"
    return shortened(made, prompt)


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def here(name: str, value: Any, *, flux: bool) -> Any:
    """A file that we have, a device that we have; all else as it is."""
    files = {
        "unet_name": "flux.safetensors" if flux else "wan.safetensors",
        "ckpt_name": "sd15.safetensors",
        "vae_name": "vae.safetensors",
        "lora_name": "wan.safetensors",
        **dict.fromkeys(("clip_name", "clip_name1", "clip_name2"), "clip_l.safetensors"),
    }
    if name in files:
        return (
            "wan_second.safetensors"
            if "low_noise" in str(value) and name[0] == "u"
            else files[name]
        )
    if isinstance(value, str) and re.fullmatch(r"cuda:\d", value):
        return f"sim:{value[-1]}"
    if name == "steps":
        return min(value, 4)
    if name in ("start_at_step", "end_at_step"):
        return min(value, 4) if value < 1000 else value
    return value


def shortened(made: Prompt, before: Prompt) -> Prompt:
    """Only what leads to something that is saved; LTX's node that gave three things gives one."""
    for row in made.values():
        for name, value in row["inputs"].items():
            if isinstance(value, list) and before.get(str(value[0]), {}).get("class_type") == (
                "LTXVImgToVideo"
            ):
                texts = before[value[0]]["inputs"]
                row["inputs"][name] = [texts["positive"], texts["negative"], [value[0], 0]][
                    value[1]
                ]
    wanted, todo = set(), [k for k, r in made.items() if r["class_type"] == "DistorchTestSave"]
    while todo:
        key = todo.pop()
        if key not in wanted:
            wanted.add(key)
            todo += [str(v[0]) for v in made[key]["inputs"].values() if isinstance(v, list)]
    return {key: row for key, row in made.items() if key in wanted}


def plain(prompt: Prompt, info: dict[str, Any]) -> Prompt:
    """The same with ComfyUI's own loaders."""
    made = copy.deepcopy(prompt)
    for row in made.values():
        if not OURS.search(row["class_type"]):
            continue
        kind = OURS.sub("", row["class_type"]).replace("LoaderAdvanced", "LoaderSimple")
        known = info[kind]["input"]
        names = {*known.get("required", {}), *known.get("optional", {})} - {"device"}
        row.update(class_type=kind, inputs={k: v for k, v in row["inputs"].items() if k in names})
    return made


RUNNABLE = [path for path in API if runnable(path)]


@pytest.mark.parametrize("path", RUNNABLE, ids=lambda p: p.stem)
def test_a_workflow_runs_with_the_outputs_of_plain_comfyui(
    comfy: ComfyServer, path: pathlib.Path
) -> None:
    assert len(RUNNABLE) == 9
    if "ModelSamplingFlux" in path.read_text() and comfy.version.number < (0, 25):
        pytest.skip("the small Flux is recognised by ComfyUI 0.25 and later")
    info = comfy.get("/object_info")
    prompt = small(api(path))
    ours = [row["class_type"] for row in prompt.values() if OURS.search(row["class_type"])]
    wanted = [r["class_type"] for r in api(path).values() if OURS.search(r["class_type"])]
    assert sorted(ours) == sorted(wanted), "every node of ours runs"
    expected = comfy.run(plain(prompt, info)).values
    comfy.free()
    found = comfy.run(prompt).values
    assert set(found) == set(expected)
    assert set(found) >= {"image"}
    for name, value in expected.items():
        same(found[name], value, f"{path.stem}: {name}")


def same(one: Any, other: Any, where: str) -> None:
    """Equal as far as sums in another order can be: a text encoder is a row and a pooled vector."""
    if isinstance(other, (list, tuple)):
        for a, b in zip(one, other, strict=True):
            same(a, b, where)
    elif other is not None:
        assert one.shape == other.shape, where
        assert torch.allclose(one, other, atol=1e-5, rtol=1e-4, equal_nan=True), where
