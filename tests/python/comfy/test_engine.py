# SPDX-License-Identifier: Apache-2.0
"""How placed models run inside real ComfyUI: groups ahead of their use, or on their donor."""

from __future__ import annotations

import re

import pytest
import torch
from comfy_harness import ComfyServer, Workflow, models, reset_counters, state

pytestmark = pytest.mark.comfy

MIB = 2**20


def wan(
    expert: str | None,
    *,
    steps: int = 2,
    cfg: float = 1.0,
    samplers: int = 1,
    file: str = "wan.safetensors",
) -> Workflow:
    """Samples Wan; several samplers one after the other on the same model."""
    w = Workflow()
    settings = {"unet_name": file, "weight_dtype": "default"}
    if expert is None:
        model = w.add("UNETLoader", **settings)
    else:
        settings.update(compute_device="sim:0", expert_mode_allocations=expert)
        model = w.add("UNETLoaderDisTorch2MultiGPU", **settings)
    latent = w.latent(1, 16, 1, 8, 8)
    prompt = w.conditioning(8, 4096)
    for index in range(samplers):
        latent = w.sample(model, prompt, latent, steps=steps, cfg=cfg, seed=7 + index)
    return w.save(latent, "wan")


def unet(loader: str, **inputs: object) -> Workflow:
    """The U-Net of the SD 1.5 checkpoint: its groups are containers, called child by child."""
    w = Workflow()
    model = w.add(loader, ckpt_name="sd15.safetensors", **inputs)
    prompt = w.add("CLIPTextEncode", clip=w.output(model, 1), text="a checkpoint")
    return w.save(w.sample(model, prompt, w.latent(1, 4, 8, 8), steps=4), "latent")


ENGINE = """
import comfy.model_management as mm
(_placed,) = {p for m in mm.current_loaded_models
              if (p := getattr(m.model.model, "_distorch_placed", None)) and p.name == NAME}
_engine = _placed.runner.engine
result = {"counters": _engine.counters, "bytes": _engine.bytes_per_step, "steps": _engine.steps,
          "streamed": _engine.streamed, "migrated": _engine.migrated, "copied": _engine.bytes_copied,
          "crossings": {d: list(c) for d, c in _engine.crossings.items()}, "notes": _engine.notes}
del _placed, _engine
"""


def engine(comfy: ComfyServer, name: str) -> dict:
    return comfy.evaluate(f"NAME = {name!r}\n" + ENGINE)


def test_groups_come_in_one_copy_each_and_ahead(comfy: ComfyServer) -> None:
    reference = comfy.run(wan(None, steps=4)).values["wan"]
    comfy.free()
    reset_counters(comfy)
    result = comfy.run(wan("sim:0,20%;cpu,*", steps=4)).values["wan"]
    assert torch.equal(result, reference)
    now = engine(comfy, "WAN21")
    assert len(now["streamed"]) == 3, "more than the slots hold"
    assert now["steps"] == 4
    counters = now["counters"]
    assert counters["ahead"] > counters["on_demand"]
    assert counters["wasted"] == 0
    shown = state(comfy).placed("WAN21")
    assert shown["streamed_bytes"] == now["bytes"] > 0
    assert "groups are streamed" in shown["streaming"]
    assert shown["compute_step_s"] > 0


@pytest.mark.parametrize("donor", ["cpu,*", "sim:1,*,mode=migrate"])
def test_scaled_fp8_layers_come_with_their_groups(comfy: ComfyServer, donor: str) -> None:
    """Quantised tensors are brought with their scales, in the copy of their group."""
    file = "wan_scaled_fp8.safetensors"
    reference = comfy.run(wan(None, steps=4, file=file)).values["wan"]
    comfy.free()
    result = comfy.run(wan(f"sim:0,12%;{donor}", steps=4, file=file)).values["wan"]
    assert (result - reference).abs().max() <= 1e-5
    now = engine(comfy, "WAN21")
    groups = [*now["streamed"], *now["migrated"].get("sim:1", [])]
    assert len([name for name in groups if ".blocks." in name]) == 3
    assert bool(now["migrated"]) is ("migrate" in donor)
    shown = state(comfy).placed("WAN21")
    assert "layer by layer" not in shown["streaming"], shown["streaming"]
    assert now["bytes"] < 9 * MIB  # a step moves what is stored, of 16 MB in float32


LAYOUTS = """
import torch
import comfy.model_management as mm
(_placed,) = {p for m in mm.current_loaded_models
              if (p := getattr(m.model.model, "_distorch_placed", None)) and p.name == "WAN21"}
_weights = [c.current for b in _placed.blocks for c in b.tensors if c.name == "weight" and ".ffn.0" in c.key]
result = {"kinds": sorted({f"{type(w).__name__} {w._layout_cls}" for w in _weights}),
          "stored": sorted({str(w._qdata.dtype) for w in _weights}),
          "bytes": _placed.bytes_per_device(), "planned": _placed.planned_bytes("sim:1"),
          "allocated": torch.sim.memory_allocated(1)}
del _placed, _weights
"""


