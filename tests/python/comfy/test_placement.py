# SPDX-License-Identifier: Apache-2.0
"""Placed models inside real ComfyUI: where the blocks lie, what they compute, what is copied."""

from __future__ import annotations

import pytest
import torch
from comfy_harness import (
    ComfyError,
    ComfyServer,
    State,
    Workflow,
    count_reads,
    reads,
    reset_counters,
    state,
)
from safetensors.torch import load_file

pytestmark = pytest.mark.comfy

MIB = 2**20
STRING = "sim:1,6mb;cpu,4mb;sim:0,*"


def wan(
    expert: str | None = STRING, *, seed: int = 7, loras: tuple = (), **inputs: object
) -> Workflow:
    """Samples Wan: placed by `expert`, by the widgets in `inputs`, or (None) by the core's loader."""
    w = Workflow()
    settings = {"unet_name": "wan.safetensors", "weight_dtype": "default"}
    if expert is None:
        model = w.add("UNETLoader", **settings)
    else:
        settings.update(compute_device="sim:0", expert_mode_allocations=expert, **inputs)
        model = w.add("UNETLoaderDisTorch2MultiGPU", **settings)
    for strength in loras:
        model = w.add(
            "LoraLoaderModelOnly", model=model, lora_name="wan.safetensors", strength_model=strength
        )
    latent = w.latent(1, 16, 1, 8, 8)
    return w.save(w.sample(model, w.conditioning(8, 4096), latent, seed=seed), "wan")


def flux(loader: str, **inputs: object) -> Workflow:
    w = Workflow()
    model = w.add(loader, unet_name="flux.safetensors", weight_dtype="default", **inputs)
    prompt = w.conditioning(8, 64, pooled=32)
    return w.save(w.sample(model, prompt, w.latent(1, 16, 8, 8)), "flux")


def encode(loader: str, **inputs: object) -> Workflow:
    w = Workflow()
    clip = w.add(loader, clip_name="clip_l.safetensors", type="stable_diffusion", **inputs)
    return w.save(w.add("CLIPTextEncode", clip=clip, text="two devices share a model"), "clip")


def decode(loader: str, **inputs: object) -> Workflow:
    w = Workflow()
    vae = w.add(loader, vae_name="vae.safetensors", **inputs)
    return w.save(w.add("VAEDecode", vae=vae, samples=_ones(w)), "vae")


def _ones(w: Workflow) -> list:
    """A latent that is not zero: random weights answer zeros with their biases only."""
    code = "value['samples'] = torch.linspace(-2, 2, 256).reshape(1, 4, 8, 8)"
    return w.add("DistorchTestRun", value=w.latent(1, 4, 8, 8), code=code)


def checkpoint(loader: str, **inputs: object) -> Workflow:
    w = Workflow()
    model = w.add(loader, ckpt_name="sd15.safetensors", **inputs)
    prompt = w.add("CLIPTextEncode", clip=w.output(model, 1), text="a checkpoint")
    latent = w.sample(model, prompt, w.latent(1, 4, 8, 8))
    image = w.add("VAEDecode", vae=w.output(model, 2), samples=latent)
    return w.save(latent, "latent").save(image, "image")


def check_donor(comfy: ComfyServer, name: str, cap: int) -> dict:
    """The donor holds at most its cap, and lacks less than one block of it."""
    now = state(comfy)
    largest = comfy.evaluate(f"NAME = {name!r}\n" + LARGEST_BLOCK)
    placed = now.placed(name)
    assert placed["state"] == "placed"
    assert now.allocated["sim:1"] == placed["bytes"]["sim:1"]
    assert cap - largest < placed["bytes"]["sim:1"] <= cap
    assert placed["bytes"]["cpu"] > 0
    assert placed["spilled"] == 0
    return placed


LARGEST_BLOCK = """
import comfy.model_management as mm
(_placed,) = {p for m in mm.current_loaded_models
              if (p := getattr(m.model.model, "_distorch_placed", None)) and p.name == NAME}
result = max(block.bytes for block in _placed.blocks if not block.pinned)
del _placed
"""


