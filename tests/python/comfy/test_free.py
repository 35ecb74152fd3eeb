# SPDX-License-Identifier: Apache-2.0
"""`/free` over HTTP: none, one and all models flagged; what is kept survives the whole flow."""

from __future__ import annotations

import time

import pytest
import torch
from comfy_harness import ComfyServer, Workflow, count_reads, reads

pytestmark = pytest.mark.comfy

STRING = "sim:0,5mb;sim:1,5mb;cpu,*"


def workflow(file: str, keep: bool, name: str = "out") -> Workflow:
    w = Workflow()
    model = w.add(
        "UNETLoaderDisTorch2MultiGPU",
        unet_name=file,
        weight_dtype="default",
        compute_device="sim:0",
        expert_mode_allocations=STRING,
        eject_models=False,
        keep_loaded=keep,
    )
    w.save(w.sample(model, w.conditioning(8, 4096), w.latent(1, 16, 1, 8, 8)), name)
    return w


def look(comfy: ComfyServer) -> dict:
    return comfy.evaluate(
        "import sys, torch, gc\n"
        "gc.collect()\n"
        "import comfy.model_management as mm\n"
        "keep = next(m for n, m in sys.modules.items() if n.endswith('patches.keep'))\n"
        "unload = next(m for n, m in sys.modules.items() if n.endswith('patches.unload'))\n"
        "result = {'bytes': [torch.sim.memory_allocated(i) for i in range(2)],\n"
        "          'kept': len(keep.kept()), 'violations': unload.violations,\n"
        "          'listed': [id(e.model.model) for e in mm.current_loaded_models if e.model is not None],\n"
        "          'wrapped': hasattr(mm.unload_all_models, '__wrapped__')}"
    )


def settled(comfy: ComfyServer, expected: list[int]) -> dict:
    """Look until the devices hold what is expected, ten seconds at most: a scan may hold a dead model for a moment."""
    for _ in range(40):
        found = look(comfy)
        if found["bytes"] == expected:
            break
        time.sleep(0.25)
    return found


def test_none_flagged_nothing_moves_and_the_kept_model_is_found_again(comfy: ComfyServer) -> None:
    count_reads(comfy)
    first = comfy.run(workflow("wan.safetensors", keep=True)).values["out"]
    assert [path.rpartition("/")[2] for path in reads(comfy)] == ["wan.safetensors"]
    before = look(comfy)
    assert before["wrapped"]
    assert before["kept"] == 1
    assert min(before["bytes"]) > 2**20
    comfy.free(let_go=False)
    after = look(comfy)
    assert after["listed"] == before["listed"]
    assert after["bytes"] == before["bytes"]
    assert after["violations"] == before["violations"]
    log_before = comfy.log().count("the kept model is used again, nothing is read")
    count_reads(comfy)
    again = comfy.run(workflow("wan.safetensors", keep=True)).values["out"]
    assert reads(comfy) == []
    assert comfy.log().count("the kept model is used again, nothing is read") == log_before + 1
    assert torch.equal(again, first)
    assert look(comfy)["listed"] == before["listed"]
    comfy.free()
    assert settled(comfy, [0, 0])["bytes"] == [0, 0]


def test_one_flagged_exactly_that_one_goes(comfy: ComfyServer) -> None:
    comfy.run(workflow("wan.safetensors", keep=True, name="a"))
    kept = look(comfy)
    comfy.run(workflow("wan_second.safetensors", keep=False, name="b"))
    both = look(comfy)
    assert both["kept"] == 1
    assert both["bytes"][1] > kept["bytes"][1]
    comfy.free(let_go=False)
    after = settled(comfy, kept["bytes"])
    assert after["bytes"] == kept["bytes"]
    assert after["listed"] == kept["listed"]
    assert after["violations"] == 0


def test_all_flagged_everything_is_given_back(comfy: ComfyServer) -> None:
    for file in ("wan.safetensors", "wan_second.safetensors"):
        comfy.run(workflow(file, keep=False, name=file[:5]))
    assert sum(look(comfy)["bytes"]) > 0
    comfy.free(let_go=False)
    after = settled(comfy, [0, 0])
    assert after["bytes"] == [0, 0]
    assert after["kept"] == 0
    assert after["listed"] == []


def test_five_rounds_of_run_and_free_leave_no_growth(comfy: ComfyServer) -> None:
    seen = []
    for round_number in range(5):
        comfy.run(workflow("wan.safetensors", keep=True, name=f"r{round_number}"))
        comfy.run(workflow("wan_second.safetensors", keep=False, name=f"s{round_number}"))
        comfy.free(let_go=False)
        seen.append(settled(comfy, seen[0]["bytes"]) if seen else look(comfy))
    assert all(s["bytes"] == seen[0]["bytes"] for s in seen), [s["bytes"] for s in seen]
    assert all(s["listed"] == seen[0]["listed"] for s in seen)
    assert all(s["kept"] == 1 for s in seen)
    assert seen[-1]["violations"] == 0
