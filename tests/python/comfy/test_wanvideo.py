# SPDX-License-Identifier: Apache-2.0
"""WanVideoWrapper itself, a release of which lies at COMFYUI_WANVIDEO_PATH: our loader and sampler against its own."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator

import pytest
import torch
from comfy_harness import ComfyServer, Workflow, models, state, versions

PACK = os.environ.get("COMFYUI_WANVIDEO_PATH", "")
pytestmark = [
    pytest.mark.comfy,
    pytest.mark.skipif(not PACK, reason="COMFYUI_WANVIDEO_PATH is not set"),
]

FILE = "wan_small.safetensors"
EMBEDS = """
import torch
torch.manual_seed(3)
value = {name: [(torch.randn(length, 4096) / 20).to(DEVICE)]
         for name, length in (("prompt_embeds", 12), ("negative_prompt_embeds", 9))}
"""


@pytest.fixture(scope="module", params=versions() or [None], ids=lambda v: v.name if v else "none")
def comfy(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ComfyServer]:
    base = tmp_path_factory.mktemp("wanvideo")
    (base / "models/diffusion_models").mkdir(parents=True)
    shapes = models.wan_shapes(
        dim=288, blocks=30, ffn=512
    )  # as many blocks as it takes for granted
    models.write(base / "models/diffusion_models" / FILE, shapes, torch.float32, seed=5)
    server = ComfyServer(request.param, base, packs=[pathlib.Path(PACK)])
    yield server
    server.stop()


def sampled(device: str, ours: bool, expert: str = "") -> Workflow:
    w = Workflow()
    embeds = w.add(
        "DistorchTestRun", value=w.latent(1, 4, 8, 8), code=EMBEDS.replace("DEVICE", repr(device))
    )
    settings = {"model": FILE, "base_precision": "fp32", "quantization": "disabled"}
    settings |= {"load_device": "offload_device", "attention_mode": "sdpa"}
    inputs = {
        "text_embeds": embeds,
        "image_embeds": w.add("WanVideoEmptyEmbeds", width=64, height=64, num_frames=5),
        "steps": 2, "cfg": 3.0, "shift": 5.0, "seed": 11, "force_offload": True, "scheduler": "euler",
        "riflex_freq_index": 0,
    }  # fmt: skip
    if ours:
        settings |= {"compute_device": device, "expert_mode_allocations": expert}
        model = w.add("WanVideoModelLoaderMultiGPU", **settings)
        inputs["compute_device"] = w.output(model, 1)
        return w.save(w.add("WanVideoSamplerMultiGPU", model=model, **inputs), "wan")
    model = w.add("WanVideoModelLoader", **settings)
    return w.save(w.add("WanVideoSampler", model=model, **inputs), "wan")


def test_it_samples_where_it_is_told_with_its_blocks_where_the_string_puts_them(
    comfy: ComfyServer,
) -> None:
    expected = comfy.run(sampled("sim:0", ours=False)).values["wan"]
    assert expected.isfinite().all()
    for device, expert, shares in (
        ("sim:0", "", {}),
        ("sim:1", "", {}),
        ("sim:0", "sim:0,25%;sim:1,25%;cpu,*", {"sim:0": 18.28, "sim:1": 29.45, "cpu": 70.17}),
        ("sim:0", "sim:1,20mb;cpu,*", {"sim:0": 0.07, "sim:1": 19.97, "cpu": 97.87}),
    ):
        comfy.free()
        mark = len(comfy.log())
        got = comfy.run(sampled(device, ours=True, expert=expert)).values["wan"]
        assert torch.equal(got, expected), (device, expert)
        said = comfy.log()[mark:]
        assert all(f"  {place}: {size:.2f} MB" in said for place, size in shares.items()), said
        assert ("WanModel on sim:0" in said) is bool(expert)
    comfy.free(let_go=True)
    assert set(state(comfy).allocated.values()) == {0}


def test_its_nodes_are_ours_too_and_what_it_lacks_is_told(comfy: ComfyServer) -> None:
    info = comfy.get("/object_info")
    of = {pack: {n for n, i in info.items() if i["python_module"].endswith(pack)}
          for pack in ("DisTorch", "WanVideoWrapper")}  # fmt: skip
    wrapped = {n.removesuffix("MultiGPU") for n in of["DisTorch"] if "WanVideo" in n}
    assert len(wrapped) >= 9
    assert wrapped <= of["WanVideoWrapper"]