def test_wan_equals_the_core_and_donors_hold_their_share(comfy: ComfyServer) -> None:
    reference = comfy.run(wan(None)).values["wan"]
    result = comfy.run(wan()).values["wan"]
    assert torch.equal(result, reference)
    placed = check_donor(comfy, "WAN21", 6 * MIB)
    largest = 4096 * 256 * 4 + 256 * 4
    assert placed["bytes"]["sim:1"] > 6 * MIB - largest
    assert sum(placed["bytes"].values()) == sum(size for size in comfy.evaluate(BYTES_OF_THE_MODEL))


BYTES_OF_THE_MODEL = """
import comfy.model_management as mm
_models = [m.model.model for m in mm.current_loaded_models if type(m.model.model).__name__ == "WAN21"]
result = [t.nbytes for m in _models for t in [*m.parameters(), *m.buffers()]]
del _models
"""


def test_flux_equals_the_core(comfy: ComfyServer) -> None:
    if comfy.version.number < (0, 25):
        pytest.skip("this ComfyUI takes Flux's width for granted: a small one is not recognised")
    reference = comfy.run(flux("UNETLoader")).values["flux"]
    inputs = {"compute_device": "sim:0", "expert_mode_allocations": "sim:1,2mb;cpu,2mb;sim:0,*"}
    result = comfy.run(flux("UNETLoaderDisTorch2MultiGPU", **inputs)).values["flux"]
    assert torch.equal(result, reference)
    check_donor(comfy, "Flux", 2 * MIB)


def test_text_encoder_equals_the_core(comfy: ComfyServer) -> None:
    reference, pooled = comfy.run(encode("CLIPLoader")).values["clip"]
    inputs = {"device": "sim:0", "expert_mode_allocations": "sim:1,60mb;cpu,40mb;sim:0,*"}
    result = comfy.run(encode("CLIPLoaderDisTorch2MultiGPU", **inputs)).values["clip"]
    assert torch.equal(result[0], reference)
    assert torch.equal(result[1], pooled)
    placed = check_donor(comfy, "SD1ClipModel", 60 * MIB)
    embedding = next(name for name in placed["blocks"] if name.endswith("token_embedding"))
    assert placed["blocks"][embedding] == "sim:0"
    assert placed["reasons"][embedding].startswith("embedding")


def test_vae_equals_the_core(comfy: ComfyServer) -> None:
    reference = comfy.run(decode("VAELoader")).values["vae"]
    inputs = {"compute_device": "sim:0", "expert_mode_allocations": "sim:1,60mb;cpu,40mb;sim:0,*"}
    result = comfy.run(decode("VAELoaderDisTorch2MultiGPU", **inputs)).values["vae"]
    assert torch.equal(result, reference)
    check_donor(comfy, "AutoencoderKL", 60 * MIB)


def test_checkpoint_equals_the_core(comfy: ComfyServer) -> None:
    reference = comfy.run(checkpoint("CheckpointLoaderSimple")).values
    core_kinds = {row[1]: row[0] for row in state(comfy).loaded}
    inputs = {"compute_device": "sim:0", "expert_mode_allocations": "sim:1,30mb;cpu,20mb;sim:0,*"}
    result = comfy.run(checkpoint("CheckpointLoaderSimpleDisTorch2MultiGPU", **inputs)).values
    assert torch.equal(result["latent"], reference["latent"])
    assert torch.equal(result["image"], reference["image"])
    check_donor(comfy, "BaseModel", 30 * MIB)
    kinds = {row[1]: row[0] for row in state(comfy).loaded if row[1] != "DonorPart"}
    assert kinds == {**core_kinds, "BaseModel": "DisTorchModelPatcher"}


def test_advanced_checkpoint_places_its_parts(comfy: ComfyServer) -> None:
    reference = comfy.run(checkpoint("CheckpointLoaderSimple")).values
    inputs = {
        "unet_compute_device": "sim:0",
        "unet_virtual_vram_gb": 0.03,
        "unet_donor_device": "sim:1",
        "clip_compute_device": "sim:2",
        "clip_virtual_vram_gb": 0.1,
        "clip_donor_device": "cpu",
        "vae_device": "sim:2",
    }
    loader = "CheckpointLoaderAdvancedDisTorch2MultiGPU"
    result = comfy.run(checkpoint(loader, **inputs)).values
    assert torch.equal(result["latent"], reference["latent"])
    assert torch.equal(result["image"], reference["image"])
    now = state(comfy)
    assert 0 < now.placed("BaseModel")["bytes"]["sim:1"] <= 0.03 * 2**30
    assert 0 < now.placed("SD1ClipModel")["bytes"]["cpu"] <= 0.1 * 2**30
    assert now.placed("SD1ClipModel")["bytes"]["sim:2"] > 0
    assert ["AutoencoderKL", "sim:2"] in [row[1:3] for row in now.loaded]


