# SPDX-License-Identifier: Apache-2.0
"""The nodes as ComfyUI shows them, and what its own features do with placed models."""

from __future__ import annotations

import pathlib
import time

import pytest
import torch
from comfy_harness import ComfyServer, Workflow, help_pages, state, versions

pytestmark = pytest.mark.comfy

LOADERS = [
    "UNETLoader",
    "VAELoader",
    "CLIPLoader",
    "DualCLIPLoader",
    "TripleCLIPLoader",
    "QuadrupleCLIPLoader",
    "CLIPVisionLoader",
    "CheckpointLoaderSimple",
    "ControlNetLoader",
    "DiffusersLoader",
    "DiffControlNetLoader",
]
ALWAYS = {
    "DeviceSelectorMultiGPU",
    "UNetLoaderLP",
    "CheckpointLoaderAdvancedMultiGPU",
    "CheckpointLoaderAdvancedDisTorch2MultiGPU",
    *(f"{name}MultiGPU" for name in LOADERS),
    *(f"{name}DisTorch2MultiGPU" for name in LOADERS),
}
PLACEMENT = [
    "virtual_vram_gb",
    "donor_device",
    "expert_mode_allocations",
    "eject_models",
    "keep_loaded",
    "execution_mode",
]


def test_every_node_of_the_predecessor_is_there(comfy: ComfyServer) -> None:
    known = comfy.get("/object_info")
    assert {name for name in ALWAYS if name not in known} == set()
    assert len(ALWAYS) == 26


@pytest.mark.parametrize("name", LOADERS)
def test_widgets_keep_their_order_and_defaults(comfy: ComfyServer, name: str) -> None:
    info = comfy.get("/object_info")
    core, ours = info[name], info[f"{name}DisTorch2MultiGPU"]
    encoder = "CLIP" in name
    device = "device" if encoder else "compute_device"
    optional = ours["input"]["optional"]
    assert ours["input"].get("required") == core["input"].get("required")
    assert [n for n in optional if n in PLACEMENT] == PLACEMENT
    assert list(optional)[-2:] == ["keep_loaded", "execution_mode"], "new ones come last"
    assert optional[device][0] == ["cpu", "sim:0", "sim:1", "sim:2"]
    assert optional[device][1]["default"] == "sim:0"
    assert optional["donor_device"][1]["default"] == "cpu"
    assert all(optional[name][1].pop("tooltip") for name in PLACEMENT), "each says what it is for"
    assert optional["virtual_vram_gb"][1] == {"default": 4.0, "min": 0.0, "max": 128.0, "step": 0.1}
    assert optional["eject_models"][1]["default"] is not encoder
    assert optional["keep_loaded"][1]["default"] is True
    assert optional["execution_mode"][0] == ["auto", "stream", "migrate"]
    assert optional["execution_mode"][1]["default"] == "auto"
    assert ours["output"] == core["output"]
    assert list(info[f"{name}MultiGPU"]["input"]["optional"])[-1] == "device"


def test_a_model_computes_on_the_device_of_its_node(comfy: ComfyServer) -> None:
    w = Workflow()
    model = w.add(
        "UNETLoaderMultiGPU", unet_name="wan.safetensors", weight_dtype="default", device="sim:2"
    )
    w.save(w.sample(model, w.conditioning(8, 4096), w.latent(1, 16, 1, 8, 8)), "wan")
    comfy.run(w)
    (row,) = [row for row in state(comfy).loaded if row[1] == "WAN21" and row[2] == "sim:2"]
    assert row[0] == ("ModelPatcherDynamic" if comfy.version.dynamic else "ModelPatcher")


def plain_wan(loader: str, *, lora: float = 0.0, **inputs: object) -> Workflow:
    w = Workflow()
    settings = {"weight_dtype": "default", "unet_name": "wan.safetensors", **inputs}
    model = w.add(loader, **settings)
    if lora:
        model = w.add(
            "LoraLoaderModelOnly", model=model, lora_name="wan.safetensors", strength_model=lora
        )
    return w.save(w.sample(model, w.conditioning(8, 4096), w.latent(1, 16, 1, 8, 8)), "wan")


