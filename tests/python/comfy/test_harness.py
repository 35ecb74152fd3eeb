# SPDX-License-Identifier: Apache-2.0
"""The harness itself: core nodes only, so a failure here is not the pack's."""

from __future__ import annotations

import pytest
import torch
from comfy_harness import ComfyError, ComfyServer, Workflow

pytestmark = pytest.mark.comfy

LOADED = """
import comfy.model_management as mm
result = [type(m.model).__name__ for m in mm.current_loaded_models]
"""


def wan(loader: str = "UNETLoader", **inputs: object) -> Workflow:
    w = Workflow()
    inputs.setdefault("weight_dtype", "default")
    model = w.add(loader, unet_name="wan.safetensors", **inputs)
    return w.save(w.sample(model, w.conditioning(8, 4096), w.latent(1, 16, 1, 8, 8)), "wan")


def test_core_samples_on_a_simulated_device(comfy: ComfyServer) -> None:
    first = comfy.run(wan()).values["wan"]
    assert first.shape == (1, 16, 1, 8, 8)
    assert float(first.std()) == pytest.approx(3.4536, abs=1e-3)  # on every version, on and off
    kind = "ModelPatcherDynamic" if comfy.version.dynamic else "ModelPatcher"
    assert comfy.evaluate(LOADED)[0] == kind


def test_free_empties_the_core(comfy: ComfyServer) -> None:
    comfy.run(wan())
    comfy.free()
    assert comfy.evaluate(LOADED) == []


def test_a_refused_workflow_says_why(comfy: ComfyServer) -> None:
    w = Workflow()
    w.save(w.add("UNETLoader", unet_name="missing.safetensors", weight_dtype="default"))
    with pytest.raises(ComfyError, match=r"missing\.safetensors"):
        comfy.run(w)


def test_values_come_back_bit_for_bit(comfy: ComfyServer) -> None:
    w = Workflow()
    w.save(w.conditioning(3, 5, pooled=2, seed=11), "conditioning")
    embedding, pooled = comfy.run(w).values["conditioning"]
    expected = torch.randn([1, 3, 5], generator=torch.Generator().manual_seed(11))
    assert torch.equal(embedding, expected)
    assert pooled.shape == (1, 2)