def lie(found: State) -> list[tuple]:
    """Where everything lies; what was measured of a step is another matter."""
    names = ("name", "state", "bytes", "blocks", "patched", "spilled")
    return [tuple(p[name] for name in names) for p in found.placements]


def test_a_second_run_moves_nothing(comfy: ComfyServer) -> None:
    comfy.run(wan())
    before = state(comfy)
    reset_counters(comfy)
    comfy.run(wan(seed=8))
    after = state(comfy)
    assert after.loaded == before.loaded
    assert lie(after) == lie(before)
    assert after.copied["cpu>sim:1"] == after.copied["sim:1>cpu"] == 0
    streamed = 2 * before.placed("WAN21")["bytes"]["sim:1"]  # two steps
    assert 0 < after.copied["sim:1>sim:0"] <= streamed
    # A group that is still in its slot is not copied again; noise, prompt and time steps are.
    inputs = after.copied["cpu>sim:0"] - 2 * before.placed("WAN21")["bytes"]["cpu"]
    assert inputs < MIB


def test_lora_equals_the_core_and_costs_its_own_blocks(comfy: ComfyServer) -> None:
    references = {s: comfy.run(wan(None, loras=(s,))).values["wan"] for s in (1.0, 0.5)}
    comfy.free()
    plain = comfy.run(wan(None)).values["wan"]
    comfy.free()
    count_reads(comfy)
    for strength, reference in references.items():
        result = comfy.run(wan(loras=(strength,))).values["wan"]
        assert (result - reference).abs().max() <= 1e-5
        assert (result - plain).abs().max() > 0.01  # the LoRA does something
        if strength == 1.0:
            pointers = comfy.evaluate(POINTERS)
            models_read = [name for name in reads(comfy) if "lora" not in name]
    assert state(comfy).placed("WAN21")["patched"] == 4
    changed = {k for k, v in comfy.evaluate(POINTERS).items() if pointers[k] != v}
    patched = {
        f"diffusion_model.blocks.{i}.{n}.weight" for i in (0, 1) for n in ("self_attn.q", "ffn.0")
    }
    assert changed
    assert changed <= patched  # a new tensor may get the old one's address
    read_since = [name for name in reads(comfy) if "lora" not in name]
    assert read_since == models_read  # the model's file was not read again
    back = comfy.run(wan()).values["wan"]
    assert torch.equal(back, plain)
    assert state(comfy).placed("WAN21")["patched"] == 0


POINTERS = """
import comfy.model_management as mm
(_model,) = [m.model.model for m in mm.current_loaded_models if type(m.model.model).__name__ == "WAN21"]
result = {n: [str(p.device), p.data_ptr()] for n, p in _model.named_parameters()}
del _model
"""


def test_stacked_loras_equal_the_core(comfy: ComfyServer) -> None:
    reference = comfy.run(wan(None, loras=(0.7, -0.3))).values["wan"]
    result = comfy.run(wan(loras=(0.7, -0.3))).values["wan"]
    assert (result - reference).abs().max() <= 1e-5


def saved(comfy: ComfyServer, loader: str, **inputs: object) -> dict[str, torch.Tensor]:
    """What ModelSave writes of a model with a LoRA."""
    w = Workflow()
    model = w.add(loader, unet_name="wan.safetensors", weight_dtype="default", **inputs)
    model = w.add(
        "LoraLoaderModelOnly", model=model, lora_name="wan.safetensors", strength_model=0.7
    )
    w.add("ModelSave", model=model, filename_prefix=f"saved_{loader}")
    comfy.run(w)
    comfy.free()
    (path,) = (comfy.base / "output").glob(f"saved_{loader}*.safetensors")
    tensors = load_file(path)
    path.unlink()
    return tensors


