# SPDX-License-Identifier: Apache-2.0
"""The loaders that few workflows use: each loads real files, places them, and answers as the core's own does.

The triple and quadruple text encoder loaders are not among them: ComfyUI builds a T5-XXL or a Llama for them, whatever
the files hold (10 GB and more). They differ from the dual one by the number of their inputs.
"""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest
import torch
from comfy_harness import ComfyServer, Workflow, models, state

pytestmark = pytest.mark.comfy

MIB = 2**20
TWO_DONORS = "sim:1,40mb;cpu,40mb;sim:0,*"


@pytest.fixture(scope="module", autouse=True)
def files(comfy_models: pathlib.Path) -> None:
    """A vision encoder, and a folder in the layout of diffusers made of the standard set's files."""
    vision = comfy_models / "clip_vision/vit_l.safetensors"
    if not vision.exists():
        models.write(vision, models.clip_vision_shapes(), torch.float16, seed=20)
    folder = comfy_models / "diffusers/tiny"
    parts = {
        "unet/diffusion_pytorch_model.safetensors": "diffusion_models/wan.safetensors",
        "text_encoder/model.safetensors": "text_encoders/clip_l.safetensors",
        "vae/diffusion_pytorch_model.safetensors": "vae/vae.safetensors",
    }
    for name, source in parts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if not (folder / name).exists():
            (folder / name).symlink_to(comfy_models / source)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "Tiny"}))


def see(loader: str, **inputs: Any) -> Workflow:
    """Encodes an image."""
    w = Workflow()
    vision = w.add(loader, clip_name="vit_l.safetensors", **inputs)
    image = w.add("EmptyImage", width=64, height=64, batch_size=1, color=0x405060)
    seen = w.add("CLIPVisionEncode", clip_vision=vision, image=image, crop="center")
    code = "value = {'samples': torch.cat([value[k].flatten() for k in ('penultimate_hidden_states', 'image_embeds')])}"
    return w.save(w.add("DistorchTestRun", value=seen, code=code), "seen")


def test_a_vision_encoder(comfy: ComfyServer) -> None:
    expected = comfy.run(see("CLIPVisionLoader")).values["seen"]
    assert expected.std() > 0.01
    comfy.free()
    inputs = {"device": "sim:0", "expert_mode_allocations": TWO_DONORS}
    result = comfy.run(see("CLIPVisionLoaderDisTorch2MultiGPU", **inputs)).values["seen"]
    assert torch.equal(result, expected)
    check_share(comfy, "CLIPVisionModelProjection")


def check_share(comfy: ComfyServer, name: str) -> None:
    """Both donors hold what the string gives them, less at most the block that did not fit."""
    now = state(comfy)
    sizes = now.placed(name)["bytes"]
    assert 20 * MIB < sizes["sim:1"] <= 40 * MIB
    assert 20 * MIB < sizes["cpu"] <= 40 * MIB
    assert now.allocated["sim:1"] == sizes["sim:1"]


def two_encoders(loader: str, **inputs: Any) -> Workflow:
    w = Workflow()
    names = {"clip_name1": "clip_l.safetensors", "clip_name2": "clip_l.safetensors"}
    clip = w.add(loader, **names, type="sd3", **inputs)
    return w.save(w.add("CLIPTextEncode", clip=clip, text="two of them"), "clip")


def test_two_text_encoders(comfy: ComfyServer) -> None:
    expected, pooled = comfy.run(two_encoders("DualCLIPLoader")).values["clip"]
    comfy.free()
    inputs = {"device": "sim:0", "expert_mode_allocations": TWO_DONORS}
    result = comfy.run(two_encoders("DualCLIPLoaderDisTorch2MultiGPU", **inputs)).values["clip"]
    assert torch.equal(result[0], expected)
    assert torch.equal(result[1], pooled)
    check_share(comfy, "SD3ClipModel_")


def from_folder(loader: str, **inputs: Any) -> Workflow:
    """All three outputs of a folder in the layout of diffusers."""
    w = Workflow()
    model = w.add(loader, model_path="tiny", **inputs)
    w.save(w.sample(model, w.conditioning(8, 4096), w.latent(1, 16, 1, 8, 8)), "wan")
    w.save(w.add("CLIPTextEncode", clip=w.output(model, 1), text="from a folder"), "clip")
    ones = w.add(
        "DistorchTestRun",
        value=w.latent(1, 4, 8, 8),
        code="value['samples'] = value['samples'] + 1",
    )
    return w.save(w.add("VAEDecode", vae=w.output(model, 2), samples=ones), "image")


def test_a_folder_of_diffusers(comfy: ComfyServer) -> None:
    expected = comfy.run(from_folder("DiffusersLoader")).values
    comfy.free()
    inputs = {"compute_device": "sim:0", "expert_mode_allocations": "sim:1,6mb;cpu,4mb;sim:0,*"}
    result = comfy.run(from_folder("DiffusersLoaderDisTorch2MultiGPU", **inputs)).values
    assert torch.equal(result["wan"], expected["wan"])
    assert torch.equal(result["image"], expected["image"])
    assert torch.equal(result["clip"][0], expected["clip"][0])
    sizes = state(comfy).placed("WAN21")["bytes"]
    assert 4 * MIB < sizes["sim:1"] <= 6 * MIB
    assert sizes["cpu"] > 0
