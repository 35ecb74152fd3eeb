# SPDX-License-Identifier: Apache-2.0
"""Too little memory: on a donor, on the compute device, and far too much of it."""

from __future__ import annotations

import pytest
import torch
from comfy_harness import Start, Workflow, models, state

pytestmark = pytest.mark.comfy

MIB, GIB = 2**20, 2**30
FOR_COMFYUI = int(0.8 * GIB) + 400 * MIB  # what it keeps free before it loads anything


def load(w: Workflow, placed: str | None, file: str = "wan.safetensors", **inputs: object) -> list:
    settings = {"unet_name": file, "weight_dtype": "default", **inputs}
    if placed is None:
        return w.add("UNETLoader", **settings)
    settings.update(compute_device="sim:0", expert_mode_allocations=placed)
    return w.add("UNETLoaderDisTorch2MultiGPU", **settings)


def three_samplers(placed: str | None) -> Workflow:
    """The first model, then another that computes on sim:1, then the first again."""
    w = Workflow()
    prompt, first = w.conditioning(8, 4096), load(w, placed, eject_models=False) if placed else None
    first = first or load(w, None)
    other = w.add(
        "UNETLoaderMultiGPU",
        unet_name="wan_second.safetensors",
        weight_dtype="default",
        device="sim:1",
    )
    latent = w.sample(first, prompt, w.latent(1, 16, 1, 8, 8))
    latent = w.sample(other, prompt, latent, seed=2)
    w.save(w.sample(first, prompt, latent, seed=3), "wan")
    return w


def test_a_donor_that_is_needed_gets_its_memory_back(start: Start) -> None:
    comfy = start(8 * GIB, FOR_COMFYUI + 20 * MIB, 8 * GIB)
    expected = comfy.run(three_samplers(None)).values["wan"]
    comfy.free()
    result = comfy.run(three_samplers("sim:1,6mb;sim:0,*")).values["wan"]
    assert torch.equal(result, expected)
    assert "of sim:1: those blocks are streamed from the host now" in comfy.log()


def test_a_full_compute_device_streams_what_does_not_fit(start: Start) -> None:
    comfy = start(FOR_COMFYUI + 12 * MIB, 8 * GIB)

    def one(placed: str | None, seed: int = 7) -> Workflow:
        w = Workflow()
        model, latent = load(w, placed), w.latent(1, 16, 1, 8, 8)
        return w.save(w.sample(model, w.conditioning(8, 4096), latent, seed=seed), "wan")

    expected = comfy.run(one(None)).values["wan"]
    comfy.free()
    result = comfy.run(one("sim:1,2mb;sim:0,*")).values["wan"]
    assert torch.equal(result, expected)
    before = state(comfy)
    comfy.run(one("sim:1,2mb;sim:0,*", seed=8))  # what it has already is not asked for again
    after = state(comfy)
    assert after.placed("WAN21")["blocks"] == before.placed("WAN21")["blocks"]
    for now in (before, after):  # between the runs the engine's slots may have become smaller
        (known,) = [row[3] for row in now.loaded if row[2] == "sim:0"]
        assert known == pytest.approx(now.allocated["sim:0"], abs=64 * 1024)
    if comfy.version.number < (0, 8):
        return  # that old, it allows 128 MB whatever is free
    placed = state(comfy).placed("WAN21")
    assert placed["spilled"] > 0
    assert placed["bytes"]["cpu"] == placed["spilled"]
    assert "wait on the host and are streamed" in comfy.log()


def test_a_model_that_the_core_loaded_at_once_is_placed_all_the_same(start: Start) -> None:
    comfy = start(512 * GIB, 512 * GIB, 512 * GIB)  # more than the host: loaders use the device

    def one(loader: str, **inputs: object) -> Workflow:
        w = Workflow()
        model = w.add(loader, ckpt_name="sd15.safetensors", **inputs)
        prompt = w.add("CLIPTextEncode", clip=w.output(model, 1), text="a checkpoint")
        return w.save(w.sample(model, prompt, w.latent(1, 4, 8, 8)), "latent")

    expected = comfy.run(one("CheckpointLoaderSimple")).values["latent"]
    comfy.free()
    inputs = {"compute_device": "sim:0", "expert_mode_allocations": "sim:1,30mb;sim:0,*"}
    loader = "CheckpointLoaderSimpleDisTorch2MultiGPU"
    assert torch.equal(comfy.run(one(loader, **inputs)).values["latent"], expected)
    now = state(comfy)
    assert now.placed("BaseModel")["bytes"]["sim:1"] == now.allocated["sim:1"] > 0
    assert len([row for row in now.loaded if row[1] == "BaseModel"]) == 1


STORED = """
import comfy.model_management as mm
(_entry,) = [m for m in mm.current_loaded_models if type(m.model.model).__name__ == "WAN21"]
result = {n: [str(m.weight.dtype), m.weight.device.type]
          for n, m in _entry.model.model.diffusion_model.named_modules()
          if getattr(m, "weight", None) is not None}
_entry = None
"""


@pytest.mark.parametrize("file", ["wan.safetensors", "wan_fp8.safetensors"])
def test_the_low_precision_loader_keeps_in_fp8_what_the_file_has_in_fp8(
    start: Start, file: str
) -> None:
    comfy = start(FOR_COMFYUI + 12 * MIB, 8 * GIB)

    def one(loader: str, **inputs: object) -> Workflow:
        w = Workflow()
        model = w.add(loader, unet_name=file, **inputs)
        lora = {"lora_name": "wan.safetensors", "strength_model": 0.8}
        model = w.add("LoraLoaderModelOnly", model=model, **lora)
        return w.save(w.sample(model, w.conditioning(8, 4096), w.latent(1, 16, 1, 8, 8)), "wan")

    plain = {"weight_dtype": "default", "compute_device": "sim:0"}
    whole = {**plain, "expert_mode_allocations": "sim:0,*"}
    expected = comfy.run(one("UNETLoaderDisTorch2MultiGPU", **whole)).values["wan"]
    stored = comfy.evaluate(STORED)
    comfy.free()
    result = comfy.run(one("UNetLoaderLP")).values["wan"]
    assert comfy.evaluate(STORED) == stored
    assert torch.equal(result, expected)
    host = {name for name, (_, device) in stored.items() if device == "cpu"}
    dtypes = {stored[name][0] for name in models.wan_lora_keys()}
    if file == "wan.safetensors":
        assert dtypes == {"torch.float32"}
        # A ComfyUI that old allows 128 MB, whatever is free.
        old = comfy.version.number < (0, 8)
        assert bool(host & set(models.wan_lora_keys())) is not old, "what is patched is there, too"
    else:
        assert dtypes == {"torch.float8_e4m3fn"}
