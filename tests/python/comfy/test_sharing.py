# SPDX-License-Identifier: Apache-2.0
"""Two models that share a device settle: from the third repetition on no more is moved than what is streamed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from comfy_harness import ComfyServer, Start, Workflow, reset_counters, state

pytestmark = pytest.mark.comfy

MIB, GIB = 2**20, 2**30
ROOM = 20 * MIB  # of which two models of 16 MB want to have their part
FOR_COMFYUI = int(0.8 * GIB) + 400 * MIB  # what it keeps free before it loads anything
STEPS = 2
INPUTS = MIB  # latents and prompts, which come and go as well
PLACED, CORES = True, False


def two_models(first: bool, second: bool, seed: int = 7) -> Workflow:
    """One samples, then the other, each placed or by the core's loader."""
    w = Workflow()
    prompt, latent = w.conditioning(8, 4096), w.latent(1, 16, 1, 8, 8)
    models = [("wan.safetensors", first), ("wan_second.safetensors", second)]
    for number, (file, placed) in enumerate(models):
        settings: dict[str, Any] = {"unet_name": file, "weight_dtype": "default"}
        if placed:
            settings.update(compute_device="sim:0", expert_mode_allocations="sim:0,*")
            settings.update(eject_models=False)
        model = w.add("UNETLoaderDisTorch2MultiGPU" if placed else "UNETLoader", **settings)
        latent = w.sample(model, prompt, latent, seed=seed + number, steps=STEPS)
    return w.save(latent, "wan")


def moved(comfy: ComfyServer) -> int:
    copied = state(comfy).copied
    return copied["cpu>sim:0"] + copied["sim:0>cpu"]


def shares(comfy: ComfyServer) -> list[tuple[int, int]]:
    """Of each placed model: bytes on the device, and bytes that come at each step, in groups or layer by layer."""
    return [(p["bytes"].get("sim:0", 0), p["spilled"]) for p in state(comfy).placements]


@pytest.fixture
def narrow(start: Start) -> ComfyServer:
    comfy = start(FOR_COMFYUI + ROOM, 8 * GIB)
    if comfy.version.number < (0, 8):
        pytest.skip("that old, it allows 128 MB, whatever is free")
    return comfy


def test_two_placed_models_settle(narrow: ComfyServer) -> None:
    expected = {seed: narrow.run(two_models(CORES, CORES, seed)).values["wan"] for seed in (7, 9)}
    narrow.free(let_go=True)
    for seed in (5, 7):
        result = narrow.run(two_models(PLACED, PLACED, seed)).values["wan"]
    assert torch.equal(result, expected[7])
    before = shares(narrow)
    reset_counters(narrow)
    assert torch.equal(narrow.run(two_models(PLACED, PLACED, 9)).values["wan"], expected[9])
    assert moved(narrow) <= STEPS * sum(streamed for _, streamed in before) + INPUTS
    assert shares(narrow) == before


@pytest.mark.parametrize("placed", [(PLACED, CORES), (CORES, PLACED)], ids=["first", "second"])
def test_a_placed_model_and_a_dynamic_one_settle(
    narrow: ComfyServer, placed: tuple[bool, bool]
) -> None:
    if not narrow.version.dynamic:
        pytest.skip("DynamicVRAM is off")
    expected = narrow.run(two_models(CORES, CORES, 9)).values["wan"]
    narrow.free(let_go=True)
    for seed in (5, 7):
        narrow.run(two_models(*placed, seed))
    ((here, streamed),) = shares(narrow)
    reset_counters(narrow)
    assert torch.equal(narrow.run(two_models(*placed, 9)).values["wan"], expected)
    assert shares(narrow) == [(here, streamed)]
    pages = 17 * MIB  # at most once: what was in memory that the placed one computes in
    assert moved(narrow) <= STEPS * streamed + INPUTS + pages
    assert placed[0] or streamed == 0, "the one that came last has all of it"
