# SPDX-License-Identifier: Apache-2.0
"""Every quantised layout that ComfyUI reads from files, through all that can happen to a placed model.

Computed by comfy-kitchen's kernels in plain torch. A result is the core's own, bit for bit, or the model is refused.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from comfy_harness import ComfyServer, Workflow, state

pytestmark = pytest.mark.comfy

MIB = 2**20
FOLDER = "diffusion_models"
#: By name: (format in the file, what comfy-kitchen's `quantize` is told, more of the layer's entry, more parameters).
LAYOUTS: dict[str, tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "float8_e4m3fn": ("float8_e4m3fn", {"scale": "recalculate"}, {}, {}),
    "float8_e5m2": ("float8_e5m2", {"scale": "recalculate"}, {}, {}),
    "float8_input_scale": ("float8_e4m3fn", {"scale": "recalculate"}, {}, {"input_scale": 0.05}),
    "mxfp8": ("mxfp8", {}, {}, {}),
    "nvfp4": ("nvfp4", {}, {}, {}),
    "nvfp4_pre_quant": ("nvfp4", {}, {}, {"pre_quant_scale": 1.25}),
    "int8_tensorwise": ("int8_tensorwise", {}, {}, {}),
    "int8_rows": ("int8_tensorwise", {"per_channel": True}, {}, {}),
    "int8_convrot": ("int8_tensorwise", {"per_channel": True, "convrot": True}, {"convrot": True}, {}),
    "convrot_w4a4": ("convrot_w4a4", {}, {}, {}),
    "convrot_w4a4_int8": ("convrot_w4a4", {"linear_dtype": "int8"}, {"linear_dtype": "int8"}, {}),
    "w4a8_codebook": ("asym_w4a8_int8", {}, {}, {}),
    "w4a8_plain": ("asym_w4a8_int8", {"codebook": False}, {}, {}),
}  # fmt: skip

WRITE = """
import json, pathlib, torch, folder_paths
import comfy.quant_ops as _q
from safetensors.torch import load_file, save_file

def _write(name, format, arguments, entry, more):
    source = folder_paths.get_full_path("diffusion_models", "wan.safetensors")
    target = pathlib.Path(source).parent / f"wan_layout_{name}.safetensors"
    if format not in _q.QUANT_ALGOS:
        return "unknown"
    if target.exists():
        return ""
    layout, tensors = _q.QUANT_ALGOS[format]["comfy_tensor_layout"], {}
    note = torch.tensor(list(json.dumps({"format": format, **entry}).encode()), dtype=torch.uint8)
    for key, tensor in load_file(source).items():
        if not (key.startswith("blocks.") and key.endswith(".weight") and tensor.ndim == 2):
            tensors[key] = tensor
            continue
        quantised = _q.QuantizedTensor.from_float(tensor, layout, **arguments)
        tensors.update({k: v.contiguous() for k, v in quantised.state_dict(key).items()})
        tensors[key.removesuffix("weight") + "comfy_quant"] = note.clone()
        for parameter, value in more.items():
            shape = () if parameter == "input_scale" else (tensor.shape[1],)
            tensors[key.removesuffix("weight") + parameter] = torch.full(shape, value)
    save_file(tensors, target)
    return ""

