# SPDX-License-Identifier: Apache-2.0
"""Everything that the pack wrapped in real ComfyUI is the core's own again, and can be wrapped anew."""

from __future__ import annotations

import pathlib

import pytest
from comfy_harness import ComfyError, ComfyServer, Workflow, versions

pytestmark = pytest.mark.comfy

LOOK = """
import inspect, sys, threading, torch
import comfy.model_base, comfy.model_management as mm, comfy.utils, execution
from server import PromptServer
_queue = PromptServer.instance.prompt_queue
_found = {
    **{f"mm.{n}": getattr(mm, n) for n in (
        "get_torch_device", "text_encoder_device", "unet_offload_device", "soft_empty_cache",
        "unload_all_models", "load_models_gpu", "free_memory")},
    **{f"queue.{n}": vars(type(_queue))[n] for n in ("get", "get_flags")},
    "get_output_data": execution.get_output_data,
    "add_message": vars(execution.PromptExecutor)["add_message"],
    "update_absolute": vars(comfy.utils.ProgressBar)["update_absolute"],
    "apply_model": vars(comfy.model_base.BaseModel)["apply_model"],
    "add_routes": vars(type(PromptServer.instance))["add_routes"],
    "cuda": getattr(torch._C, "_cuda_memoryStats", None),
}
_patches = {n.rpartition(".")[2]: m for n, m in sys.modules.items() if ".patches." in n}
result = {
    "wrapped": sorted(n for n, f in _found.items() if "patches" in getattr(
        getattr(f, "__code__", None), "co_filename", "") or hasattr(f, "__wrapped__")),
    "threads": sorted(t.name for t in threading.enumerate() if t.name.startswith("distorch-")),
    "own_route": "add_routes" in vars(PromptServer.instance),
}
"""
UNINSTALL = """
for _name in ("memory_view", "apply_settings", "unload_now", "unload", "sharing", "devices"):
    _patches[_name].uninstall()
"""
INSTALL = """
for _name in ("devices", "sharing", "unload", "unload_now", "memory_view", "apply_settings"):
    _patches[_name].install()
"""
NEWEST = versions()[:1] or [None]


@pytest.mark.parametrize("version", NEWEST, ids=lambda v: v.name if v else "none")
def test_the_core_is_as_it_was_and_can_be_wrapped_anew(
    version: object, comfy_models: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    if version is None:
        pytest.skip("COMFYUI_PATH is not set")
    (tmp_path / "models").symlink_to(comfy_models)
    comfy = ComfyServer(version, tmp_path)
    try:
        before = comfy.evaluate(LOOK)
        assert len(set(before["wrapped"]) - {"cuda"}) == 14, before
        assert before["threads"] == ["distorch-scan", "distorch-settings", "distorch-view"]
        comfy.evaluate(LOOK + UNINSTALL)
        after = comfy.evaluate(LOOK)
        assert after == {"wrapped": [], "threads": [], "own_route": False}
        with pytest.raises(ComfyError, match="the memory view is not installed"):
            comfy.get("/distorch/models")
        w = Workflow()
        model = w.add("UNETLoader", unet_name="wan.safetensors", weight_dtype="default")
        w.save(w.sample(model, w.conditioning(8, 4096), w.latent(1, 16, 1, 8, 8)), "wan")
        comfy.run(w)
        comfy.evaluate(LOOK + INSTALL)
        assert comfy.evaluate(LOOK) == before
        assert "WAN21" in {row["class_name"] for row in comfy.get("/distorch/models")["models"]}
    finally:
        comfy.stop()