def test_a_saved_model_holds_its_lora_once(comfy: ComfyServer) -> None:
    expected = saved(comfy, "UNETLoader")
    inputs = {"compute_device": "sim:0", "expert_mode_allocations": STRING}
    ours = saved(comfy, "UNETLoaderDisTorch2MultiGPU", **inputs)
    assert ours.keys() == expected.keys()
    assert max((ours[k] - expected[k]).abs().max().item() for k in expected) <= 1e-5


def test_repeated_runs_leave_no_growth(comfy: ComfyServer) -> None:
    comfy.run(wan())
    comfy.run(wan(seed=1))
    first = state(comfy)
    for seed in range(2, 7):
        comfy.run(wan(seed=seed))
    last = state(comfy)
    assert last.allocated == first.allocated
    assert last.loaded == first.loaded
    assert last.rss - first.rss < 24 * MIB


def test_loading_again_and_again_leaves_no_growth(comfy: ComfyServer) -> None:
    for round_ in range(6):
        comfy.run(wan(f"sim:1,{4 + round_ % 2}mb;sim:0,*"))
        if round_ == 1:
            first = state(comfy)
    last = state(comfy)
    assert last.allocated == first.allocated
    assert len(last.placements) == 1
    assert last.rss - first.rss < 48 * MIB


def test_unloading_gives_everything_back_and_copies_nothing(comfy: ComfyServer) -> None:
    comfy.run(wan())
    reset_counters(comfy)
    comfy.evaluate(
        "import comfy.model_management as mm\nfor m in list(mm.current_loaded_models): m.model.detach()"
    )
    after = state(comfy)
    assert set(after.copied.values()) == {0}
    assert set(after.allocated.values()) == {0}
    assert comfy.evaluate(CAST_FLAGS) == []
    result = comfy.run(wan(seed=7)).values["wan"]
    comfy.free()
    assert torch.equal(result, comfy.run(wan(None)).values["wan"])


CAST_FLAGS = """
import gc
result = []
for _o in gc.get_objects():
    if type(_o).__name__ == "WAN21":
        for _n, _m in _o.named_modules():
            if getattr(_m, "comfy_cast_weights", False) or hasattr(_m, "prev_comfy_cast_weights"):
                result.append(_n)
_o = _m = None
"""


def test_streamed_host_blocks_are_pinned_while_they_are_there(comfy: ComfyServer) -> None:
    """By the engine, whole groups at a time; what is outside of groups by the core."""
    if comfy.version.number < (0, 8):
        pytest.skip("this ComfyUI pins nothing")
    comfy.evaluate(RECORD_PINS)
    outside = "sim:1,6mb;cpu,*"  # on the compute device, such blocks would come first
    comfy.run(wan(outside))
    placed = state(comfy).placed("WAN21")
    pinned = comfy.evaluate("result = sum(_mm._recorded_pins.values())")
    assert 0 < pinned < placed["bytes"]["cpu"]
    assert pinned == placed["bytes"]["cpu"] - comfy.evaluate(SLAB_BYTES)
    comfy.run(wan(outside, loras=(1.0,)))  # patched tensors are others: none may stay pinned
    now = comfy.evaluate("result = sorted(_mm._recorded_pins)")
    assert now == comfy.evaluate(HOST_POINTERS)
    comfy.free()
    assert comfy.evaluate("result = _mm._recorded_pins") == {}


RECORD_PINS = """
import comfy.model_management as _mm
if not hasattr(_mm, "_recorded_pins"):
    _mm._recorded_pins = {}
    def _pin(tensor):
        return _mm._recorded_pins.setdefault(tensor.data_ptr(), tensor.nbytes) > 0
    def _unpin(tensor):
        return _mm._recorded_pins.pop(tensor.data_ptr()) > 0
    _mm.pin_memory, _mm.unpin_memory = _pin, _unpin
"""

HOST_POINTERS = """
(_model,) = [m.model.model for m in _mm.current_loaded_models if type(m.model.model).__name__ == "WAN21"]
from distorch.slabs import slab_of as _slab
_host = [p for p in _model.parameters() if p.device.type == "cpu"]
result = sorted(p.data_ptr() for p in _host if _slab(p) is None)
del _model, _host
"""

SLAB_BYTES = """
(_model,) = [m.model.model for m in _mm.current_loaded_models if type(m.model.model).__name__ == "WAN21"]
from distorch.slabs import slab_of as _slab
_host = [p for p in _model.parameters() if p.device.type == "cpu"]
result = sum(p.nbytes for p in _host if _slab(p) is not None)
del _model, _host
"""


