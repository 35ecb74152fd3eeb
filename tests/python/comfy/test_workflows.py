# SPDX-License-Identifier: Apache-2.0
"""The example workflows of ComfyUI-MultiGPU (its folder in DISTORCH_PREDECESSOR_PATH) open and validate with our nodes.

Every node of the 44 ids in them goes through ComfyUI's own `execution.validate_inputs`, once with the inputs of the
workflow in API form and once with the widget values of the saved workflow, in the order in which they were saved.
"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import pytest
from comfy_harness import ComfyServer, versions, write_empty_files

PREDECESSOR = pathlib.Path(os.environ.get("DISTORCH_PREDECESSOR_PATH", "/nowhere"))
pytestmark = [
    pytest.mark.comfy,
    pytest.mark.skipif(
        not (PREDECESSOR / "example_workflows").is_dir(),
        reason="DISTORCH_PREDECESSOR_PATH is not set",
    ),
    pytest.mark.skipif(
        not os.environ.get("COMFYUI_GGUF_PATH"), reason="COMFYUI_GGUF_PATH is not set"
    ),
]

WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
Node = tuple[str, str, str, dict[str, Any]]  # workflow, node id, class, inputs


def api_nodes() -> list[Node]:
    """All nodes of the workflows in API form."""
    return [
        (
            path.stem.removesuffix("_api").removesuffix("_API"),
            node,
            row["class_type"],
            row["inputs"],
        )
        for path in sorted((PREDECESSOR / "ci" / "example_workflows_api").glob("*.json"))
        for node, row in json.loads(path.read_text()).items()
    ]


def saved_nodes() -> list[tuple[str, str, str, list[Any], list[str]]]:
    """All nodes of the saved workflows: workflow, id, class, widget values, names of linked inputs."""
    found = []
    for path in sorted((PREDECESSOR / "example_workflows").glob("*.json")):
        workflow = json.loads(path.read_text())
        inner = workflow.get("definitions", {}).get("subgraphs", [])
        for row in [*workflow["nodes"], *(n for graph in inner for n in graph["nodes"])]:
            linked = [i["name"] for i in row.get("inputs", []) if i.get("link") is not None]
            values = row.get("widgets_values") or []
            found.append((path.stem, str(row["id"]), row["type"], list(values), linked))
    return found


def widgets(info: dict[str, Any]) -> list[str]:
    """The inputs of a node that are widgets, in the order in which the front end saves their values."""
    return [
        name
        for part in ("required", "optional")
        for name, (kind, *_) in info["input"].get(part, {}).items()
        if isinstance(kind, list) or kind in WIDGETS
    ]


def with_widgets(info: dict[str, Any], values: list[Any]) -> dict[str, Any]:
    """What the front end makes of saved values: the first ones in order, defaults for the rest."""
    names = widgets(info)
    assert len(values) <= len(names), (values, names)
    return dict(zip(names, values, strict=False))


@pytest.fixture(scope="module", params=versions(dynamic=False) or [None], ids=str)
def comfy(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ComfyServer]:
    """A server with the GGUF pack, and an empty file for each that a workflow names."""
    base = tmp_path_factory.mktemp("workflows")
    for _, _, _, inputs in api_nodes():
        write_empty_files(base, inputs)
    gguf = pathlib.Path(os.environ["COMFYUI_GGUF_PATH"])
    server = ComfyServer(request.param, base, packs=[gguf])
    yield server
    server.stop()


VALIDATE = """
import asyncio, execution, json
_prompt = json.loads({prompt!r})
async def _validate():
    return {{key: await execution.validate_inputs("test", _prompt, key, {{}}) for key in _prompt}}
result = {{key: [row[0], [e["message"] + ": " + e["details"] for e in row[1]]]
           for key, row in asyncio.run(_validate()).items()}}
"""


def refused(comfy: ComfyServer, nodes: list[Node]) -> dict[str, list[str]]:
    """What ComfyUI has against each of the nodes, by a name for it."""
    prompt = {
        f"{workflow}/{node}/{kind}": {"class_type": kind, "inputs": inputs}
        for workflow, node, kind, inputs in nodes
    }
    assert len(prompt) == len(nodes)
    found = comfy.evaluate(VALIDATE.format(prompt=json.dumps(prompt)))
    assert set(found) == set(prompt)
    return {key: errors for key, (valid, errors) in found.items() if not valid or errors}


def ours(comfy: ComfyServer) -> dict[str, Any]:
    return {
        name: info
        for name, info in comfy.get("/object_info").items()
        if info["python_module"].endswith("DisTorch")
    }


def test_every_node_in_api_form_validates(comfy: ComfyServer) -> None:
    known = ours(comfy)
    nodes = [row for row in api_nodes() if row[2] in known]
    assert len(nodes) >= 30
    assert len({kind for _, _, kind, _ in nodes}) >= 12
    assert refused(comfy, nodes) == {}
    for workflow, node, kind, inputs in nodes:
        names = [n for part in ("required", "optional") for n in known[kind]["input"].get(part, {})]
        assert set(inputs) <= set(names), (workflow, node)


def test_every_saved_node_validates_with_its_widgets_in_our_order(comfy: ComfyServer) -> None:
    known = ours(comfy)
    nodes: list[Node] = []
    for workflow, node, kind, values, linked in saved_nodes():
        if kind in known:
            assert linked == [], (workflow, node)
            inputs = with_widgets(known[kind], values)
            write_empty_files(comfy.base, inputs)
            nodes.append((workflow, node, kind, inputs))
    assert len(nodes) >= 35
    assert refused(comfy, nodes) == {}


def test_both_forms_of_a_workflow_say_the_same(comfy: ComfyServer) -> None:
    known = ours(comfy)
    saved = {
        (workflow, node): with_widgets(known[kind], values)
        for workflow, node, kind, values, _ in saved_nodes()
        if kind in known
    }
    compared = 0
    for workflow, node, kind, inputs in api_nodes():
        if kind in known:
            same = saved[workflow, node]
            assert {name: same[name] for name in inputs} == inputs, (workflow, node)
            compared += len(inputs)
    assert compared > 100


def test_a_wrong_value_would_be_found(comfy: ComfyServer) -> None:
    good = {"unet_name": "flux1-dev-fp8.safetensors", "weight_dtype": "default", "device": "cuda:7"}
    bad = {**good, "unet_name": "missing.safetensors"}
    late = {**good, "virtual_vram_gb": 500.0}
    found = refused(
        comfy,
        [
            ("w", "1", "UNETLoaderMultiGPU", good),
            ("w", "2", "UNETLoaderMultiGPU", bad),
            ("w", "3", "UNETLoaderDisTorch2MultiGPU", late),
        ],
    )
    assert list(found) == ["w/2/UNETLoaderMultiGPU", "w/3/UNETLoaderDisTorch2MultiGPU"]
    assert "Value not in list" in found["w/2/UNETLoaderMultiGPU"][0]
    assert "bigger than max" in found["w/3/UNETLoaderDisTorch2MultiGPU"][0]