def test_the_compute_device_need_not_be_the_first(comfy: ComfyServer) -> None:
    expected = comfy.run(plain_wan("UNETLoader")).values["wan"]
    comfy.free()
    inputs = {"compute_device": "sim:1", "expert_mode_allocations": "sim:0,6mb;cpu,4mb;sim:1,*"}
    result = comfy.run(plain_wan("UNETLoaderDisTorch2MultiGPU", **inputs)).values["wan"]
    assert torch.equal(result, expected)
    assert state(comfy).placed("WAN21")["bytes"]["sim:1"] > 0
    assert comfy.evaluate("result = torch.sim.current_device()") == 0


def test_the_chosen_weight_type_is_stored_on_every_device(comfy: ComfyServer) -> None:
    expected = comfy.run(plain_wan("UNETLoader", weight_dtype="fp8_e4m3fn")).values["wan"]
    comfy.free()
    inputs = {"compute_device": "sim:0", "expert_mode_allocations": "sim:1,2mb;cpu,1mb;sim:0,*"}
    w = plain_wan("UNETLoaderDisTorch2MultiGPU", weight_dtype="fp8_e4m3fn", **inputs)
    result = comfy.run(w).values["wan"]
    if comfy.version.dynamic:  # it keeps norms in the file's type, ordinary loading does not
        assert (result - expected).abs().max() < 1e-3
    else:
        assert torch.equal(result, expected)
    sizes = state(comfy).placed("WAN21")["bytes"]
    assert sum(sizes.values()) < 16 * 2**20 / 3
    assert sizes["sim:1"] > 2**20


@pytest.mark.parametrize("lora", [0.0, 0.8])
def test_scaled_fp8_weights_travel_as_they_are_stored(comfy: ComfyServer, lora: float) -> None:
    file = {"unet_name": "wan_scaled_fp8.safetensors"}
    expected = comfy.run(plain_wan("UNETLoader", lora=lora, **file)).values["wan"]
    comfy.free()
    inputs = {"compute_device": "sim:0", "expert_mode_allocations": "sim:0,*;sim:1,25%;cpu,25%"}
    result = comfy.run(plain_wan("UNETLoaderDisTorch2MultiGPU", lora=lora, **file, **inputs))
    difference = (result.values["wan"] - expected).abs().max()
    assert difference <= (0.5 if lora else 1e-5)  # a patch is rounded back to fp8 at random
    placed = state(comfy).placed("WAN21")["bytes"]
    total = sum(placed.values())
    assert total < 9 * 2**20  # of 16 MB in float32
    assert placed["sim:1"] > 0.1 * total
    assert placed["cpu"] > 0.1 * total
    assert state(comfy).allocated["sim:1"] >= placed["sim:1"]


def test_select_model_device_takes_a_whole_copy(comfy: ComfyServer) -> None:
    if "SelectModelDevice" not in comfy.get("/object_info"):
        pytest.skip("this ComfyUI has no Select Model Device")
    expected = comfy.run(plain_wan("UNETLoader")).values["wan"]
    comfy.free()
    for device in ("gpu:2", "cpu"):
        w = Workflow()
        model = w.add(
            "UNETLoaderDisTorch2MultiGPU",
            unet_name="wan.safetensors",
            weight_dtype="default",
            compute_device="sim:0",
            expert_mode_allocations="sim:1,6mb;sim:0,*",
        )
        model = w.add("SelectModelDevice", model=model, device=device)
        w.save(w.sample(model, w.conditioning(8, 4096), w.latent(1, 16, 1, 8, 8)), "wan")
        assert torch.equal(comfy.run(w).values["wan"], expected)
        comfy.free()


def hooked(loader: str, code: str = "", **inputs: object) -> Workflow:
    """A LoRA that only acts through the conditioning's hook; `code` is run with the model first."""
    w = Workflow()
    model = w.add(loader, unet_name="wan.safetensors", weight_dtype="default", **inputs)
    if code:
        model = w.add("DistorchTestRun", value=model, code=code)
    hook = w.add("CreateHookLoraModelOnly", lora_name="wan.safetensors", strength_model=1.0)
    prompt = w.add(
        "ConditioningSetProperties",
        cond_NEW=w.conditioning(8, 4096),
        strength=1.0,
        set_cond_area="default",
        hooks=hook,
    )
    return w.save(w.sample(model, prompt, w.latent(1, 16, 1, 8, 8)), "wan")