result = _write(*ARGUMENTS)
"""


def sample(
    expert: str | None,
    file: str,
    *,
    seed: int = 7,
    lora: float = 0.0,
    between: str = "",
    ordinary: bool = False,
) -> Workflow:
    """Wan by the core's loader (None) or placed; `between` runs in front of a second sampler.

    `ordinary`: without DynamicVRAM, which rounds a patched weight anew at each cast.
    """
    w = Workflow()
    settings = {"unet_name": file, "weight_dtype": "default"}
    if expert is None:
        model = w.add("UNETLoader", **settings)
    else:
        settings.update(compute_device="sim:0", expert_mode_allocations=expert, eject_models=False)
        model = w.add("UNETLoaderDisTorch2MultiGPU", **settings)
    if ordinary:
        code = "value = value.clone(disable_dynamic=True)"
        model = w.add("DistorchTestRun", value=model, code=code)
    if lora:
        model = w.add(
            "LoraLoaderModelOnly", model=model, lora_name="wan.safetensors", strength_model=lora
        )
    prompt = w.conditioning(8, 4096)
    latent = w.sample(model, prompt, w.latent(1, 16, 1, 8, 8), seed=seed)
    if between:
        latent = w.add("DistorchTestRun", value=latent, code=between)
        latent = w.sample(model, prompt, latent, seed=seed + 1)
    return w.save(latent, "wan")


def other_model() -> Workflow:
    """Another model that needs the device; what is placed leaves it."""
    w = Workflow()
    model = w.add(
        "UNETLoaderDisTorch2MultiGPU",
        unet_name="wan_second.safetensors",
        weight_dtype="default",
        compute_device="sim:0",
        expert_mode_allocations="sim:0,*",
        eject_models=True,
    )
    return w.save(w.sample(model, w.conditioning(8, 4096), w.latent(1, 16, 1, 8, 8)), "other")


def greedy_vae() -> Workflow:
    """A decoder that asks for more memory than there is, as those of videos do."""
    w = Workflow()
    vae = w.add("VAELoader", vae_name="vae.safetensors")
    code = "value.memory_used_decode = lambda *_: 7 << 30"
    vae = w.add("DistorchTestRun", value=vae, code=code)
    return w.save(w.add("VAEDecode", vae=vae, samples=w.latent(1, 4, 8, 8)), "vae")


CANNOT_READ_SCALES = """
import comfy.memory_management as _m, comfy.utils as _u
result = bool(getattr(_m, "aimdo_enabled", False)) and "F8_E8M0" not in getattr(_u, "_TYPES", {"F8_E8M0": 0})
"""
NOTHING = "pass"
EVICT = """
import comfy.model_management as mm
mm.free_memory(1e30, torch.device("sim:0"))
"""
SPILL = """
import comfy.model_management as mm
freed = [m.model.partially_unload(torch.device("cpu"), 1 << 19) for m in mm.current_loaded_models
         if "DisTorch" in type(m.model).__name__ or "Donor" in type(m.model).__name__]
assert len(freed) == 2 and all(size >= 1 << 19 for size in freed), freed
"""


def on_donor(comfy: ComfyServer) -> dict[str, Any]:
    """The placed model of which a part lies on sim:1."""
    (found,) = [p for p in state(comfy).placements if "sim:1" in p["bytes"]]
    return found


def wan_of(comfy: ComfyServer, workflow: Workflow) -> torch.Tensor:
    return comfy.run(workflow).values["wan"]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("donor", ["sim:1,1mb;cpu,*", "sim:1,*,mode=migrate"])
def test_a_layout_through_all_that_can_happen(comfy: ComfyServer, layout: str, donor: str) -> None:
    if not (comfy.version.path / "comfy" / "quant_ops.py").exists():
        pytest.skip("this ComfyUI knows no layouts")
    unknown = comfy.evaluate(f"ARGUMENTS = {(layout, *LAYOUTS[layout])!r}\n{WRITE}")
    if unknown:
        pytest.skip(f"this ComfyUI does not know {LAYOUTS[layout][0]}")
    if layout == "mxfp8" and comfy.evaluate(CANNOT_READ_SCALES):
        pytest.skip("with DynamicVRAM this ComfyUI cannot read a file with mxfp8's scales")
    file, expert = f"wan_layout_{layout}.safetensors", f"sim:0,25%;{donor}"
    references = {seed: wan_of(comfy, sample(None, file, seed=seed)) for seed in (7, 8)}
    twice = wan_of(comfy, sample(None, file, between=NOTHING))
    dynamic = comfy.version.dynamic
    patched = {
        lora: wan_of(comfy, sample(None, file, lora=lora, ordinary=dynamic)) for lora in (0.8, 0.4)
    }
    assert all(r.isfinite().all() for r in (*references.values(), twice, *patched.values()))
    comfy.free()

    def check(seed: int, when: str) -> None:
        assert torch.equal(wan_of(comfy, sample(expert, file, seed=seed)), references[seed]), when

    check(7, "fresh load")
    placed = on_donor(comfy)
    assert placed["bytes"]["sim:1"] > MIB // 4
    assert "layer by layer" not in placed["streaming"]
    check(8, "second prompt")
    comfy.run(other_model())
    check(7, "another model in between")
    comfy.run(greedy_vae())
    check(8, "a VAE in between")
    for when, code in (("evicted between samplers", EVICT), ("spilled between samplers", SPILL)):
        assert torch.equal(wan_of(comfy, sample(expert, file, between=code)), twice), when
    now = on_donor(comfy)
    assert now["spilled"] == 0
    assert now["blocks"] == placed["blocks"]
    for lora, expected in patched.items():
        got = wan_of(comfy, sample(expert, file, lora=lora))
        assert torch.equal(got, expected), f"LoRA at {lora}: {(got - expected).abs().max()}"
    check(7, "without the LoRA again")
