# SPDX-License-Identifier: Apache-2.0
"""Quantised models of the GGUF pack (its folder in COMFYUI_GGUF_PATH), placed as others are."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator

import pytest
import torch
from comfy_harness import ComfyServer, Workflow, help_pages, state, versions

pytestmark = [
    pytest.mark.comfy,
    pytest.mark.skipif(
        not os.environ.get("COMFYUI_GGUF_PATH"), reason="COMFYUI_GGUF_PATH is not set"
    ),
]

WRITE = """
import gguf, numpy, pathlib, safetensors.torch
_folder = pathlib.Path({folder!r})
_writer = gguf.GGUFWriter(str(_folder / "wan.gguf"), "wan")
for _key, _t in safetensors.torch.load_file(_folder / "wan.safetensors").items():
    _a = _t.numpy()
    if _t.ndim == 2 and _t.shape[1] % 32 == 0:
        _q = gguf.quants.quantize(_a, gguf.GGMLQuantizationType.Q8_0)
        _writer.add_tensor(_key, _q, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    else:
        _writer.add_tensor(_key, _a.astype(numpy.float32))
_writer.write_header_to_file()
_writer.write_kv_data_to_file()
_writer.write_tensors_to_file()
_writer.close()
"""


@pytest.fixture(scope="module", params=versions() or [None], ids=lambda v: v.name if v else "none")
def comfy(
    request: pytest.FixtureRequest,
    comfy_models: pathlib.Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[ComfyServer]:
    base = tmp_path_factory.mktemp("gguf")
    (base / "models").symlink_to(comfy_models)
    pack = pathlib.Path(os.environ["COMFYUI_GGUF_PATH"])
    server = ComfyServer(request.param, base, packs=[pack])
    server.evaluate(WRITE.format(folder=str(comfy_models / "diffusion_models")))
    yield server
    server.stop()


@pytest.fixture(autouse=True)
def _start_empty(comfy: ComfyServer) -> None:
    comfy.free()


def wan(loader: str, *, lora: float = 0.0, **inputs: object) -> Workflow:
    w = Workflow()
    model = w.add(loader, unet_name="wan.gguf", **inputs)
    if lora:
        model = w.add(
            "LoraLoaderModelOnly", model=model, lora_name="wan.safetensors", strength_model=lora
        )
    return w.save(w.sample(model, w.conditioning(8, 4096), w.latent(1, 16, 1, 8, 8)), "wan")


PLACED = {"compute_device": "sim:0", "expert_mode_allocations": "sim:1,2mb;cpu,1mb;sim:0,*"}


def test_all_eighteen_nodes_are_there(comfy: ComfyServer) -> None:
    known = comfy.get("/object_info")
    loaders = ["UnetLoaderGGUF", "UnetLoaderGGUFAdvanced", "CLIPLoaderGGUF", "DualCLIPLoaderGGUF"]
    loaders += ["TripleCLIPLoaderGGUF", "QuadrupleCLIPLoaderGGUF"]
    kinds = ("MultiGPU", "DisTorchMultiGPU", "DisTorch2MultiGPU")
    wanted = {f"{name}{kind}" for name in loaders for kind in kinds}
    assert len(wanted) == 18
    assert {name for name in wanted if name not in known} == set()
    optional = known["UnetLoaderGGUFDisTorchMultiGPU"]["input"]["optional"]
    assert list(optional) == [
        "device",
        "virtual_vram_gb",
        "use_other_vram",
        "expert_mode_allocations",
        "keep_loaded",
    ]


def test_each_node_has_a_help_page_with_its_inputs_and_outputs(comfy: ComfyServer) -> None:
    assert help_pages.compare(comfy) == 29 + 18


@pytest.mark.parametrize("lora", [0.0, 0.8])
def test_a_quantised_model_equals_the_pack_and_its_donor_holds_bytes(
    comfy: ComfyServer, lora: float
) -> None:
    expected = comfy.run(wan("UnetLoaderGGUF", lora=lora)).values["wan"]
    comfy.free()
    result = comfy.run(wan("UnetLoaderGGUFDisTorch2MultiGPU", lora=lora, **PLACED)).values["wan"]
    assert (result - expected).abs().max() <= (1e-5 if lora else 0)
    now = state(comfy)
    placed = now.placed("WAN21")
    assert 0 < placed["bytes"]["sim:1"] <= 2 * 2**20
    assert now.allocated["sim:1"] == placed["bytes"]["sim:1"]
    assert sum(placed["bytes"].values()) < 16 * 2**20 / 2  # stays quantised
    assert now.loaded[0][0] == "DisTorchGGUFModelPatcher"
    comfy.free()
    assert set(state(comfy).allocated.values()) == {0}


def test_a_plan_of_a_gguf_file_is_what_the_loader_then_does(comfy: ComfyServer) -> None:
    w = Workflow()
    inputs = {**PLACED, "virtual_vram_gb": 4.0, "donor_device": "cpu"}
    w.add("DisTorchPlan", file="unet_gguf/wan.gguf", **inputs)
    (output,) = comfy.run(w).outputs.values()
    table = output["text"][0].split("\nDevice")[-1].splitlines()
    shown = {
        row.split()[0]: float(row.split()[-2]) for row in table if row.startswith(("sim", "cpu"))
    }
    comfy.run(wan("UnetLoaderGGUFDisTorch2MultiGPU", **PLACED))
    sizes = state(comfy).placed("WAN21")["bytes"]
    for device in ("sim:0", "sim:1", "cpu"):
        assert shown[device] == pytest.approx(sizes[device] / 2**20, abs=1.1), table
    assert sum(shown.values()) == pytest.approx(sum(sizes.values()) / 2**20, abs=0.1)


def test_a_legacy_workflow_of_another_machine_opens_and_runs(comfy: ComfyServer) -> None:
    expected = comfy.run(wan("UnetLoaderGGUF")).values["wan"]
    inputs = {"device": "cuda:2", "virtual_vram_gb": 4.0, "use_other_vram": False}
    for text in ("", "cuda:0,0.0207;cuda:1,0.1273;cpu,0.0808"):
        w = wan("UnetLoaderGGUFDisTorchMultiGPU", **inputs, expert_mode_allocations=text)
        assert torch.equal(comfy.run(w).values["wan"], expected)
        comfy.free()
    assert "asks for device cuda:2, which is not here: sim:0 is used" in comfy.log()


def test_legacy_widgets_use_every_other_accelerator(comfy: ComfyServer) -> None:
    inputs = {"device": "sim:0", "virtual_vram_gb": 0.003, "use_other_vram": True}
    result = comfy.run(wan("UnetLoaderGGUFDisTorchMultiGPU", **inputs)).values["wan"]
    assert torch.isfinite(result).all()
    placed = state(comfy).placed("WAN21")["bytes"]
    assert placed.get("sim:1", 0) + placed.get("sim:2", 0) > 0


def test_quantised_layers_are_streamed_group_by_group_also_with_a_lora(comfy: ComfyServer) -> None:
    expected = {
        lora: comfy.run(wan("UnetLoaderGGUF", lora=lora)).values["wan"] for lora in (0.0, 0.8)
    }
    comfy.free()
    most = {"compute_device": "sim:0", "expert_mode_allocations": "sim:0,4%;cpu,*"}
    for lora in (0.0, 0.8, 0.0):
        result = comfy.run(wan("UnetLoaderGGUFDisTorch2MultiGPU", lora=lora, **most)).values["wan"]
        assert (result - expected[lora]).abs().max() <= (1e-5 if lora else 0), lora
        shown = state(comfy).placed("WAN21")
        assert "3 groups are streamed" in shown["streaming"]
        assert "layer by layer" not in shown["streaming"]
    comfy.free()