def test_hook_loras_act_as_in_the_core(comfy: ComfyServer) -> None:
    expected = comfy.run(hooked("UNETLoader")).values["wan"]
    comfy.free()
    inputs = {"compute_device": "sim:0", "expert_mode_allocations": "sim:1,6mb;cpu,4mb;sim:0,*"}
    result = comfy.run(hooked("UNETLoaderDisTorch2MultiGPU", **inputs)).values["wan"]
    assert (result - expected).abs().max() <= 1e-5
    bare = Workflow()
    model = bare.add(
        "UNETLoaderDisTorch2MultiGPU", unet_name="wan.safetensors", weight_dtype="default", **inputs
    )
    bare.save(bare.sample(model, bare.conditioning(8, 4096), bare.latent(1, 16, 1, 8, 8)), "wan")
    without = comfy.run(bare).values["wan"]
    assert (result - without).abs().max() > 0.01
    comfy.free()
    plain = Workflow()
    model = plain.add("UNETLoader", unet_name="wan.safetensors", weight_dtype="default")
    plain.save(
        plain.sample(model, plain.conditioning(8, 4096), plain.latent(1, 16, 1, 8, 8)), "wan"
    )
    assert torch.equal(without, comfy.run(plain).values["wan"])  # the hook left nothing behind


TAKE_DONOR = """
import comfy.model_management as mm
value, torch.distorch_test_told = value.clone(), []
def _step(apply_model, given):
    donors = [e for e in mm.current_loaded_models if type(e.model).__name__ == "DonorPatcher"]
    torch.distorch_test_told.append(sum(e.model.loaded_size() for e in donors))
    for entry in donors:
        entry.model_unload()
        mm.current_loaded_models.remove(entry)
    return apply_model(given["input"], given["timestep"], **given["c"])
value.set_model_unet_function_wrapper(_step)
"""


def test_a_donor_that_is_taken_while_hook_loras_act_keeps_them(comfy: ComfyServer) -> None:
    expected = comfy.run(hooked("UNETLoader")).values["wan"]
    comfy.free()
    inputs = {"compute_device": "sim:0", "expert_mode_allocations": "sim:1,8mb;cpu,2mb;sim:0,*"}
    result = comfy.run(hooked("UNETLoaderDisTorch2MultiGPU", TAKE_DONOR, **inputs)).values["wan"]
    assert (result - expected).abs().max() <= 1e-5
    told = comfy.evaluate("import torch\nresult = torch.distorch_test_told")
    assert told[0] > 6 * 2**20, "the donor was full when the first step began"
    assert told[1:]
    assert set(told[1:]) == {0}, "and is streamed from then on"
    again = comfy.run(hooked("UNETLoaderDisTorch2MultiGPU", **inputs)).values["wan"]
    assert torch.equal(again, result)


INJECT = """
from comfy.patcher_extension import CallbacksMP, PatcherInjection
value = value.clone()
_layer = value.model.diffusion_model.blocks[1].ffn[0]
_plain, torch.distorch_test_told = _layer.forward, []
def _inject(patcher):
    _layer.forward = lambda *args, **kwargs: 1.5 * _plain(*args, **kwargs)
def _eject(patcher):
    _layer.forward = _plain
value.set_injections("test", [PatcherInjection(inject=_inject, eject=_eject)])
value.add_callback(CallbacksMP.ON_LOAD, lambda *_: torch.distorch_test_told.append("loaded"))
value.add_callback(CallbacksMP.ON_DETACH, lambda *_: torch.distorch_test_told.append("detached"))
"""


def injected(loader: str, **inputs: object) -> Workflow:
    """A layer that is replaced while the model is loaded, and another schedule as an object patch."""
    w = Workflow()
    model = w.add(loader, unet_name="wan.safetensors", weight_dtype="default", **inputs)
    model = w.add("ModelSamplingSD3", model=model, shift=5.0)
    model = w.add("DistorchTestRun", value=model, code=INJECT)
    return w.save(w.sample(model, w.conditioning(8, 4096), w.latent(1, 16, 1, 8, 8)), "wan")


def test_injections_object_patches_and_callbacks_act_as_in_the_core(comfy: ComfyServer) -> None:
    placed = {"compute_device": "sim:0", "expert_mode_allocations": "sim:1,6mb;cpu,4mb;sim:0,*"}
    results, told = [], []
    for loader, inputs in (("UNETLoader", {}), ("UNETLoaderDisTorch2MultiGPU", placed)):
        injected_run = comfy.run(injected(loader, **inputs)).values["wan"]
        plain_run = comfy.run(plain_wan(loader, **inputs)).values["wan"]
        results.append((injected_run, plain_run))
        if inputs:
            assert state(comfy).placed("WAN21")["bytes"]["sim:1"] > 0
        comfy.free()
        told.append(comfy.evaluate("result = torch.distorch_test_told"))
    core, ours = results
    assert (core[0] - core[1]).abs().max() > 0.01
    assert torch.equal(ours[0], core[0])
    assert torch.equal(ours[1], core[1])  # nothing of it stays on the model
    assert told[1] == told[0]
    assert (told[1][0], told[1][-1]) == ("loaded", "detached")


