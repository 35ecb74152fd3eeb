# SPDX-License-Identifier: Apache-2.0
"""The example workflows that ComfyUI offers among its templates: whole, and readable.

`comfy/test_examples.py` opens them in the real front end.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from pack_import import ROOT

import distorch

EXAMPLES = sorted((ROOT / "example_workflows").glob("*.json"))


def read(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "example_workflows" / f"{name}.json").read_text())


def test_each_has_a_picture_and_a_note_that_says_what_it_shows() -> None:
    assert len(EXAMPLES) >= 5
    for path in EXAMPLES:
        assert path.with_suffix(".jpg").stat().st_size < 100_000, path.name
        notes = [n for n in read(path.stem)["nodes"] if n["type"] == "MarkdownNote"]
        assert len(notes) == 1, path.name
        assert len(notes[0]["widgets_values"][0]) > 100, path.name


@pytest.mark.parametrize("name", [path.stem for path in EXAMPLES])
def test_links_join_what_they_say(name: str) -> None:
    workflow = read(name)
    nodes = {node["id"]: node for node in workflow["nodes"]}
    for link, origin, slot, target, place, kind in workflow["links"]:
        given, taken = nodes[origin]["outputs"][slot], nodes[target]["inputs"][place]
        assert link in given["links"]
        assert taken["link"] == link
        assert kind in (given["type"], taken["type"])
    used = {i["link"] for n in nodes.values() for i in n.get("inputs", [])} - {None}
    assert used == {link[0] for link in workflow["links"]}


def test_every_allocation_string_can_be_read() -> None:
    strings = [
        value
        for path in EXAMPLES
        for node in read(path.stem)["nodes"]
        for key, value in node.get("widgets_values_named", {}).items()
        if key.endswith("expert_mode_allocations") and value
    ]
    assert len(strings) >= 5
    for text in strings:
        assert distorch.parse(text)


FILES = (".safetensors", ".gguf", ".ckpt")


@pytest.mark.parametrize("name", [path.stem for path in EXAMPLES])
def test_each_model_file_says_where_it_comes_from_and_goes(name: str) -> None:
    """As ComfyUI's own templates do: its front end then offers to download what is missing."""
    for node in read(name)["nodes"]:
        values = [v for v in node.get("widgets_values") or () if str(v).endswith(FILES)]
        models = node["properties"].get("models", [])
        assert [m["name"] for m in models] == [v.rpartition("/")[2] for v in values], node["type"]
        for model in models:
            assert set(model) == {"name", "url", "directory"}
            assert model["url"].startswith("https://huggingface.co/")
            assert "/resolve/main/" in model["url"]
            assert model["url"].endswith(model["name"])
            assert model["directory"] in (
                *("diffusion_models", "text_encoders", "vae", "checkpoints"),
            )