def test_the_core_keeps_its_own_objects(comfy: ComfyServer) -> None:
    assert comfy.evaluate("result = changed_core_objects()") == []
    w = wan()
    for node in list(w.values()):
        if node["class_type"] == "KSampler":
            check = "assert torch.distorch_test_changed_core_objects() == []"
            node["inputs"]["model"] = w.add(
                "DistorchTestRun", value=node["inputs"]["model"], code=check
            )
    comfy.run(w)
    assert comfy.evaluate("result = changed_core_objects()") == []
    assert (
        comfy.evaluate("from comfy.ops import CastWeightBiasOp as c\nresult = c.weight_function")
        == []
    )


def test_other_models_stay_dynamic(comfy: ComfyServer) -> None:
    w = Workflow()
    placed = w.add(
        "UNETLoaderDisTorch2MultiGPU",
        unet_name="wan.safetensors",
        weight_dtype="default",
        compute_device="sim:0",
        expert_mode_allocations=STRING,
    )
    other = w.add("UNETLoader", unet_name="wan_second.safetensors", weight_dtype="default")
    prompt = w.conditioning(8, 4096)
    latent = w.sample(placed, prompt, w.latent(1, 16, 1, 8, 8))
    w.save(w.sample(other, prompt, latent, seed=3), "wan")
    comfy.run(w)
    kinds = {row[0] for row in state(comfy).loaded if row[1] == "WAN21"}
    cores = "ModelPatcherDynamic" if comfy.version.dynamic else "ModelPatcher"
    assert kinds == {"DisTorchModelPatcher", cores}
    assert comfy.evaluate("result = changed_core_objects()") == []


def test_out_of_memory_while_sampling_is_recovered_from(comfy: ComfyServer) -> None:
    expected = comfy.run(wan()).values["wan"]
    comfy.free()
    w = wan(seed=9)
    for node in list(w.values()):
        if node["class_type"] == "KSampler":
            fail = "import distorch_sim; distorch_sim.fail_allocation(40, sticky=True)"
            node["inputs"]["model"] = w.add(
                "DistorchTestRun", value=node["inputs"]["model"], code=fail
            )
    with pytest.raises(ComfyError, match="out of memory"):
        comfy.run(w)
    comfy.evaluate("import distorch_sim; distorch_sim.clear_faults()")
    result = comfy.run(wan()).values["wan"]
    assert torch.equal(result, expected)


def test_a_wrong_string_fails_before_loading(comfy: ComfyServer) -> None:
    count_reads(comfy)
    with pytest.raises(ComfyError, match=r"unknown unit 'xb' at offset 7(.|\n)*\^"):
        comfy.run(wan("sim:0,1xb;cpu,*"))
    assert reads(comfy) == []


def test_a_missing_device_is_replaced_with_a_warning(comfy: ComfyServer) -> None:
    w = wan("cuda:5,2mb;sim:1,2mb;sim:0,*")
    w["1"]["inputs"]["compute_device"] = "cuda:4"
    mark = len(comfy.log())
    comfy.run(w)
    warnings = comfy.log()[mark:]
    assert "asks for device cuda:4, which is not here: sim:0 is used" in warnings
    assert "cuda:5 left out (there are: cpu, sim:0, sim:1, sim:2)" in warnings
    assert state(comfy).placed("WAN21")["bytes"].keys() == {"sim:0", "sim:1"}


def test_virtual_vram_counts_without_a_string(comfy: ComfyServer) -> None:
    comfy.run(wan("", virtual_vram_gb=0.005, donor_device="sim:2"))
    placed = state(comfy).placed("WAN21")
    assert 0 < placed["bytes"]["sim:2"] <= 0.005 * 2**30
    comfy.run(wan("sim:1,3mb;sim:0,*", virtual_vram_gb=0.005, donor_device="sim:2"))
    assert "sim:2" not in state(comfy).placed("WAN21")["bytes"]


def test_system_stats_do_not_change(comfy: ComfyServer) -> None:
    before = [d["name"] for d in comfy.get("/system_stats")["devices"]]
    comfy.run(wan())
    assert [d["name"] for d in comfy.get("/system_stats")["devices"]] == before
    assert before[0] == "sim:0"