def controlled(loader: str, **inputs: object) -> Workflow:
    """Samples a checkpoint under a ControlNet, whose loader may want to be given the model."""
    w = Workflow()
    model = w.add("CheckpointLoaderSimple", ckpt_name="sd15.safetensors")
    prompt = w.add("CLIPTextEncode", clip=w.output(model, 1), text="a hint")
    if loader.startswith("Diff"):
        inputs["model"] = model
    control = w.add(loader, control_net_name="controlnet.safetensors", **inputs)
    image = w.add("EmptyImage", width=64, height=64, batch_size=1, color=0x808080)
    prompt = w.add(
        "ControlNetApply", conditioning=prompt, control_net=control, image=image, strength=1.0
    )
    return w.save(w.sample(model, prompt, w.latent(1, 4, 8, 8)), "latent")


@pytest.mark.parametrize("loader", ["ControlNetLoader", "DiffControlNetLoader"])
def test_a_controlnet_is_placed_beside_a_model_of_the_core(comfy: ComfyServer, loader: str) -> None:
    expected = comfy.run(controlled(loader)).values["latent"]
    comfy.free()
    inputs = {"compute_device": "sim:0", "expert_mode_allocations": "sim:1,10mb;cpu,5mb;sim:0,*"}
    result = comfy.run(controlled(f"{loader}DisTorch2MultiGPU", **inputs)).values["latent"]
    assert torch.equal(result, expected)
    now = state(comfy)
    sizes = now.placed("ControlNet")["bytes"]
    assert 9 * 2**20 < sizes["sim:1"] == now.allocated["sim:1"] <= 10 * 2**20
    kinds = {row[1]: row[0] for row in now.loaded}
    assert kinds["ControlNet"] == "DisTorchModelPatcher"
    assert kinds["BaseModel"] == (
        "ModelPatcherDynamic" if comfy.version.dynamic else "ModelPatcher"
    )


def test_what_holds_no_model_is_left_to_the_core_with_an_error(comfy: ComfyServer) -> None:
    w = Workflow()
    inputs = {"compute_device": "sim:0", "expert_mode_allocations": "sim:1,10mb;sim:0,*"}
    loader = "ControlNetLoaderDisTorch2MultiGPU"
    control = w.add(loader, control_net_name="lora.safetensors", **inputs)
    w.save(w.add("DistorchTestRun", value=control, code="value = type(value).__name__"), "name")
    assert comfy.run(w).values["name"] == "ControlLora"
    assert "the ControlLora in lora.safetensors holds no model whose blocks can be" in comfy.log()


def test_low_precision_leaves_what_is_not_fp8_unchanged(comfy: ComfyServer) -> None:
    w = Workflow()
    model = w.add(
        "CheckpointLoaderAdvancedDisTorch2MultiGPU",
        ckpt_name="sd15.safetensors",
        unet_compute_device="sim:0",
        unet_virtual_vram_gb=4.0,
        unet_donor_device="cpu",
        clip_compute_device="cpu",
        clip_virtual_vram_gb=0.0,
        clip_donor_device="cpu",
        vae_device="sim:0",
        high_precision_loras=False,
    )
    prompt = w.add("CLIPTextEncode", clip=w.output(model, 1), text="low precision")
    patched = w.add("DistorchTestRun", value=model, code=PATCH_ONE_WEIGHT)
    w.save(w.sample(patched, prompt, w.latent(1, 4, 8, 8)), "latent")
    comfy.run(w)
    assert comfy.evaluate(DTYPES) == {"cpu": ["torch.float32", "torch.float32"]}


PATCH_ONE_WEIGHT = """
key = "diffusion_model.middle_block.1.transformer_blocks.0.ff.net.2.weight"
shape = dict(value.model.named_parameters())[key].shape
value.add_patches({key: ("diff", (torch.full(shape, 0.001),))})
"""

