# SPDX-License-Identifier: Apache-2.0
"""What nodes say of themselves, from the page's table; and what is said of a wrong string before anything is queued."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from pack_import import ROOT

TEXTS = json.loads((ROOT / "web/texts.json").read_text(encoding="utf-8"))


def test_every_text_has_two_languages_with_the_same_gaps() -> None:
    for key, texts in TEXTS.items():
        assert len(texts) == 2, key
        assert all(texts), key
        english, chinese = (set(re.findall(r"\{\w+\}", text)) for text in texts)
        assert english == chinese, key


def test_every_text_that_the_page_asks_for_is_in_the_table() -> None:
    code = "\n".join(p.read_text() for p in (ROOT / "web").rglob("*.js"))
    asked = set(re.findall(r"\bt\('([\w.]+)'", code))
    assert len(asked) > 80
    assert asked <= set(TEXTS), asked - set(TEXTS)


class Node:
    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {"unet_name": (["a"],), "unet_donor_device": (["cpu"], {"default": "cpu"})},
            "optional": {"keep_loaded": ("BOOLEAN", {"default": True})},
        }


def test_widgets_of_ours_have_tooltips_and_nodes_words_to_be_found_by(pack: Any) -> None:
    words = pack.load("nodes.words")
    kinds = {
        "UNETLoaderMultiGPU": "device", "UNETLoaderDisTorch2MultiGPU": "placement",
        "UnetLoaderGGUFDisTorchMultiGPU": "legacy", "DisTorchPlan": "plan", "UNetLoaderLP": "lp",
        "CheckpointLoaderAdvancedMultiGPU": "checkpoint", "DeviceSelectorMultiGPU": "select",
        "DisTorchUnload": "unload",
    }  # fmt: skip
    for node_id, kind in kinds.items():
        cls = type(node_id, (Node,), {})
        words.explain({node_id: cls})
        words.explain({node_id: cls})  # a second time changes nothing
        assert TEXTS[f"family.{kind}"][0] == cls.DESCRIPTION
        wanted = {
            "load diffusion model",
            "vram",
            "offload",
            "block swap",
            "free memory",
            "multigpu",
        }
        assert wanted <= set(cls.SEARCH_ALIASES)
        inputs = cls.INPUT_TYPES()
        donor = inputs["required"]["unet_donor_device"]
        assert donor[1] == {"default": "cpu", "tooltip": TEXTS["widget.donor_device"][0]}
        assert inputs["required"]["unet_name"] == (["a"],), "the core's own"


def test_an_input_of_the_core_with_the_name_of_one_of_ours_is_left_alone(pack: Any) -> None:
    class Model:
        @classmethod
        def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
            return {"required": {"model": ("MODEL",)}}

    words = pack.load("nodes.words")
    core, ours = (type(name, (Model,), {}) for name in ("core", "ours"))
    words.explain({"DiffControlNetLoaderMultiGPU": core, "DisTorchUnload": ours})
    assert core.INPUT_TYPES() == {"required": {"model": ("MODEL",)}}
    assert ours.INPUT_TYPES()["required"]["model"][1]["tooltip"] == TEXTS["widget.model"][0]


@pytest.mark.parametrize(("text", "told"), [("sim:0,1.5xyz", "^~~"), ("sim:0", "expected")])
def test_a_wrong_string_is_told_with_its_place(pack: Any, comfy: Any, text: str, told: str) -> None:
    assert told in pack.load("patches.placing.request").what_is_wrong(text)


@pytest.mark.parametrize(
    "text", [None, "", " ", "auto", "sim:0,1gb;cpu,*", "cuda:5,1gb;cpu,*", ["1", 0]]
)
def test_a_right_one_a_link_and_another_machines_are_not_refused(
    pack: Any, comfy: Any, text: Any
) -> None:
    assert pack.load("patches.placing.request").what_is_wrong(text) == ""
