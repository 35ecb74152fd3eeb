# SPDX-License-Identifier: Apache-2.0
"""`/free` over HTTP: none, one and all models flagged; what is kept survives the whole flow."""

from __future__ import annotations

import time

import pytest
import torch
from comfy_harness import ComfyServer, Start, Workflow, count_reads, reads, reset_counters, state

pytestmark = pytest.mark.comfy

STRING = "sim:0,5mb;sim:1,5mb;cpu,*"


def workflow(
    file: str, keep: bool, name: str = "out", seed: int = 7, *, eject: bool = False
) -> Workflow:
    w = Workflow()
    model = w.add(
        "UNETLoaderDisTorch2MultiGPU",
        unet_name=file,
        weight_dtype="default",
        compute_device="sim:0",
        expert_mode_allocations=STRING,
        eject_models=eject,
        keep_loaded=keep,
    )
    latent = w.sample(model, w.conditioning(8, 4096), w.latent(1, 16, 1, 8, 8), seed=seed)
    return w.save(latent, name)


def look(comfy: ComfyServer) -> dict:
    return comfy.evaluate(
        "import sys, torch, gc\n"
        "gc.collect()\n"
        "import comfy.model_management as mm\n"
        "keep = next(m for n, m in sys.modules.items() if n.endswith('patches.ejecting.keep'))\n"
        "unload = next(m for n, m in sys.modules.items() if n.endswith('patches.ejecting.unload'))\n"
        "result = {'bytes': [torch.sim.memory_allocated(i) for i in range(2)],\n"
        "          'kept': len(keep.kept()), 'violations': unload.violations,\n"
        "          'listed': [id(e.model.model) for e in mm.current_loaded_models if e.model is not None],\n"
        "          'wrapped': hasattr(mm.unload_all_models, '__wrapped__')}"
    )


def settled(comfy: ComfyServer, expected: list[int], *, listed: int | None = None) -> dict:
    """Look until the devices hold what is expected, ten seconds at most: a scan may hold a dead model for a moment.

    `listed`: so many models are to be on ComfyUI's list, too; its worker may be about to take them off.
    """
    for _ in range(40):
        found = look(comfy)
        if found["bytes"] == expected and listed in (None, len(found["listed"])):
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


def test_a_kept_model_makes_room_for_the_next_and_comes_back_unread(comfy: ComfyServer) -> None:
    """Both defaults together, in three prompts: the first model, the second, the first again."""
    files = ("wan.safetensors", "wan_second.safetensors")
    first = comfy.run(workflow(files[0], keep=True, name="a", eject=True)).values["a"]
    alone = look(comfy)
    count_reads(comfy)
    comfy.run(workflow(files[1], keep=True, name="b", eject=True))
    after = look(comfy)
    assert after["kept"] == 2
    assert not set(after["listed"]) & set(alone["listed"]), "the first has left every device"
    assert after["bytes"] == alone["bytes"], "and the second, of the same size, lies there"
    assert "to make room: WAN21 (wan.safetensors)" in comfy.log()
    count_reads(comfy)
    again = comfy.run(workflow(files[0], keep=True, name="a", seed=7, eject=True)).values["a"]
    assert reads(comfy) == []
    assert torch.equal(again, first)
    back = look(comfy)
    assert (back["kept"], back["bytes"]) == (2, alone["bytes"])
    assert "to make room: WAN21 (wan_second.safetensors)" in comfy.log()
    assert back["violations"] == 0


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


# Called before a block of the model: what the devices hold; the first of them asks to free everything.
POST_FREE = """
import json, urllib.request
from server import PromptServer
torch.distorch_test_looks = []
def _look_and_post(*_):
    looks = torch.distorch_test_looks
    if not looks:
        body = json.dumps({"unload_models": True, "free_memory": True}).encode()
        kind = {"Content-Type": "application/json"}
        url = "http://127.0.0.1:PORT/free"
        urllib.request.urlopen(urllib.request.Request(url, body, kind), timeout=30).read()
    waiting = dict(PromptServer.instance.prompt_queue.flags)
    looks.append([torch.sim.memory_allocated(i) for i in range(2)] + [waiting.get("unload_models")])
torch.distorch_test_hook = _look_and_post
"""


@pytest.mark.parametrize("keep", [False, True])
def test_a_free_in_the_middle_of_a_run_takes_effect_after_it(
    comfy: ComfyServer, keep: bool
) -> None:
    def one(loader: str, code: str, **inputs: object) -> Workflow:
        w = Workflow()
        model = w.add(loader, unet_name="wan.safetensors", weight_dtype="default", **inputs)
        model = w.add("DistorchTestRun", value=model, code=code)
        latent = w.sample(model, w.conditioning(8, 4096), w.latent(1, 16, 1, 8, 8), steps=4)
        return w.save(latent, "out")

    expected = comfy.run(one("UNETLoader", "")).values["out"]
    comfy.free()
    comfy.evaluate(POST_FREE.replace("PORT", str(comfy.port)))
    arm = (
        "value.model.diffusion_model.blocks[1].register_forward_pre_hook(torch.distorch_test_hook)"
    )
    placed = {"compute_device": "sim:0", "expert_mode_allocations": STRING, "keep_loaded": keep}
    result = comfy.run(one("UNETLoaderDisTorch2MultiGPU", arm, **placed)).values["out"]
    assert torch.equal(result, expected)
    looks = comfy.evaluate("result = torch.distorch_test_looks")
    assert len(looks) == 4, "once a step"
    assert all(waiting for *_, waiting in looks), "the flags wait for the end of the run"
    donor = looks[0][1]
    assert donor > 2**20
    assert all(row[0] > 2**20 and row[1] == donor for row in looks)
    if keep:
        after = look(comfy)
        assert after["kept"] == 1
        assert after["bytes"][1] == donor
    else:
        after = settled(comfy, [0, 0], listed=0)
        assert after["bytes"] == [0, 0]
        assert after["listed"] == []
    assert after["violations"] == 0


def test_without_smart_memory_the_core_unloads_all_and_what_is_kept_runs_again(
    start: Start,
) -> None:
    comfy = start(arguments=["--disable-smart-memory"])
    assert comfy.evaluate("import comfy.model_management as mm\nresult = mm.DISABLE_SMART_MEMORY")
    w = Workflow()
    model = w.add("UNETLoader", unet_name="wan.safetensors", weight_dtype="default")
    for seed in range(3):
        latent = w.sample(model, w.conditioning(8, 4096), w.latent(1, 16, 1, 8, 8), seed=seed)
        w.save(latent, f"expected{seed}")
    expected = comfy.run(w).values
    count_reads(comfy)
    for seed in range(3):
        reset_counters(comfy)
        result = comfy.run(workflow("wan.safetensors", keep=True, seed=seed))
        assert torch.equal(result.values["out"], expected[f"expected{seed}"])
        assert state(comfy).copied["cpu>sim:1"] > 2**20, "it was placed for this run"
        after = settled(comfy, [0, 0], listed=0)
        assert after["bytes"] == [0, 0]
        assert after["listed"] == []
        assert after["kept"] == 1
        assert after["violations"] == 0
    assert [path.rpartition("/")[2] for path in reads(comfy)] == ["wan.safetensors"]