DTYPES = """
import comfy.model_management as mm
(_model,) = [m.model.model for m in mm.current_loaded_models if type(m.model.model).__name__ == "BaseModel"]
_block = _model.diffusion_model.middle_block[1].transformer_blocks[0]
result = {}
for _p in (_block.ff.net[2].weight, _block.attn1.to_q.weight):
    result.setdefault(str(_p.device), []).append(str(_p.dtype))
result = {k: sorted(v) for k, v in result.items()}
del _model, _block, _p
"""


def test_each_node_has_a_help_page_with_its_inputs_and_outputs(comfy: ComfyServer) -> None:
    assert help_pages.compare(comfy) == 29


def test_the_front_end_finds_each_of_our_modules_once(comfy: ComfyServer) -> None:
    paths = [p for p in comfy.get("/extensions") if "distorch" in p.lower()]
    assert "/extensions/DisTorch/distorch.js" in paths
    assert [p for p in paths if not p.startswith("/extensions/DisTorch/")] == []


CLEANUP = """
import importlib, sys
_pack = next(name for name in sys.modules if name.endswith("DisTorch"))
_management = importlib.import_module(_pack + ".model_management_mgpu")
_report = _management.force_full_system_cleanup("test")
result = [_report.done, {device: row["freed"] for device, row in _report.items()}, str(_report)]
"""

THEIRS = """
class Node:
    FUNCTION, CATEGORY, RETURN_TYPES = "run", "theirs", ("STRING",)
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}
    def run(self):
        return ("theirs",)
NODE_CLASS_MAPPINGS = {"UNETLoaderMultiGPU": Node}
"""


def test_nothing_is_registered_twice_beside_the_predecessor(tmp_path: pathlib.Path) -> None:
    other = tmp_path / "ComfyUI-MultiGPU-main"
    other.mkdir()
    (other / "__init__.py").write_text(THEIRS)
    server = ComfyServer(versions(dynamic=False)[0], tmp_path / "base", packs=[other])
    try:
        info = server.get("/object_info")
        ours = {name for name, row in info.items() if row["python_module"].endswith("DisTorch")}
        assert ours == {"DisTorchPlan", "DisTorchUnload", "DisTorchDevice"}
        assert info["UNETLoaderMultiGPU"]["category"] == "theirs"
        assert "ComfyUI-MultiGPU is installed too" in server.log()
    finally:
        server.stop()


def test_the_report_of_a_free_says_what_it_kept_and_why(comfy: ComfyServer) -> None:
    inputs = {"compute_device": "sim:0", "expert_mode_allocations": "sim:1,6mb;sim:0,*"}
    comfy.run(plain_wan("UNETLoaderDisTorch2MultiGPU", **inputs))
    answer = comfy.request("/distorch/free", {"unload_models": True, "free_memory": True})
    for _ in range(200):
        report = comfy.get(f"/distorch/report?ticket={answer['ticket']}")
        if report["state"] == "done":
            break
        time.sleep(0.05)
    (kept,) = report["details"]["kept"]
    assert kept["name"] == "WAN21 (wan.safetensors)"
    assert kept["why"] == "keep_loaded is on"
    assert "switch keep_loaded off" in kept["let_go"]
    assert report["details"]["unloaded"] == []
    assert "free: WAN21 (wan.safetensors) stay (keep_loaded)" in comfy.log()


def test_a_cleanup_by_its_old_name_reports_what_each_device_gave_back(comfy: ComfyServer) -> None:
    w = Workflow()
    settings = {"compute_device": "sim:0", "expert_mode_allocations": "sim:1,6mb;sim:0,*"}
    model = w.add(
        "UNETLoaderDisTorch2MultiGPU",
        unet_name="wan.safetensors",
        weight_dtype="default",
        keep_loaded=False,
        **settings,
    )
    w.save(w.sample(model, w.conditioning(8, 4096), w.latent(1, 16, 1, 8, 8)), "wan")
    comfy.run(w)
    before = state(comfy)
    assert before.allocated["sim:1"] > 2**20
    done, freed, text = comfy.evaluate(CLEANUP)
    assert done
    assert freed["sim:0"] >= before.allocated["sim:0"] - 64 * 1024
    assert freed["sim:1"] == before.allocated["sim:1"]
    assert freed["sim:2"] == 0
    assert f"sim:1: {freed['sim:1']} bytes given back" in text
    assert state(comfy).loaded == []
