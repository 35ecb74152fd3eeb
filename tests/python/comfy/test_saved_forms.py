# SPDX-License-Identifier: Apache-2.0
"""Loaders as each release of ComfyUI-MultiGPU since 2.0 has saved them, on machines with other devices: they open and run.

The front end gives saved widget values to inputs in order; the fifth of a placement was another switch in some releases.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from comfy_harness import ComfyServer, Workflow, state

pytestmark = pytest.mark.comfy

START = ["wan.safetensors", "default"]
#: Release → values of UNETLoaderDisTorch2MultiGPU's widgets as saved, and what their fifth was.
SAVED: dict[str, list[Any]] = {
    "2.0": [*START, "cuda:3", 4.0, "cpu", ""],
    "2.1 to 2.4, high_precision_loras": [*START, "cuda:0", 4.0, "cuda:5", "", True],
    "2.5.0, keep_loaded": [*START, "xpu:1", 0.0, "cpu", "cuda:0,25%;cuda:7,75%", True],
    "since 2.5.1, eject_models": [
        *START,
        "mps",
        4.0,
        "cpu",
        "cuda:0,2.5gb;cuda:1,3.0g;cpu,*",
        False,
    ],
    "ours": [*START, "sim:0", 4.0, "cpu", "sim:1,5mb;cpu,*", False, True, "auto"],
}


def widgets(info: dict[str, Any]) -> list[str]:
    return [name for part in ("required", "optional") for name in info["input"].get(part, {})]


def sampled(w: Workflow, model: Any) -> Workflow:
    return w.save(w.sample(model, w.conditioning(8, 4096), w.latent(1, 16, 1, 8, 8)), "wan")


@pytest.mark.parametrize("release", SAVED)
def test_a_saved_loader_opens_and_runs(comfy: ComfyServer, release: str) -> None:
    w = Workflow()
    model = w.add("UNETLoader", unet_name="wan.safetensors", weight_dtype="default")
    expected = comfy.run(sampled(w, model)).values["wan"]
    values = SAVED[release]
    names = widgets(
        comfy.get("/object_info/UNETLoaderDisTorch2MultiGPU")["UNETLoaderDisTorch2MultiGPU"]
    )
    assert len(values) <= len(names)
    mark, w = len(comfy.log()), Workflow()
    model = w.add("UNETLoaderDisTorch2MultiGPU", **dict(zip(names, values, strict=False)))
    assert torch.allclose(comfy.run(sampled(w, model)).values["wan"], expected, atol=1e-5)
    warned = "which is not here: sim:0 is used instead" in comfy.log()[mark:]
    assert warned is (release != "ours")


def test_a_switch_of_another_release_in_a_prompt_is_no_error(comfy: ComfyServer) -> None:
    """Prompts name their inputs: what a loader has no more is passed over by ComfyUI."""
    w = Workflow()
    model = w.add(
        "UNETLoaderDisTorch2MultiGPU",
        unet_name="wan.safetensors",
        weight_dtype="default",
        compute_device="cuda:1",
        virtual_vram_gb=4.0,
        donor_device="cuda:0",
        expert_mode_allocations="",
        high_precision_loras=False,
    )
    assert comfy.run(sampled(w, model)).values["wan"].isfinite().all()


def test_a_text_encoder_goes_where_the_first_releases_prompts_say(comfy: ComfyServer) -> None:
    """They call its device `compute_device`; ComfyUI gives a node no input that it does not name."""
    w = Workflow()
    clip = w.add(
        "CLIPLoaderDisTorch2MultiGPU",
        clip_name="clip_l.safetensors",
        type="stable_diffusion",
        compute_device="sim:1",
        virtual_vram_gb=0.0,
        donor_device="cpu",
    )
    comfy.run(w.save(w.add("CLIPTextEncode", clip=clip, text="an old prompt"), "clip"))
    assert set(state(comfy).placed("SD1ClipModel")["bytes"]) == {"sim:1"}