@pytest.mark.parametrize("layout", models.QUANTISED)
@pytest.mark.parametrize("donor", ["sim:1,*", "sim:1,2mb;cpu,*", "sim:1,*,mode=migrate"])
def test_layouts_of_comfy_kitchen_are_placed_and_streamed(
    comfy: ComfyServer, layout: str, donor: str
) -> None:
    """Files of 4 and 8 bits through the core's own loader; what is stored is what is moved."""
    known = comfy.version.path / "comfy" / "quant_ops.py"
    if not known.exists() or f'"{layout}"' not in known.read_text():
        pytest.skip(f"this ComfyUI does not know {layout}")
    file = f"wan_{layout}.safetensors"
    reference = comfy.run(wan(None, steps=4, file=file)).values["wan"]
    assert reference.isfinite().all()
    comfy.free()
    result = comfy.run(wan(f"sim:0,12%;{donor}", steps=4, file=file)).values["wan"]
    assert torch.equal(result, reference)
    found = comfy.evaluate(LAYOUTS)
    kind, stored = {"nvfp4": ("NVFP4", "uint8"), "int8_tensorwise": ("INT8", "int8")}[layout]
    assert len(found["kinds"]) == 1
    assert kind in found["kinds"][0]
    assert found["stored"] == [f"torch.{stored}"]
    assert found["bytes"]["sim:1"] == found["planned"] > 1.5 * MIB
    assert found["planned"] <= found["allocated"] < found["planned"] + MIB // 8
    now = engine(comfy, "WAN21")
    groups = [*now["streamed"], *now["migrated"].get("sim:1", [])]
    assert sorted(groups) == [f"diffusion_model.blocks.{i}" for i in range(3)]
    assert bool(now["migrated"]) is ("migrate" in donor)
    assert "layer by layer" not in state(comfy).placed("WAN21")["streaming"]
    assert now["counters"]["ahead"] > now["counters"]["on_demand"] or donor != "sim:1,*"
    assert now["bytes"] < 3 * MIB  # of 9.5 MB that these weights take in float32
    comfy.free(let_go=True)
    comfy.evaluate(FORGET_TABLES)
    assert set(state(comfy).allocated.values()) == {0}


FORGET_TABLES = """
from comfy_kitchen.backends.eager import quantization
getattr(quantization, "E2M1_LUT_CACHE", {}).clear()  # comfy-kitchen's own, a table on each device
result = None
"""


def test_groups_run_on_their_donor(comfy: ComfyServer) -> None:
    reference = comfy.run(wan(None, steps=4)).values["wan"]
    comfy.free()
    result = comfy.run(wan("sim:0,45%;sim:1,*,mode=migrate", steps=4)).values["wan"]
    assert torch.equal(result, reference)
    now = engine(comfy, "WAN21")
    assert now["migrated"] == {"sim:1": now["migrated"]["sim:1"]}
    assert len(now["migrated"]["sim:1"]) >= 1
    sent, returned = now["crossings"]["sim:1"]
    assert 0 < returned <= sent
    assert state(comfy).placed("WAN21")["migrated"] == {"sim:1": len(now["migrated"]["sim:1"])}
    comfy.free(let_go=True)
    assert set(state(comfy).allocated.values()) == {0}


@pytest.mark.parametrize("mode", ["stream", "migrate"])
def test_guidance_and_several_samplers(comfy: ComfyServer, mode: str) -> None:
    reference = comfy.run(wan(None, cfg=4.0, samplers=2)).values["wan"]
    comfy.free()
    result = comfy.run(wan(f"sim:0,45%;sim:1,*,mode={mode}", cfg=4.0, samplers=2)).values["wan"]
    assert torch.equal(result, reference)


def test_a_u_net_is_split_into_what_is_called(comfy: ComfyServer) -> None:
    reference = comfy.run(unet("CheckpointLoaderSimple")).values["latent"]
    comfy.free()
    result = comfy.run(
        unet(
            "CheckpointLoaderSimpleDisTorch2MultiGPU",
            compute_device="sim:0",
            expert_mode_allocations="sim:1,30mb,mode=migrate;cpu,60mb;sim:0,*",
        )
    ).values["latent"]
    assert torch.equal(result, reference)
    now = engine(comfy, "BaseModel")
    names = [*now["streamed"], *now["migrated"].get("sim:1", [])]
    assert names
    container = re.compile(r"diffusion_model\.(input|output)_blocks\.\d+")
    assert not [name for name in names if container.fullmatch(name)], names
    assert not [note for note in now["notes"] if "module by module" in note]


def test_an_interrupted_run_leaves_a_clean_state(comfy: ComfyServer) -> None:
    reference = comfy.run(wan(None)).values["wan"]
    for mode in ("stream", "migrate"):
        comfy.free()
        string = f"sim:0,45%;sim:1,*,mode={mode}"
        comfy.run(wan(string, steps=3))
        comfy.evaluate(INTERRUPT)
        with pytest.raises(Exception, match=r"(?i)interrupt"):
            comfy.run(wan(string, steps=3, samplers=2))
        assert torch.equal(comfy.run(wan(string)).values["wan"], reference)


INTERRUPT = """
import comfy.model_management as mm
def _arm():
    import gc
    for o in gc.get_objects():
        if type(o).__name__ == "WAN21":
            block = o.diffusion_model.blocks[2]
            def stop(*_):
                handle.remove()
                raise mm.InterruptProcessingException()
            handle = block.register_forward_pre_hook(stop)
_arm()
"""
