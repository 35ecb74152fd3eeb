# SPDX-License-Identifier: Apache-2.0
"""Merging nodes on placed models, parameters beside submodules among what they change."""

from __future__ import annotations

import pytest
from comfy_harness import ComfyServer, Workflow, wan_model

pytestmark = pytest.mark.comfy

SHARE = 0.25  # of the first model

#: What the merged model computes with, against the files: the largest difference from the mixture, and from the first.
COMPARE = """
import comfy.model_management as mm, folder_paths
from safetensors.torch import load_file
_files = [load_file(folder_paths.get_full_path("diffusion_models", f)) for f in ("wan.safetensors", "wan_second.safetensors")]
_own = dict(mm.current_loaded_models[0].model.model.diffusion_model.named_parameters())
result = {}
for _kind in ("modulation", "ffn.0.weight"):
    _key = f"blocks.1.{_kind}"
    _first, _second = (f[_key].float() for f in _files)
    _mixture = SHARE * _first + (1 - SHARE) * _second
    _found = _own[_key].detach().float().cpu()
    result[_kind] = [float((_found - w).abs().max()) for w in (_mixture, _first)]
del _own, _files
"""


def merged(expert: str | None) -> Workflow:
    w = Workflow()
    model = wan_model(w, expert)
    second = w.add("UNETLoader", unet_name="wan_second.safetensors", weight_dtype="default")
    model = w.add("ModelMergeSimple", model1=model, model2=second, ratio=SHARE)
    return w.save(w.sample(model, w.conditioning(8, 4096), w.latent(1, 16, 1, 8, 8)), "merged")


@pytest.mark.parametrize("expert", ["sim:0,*", "sim:0,25%;sim:1,*", "sim:0,25%;cpu,*"])
def test_a_merge_changes_parameters_beside_submodules_too(comfy: ComfyServer, expert: str) -> None:
    """ComfyUI passes them over where it loads a model without DynamicVRAM: its list holds modules without children."""
    assert comfy.run(merged(expert)).values["merged"].isfinite().all()
    for kind, (mixture, first) in comfy.evaluate(f"SHARE = {SHARE}\n{COMPARE}").items():
        assert mixture < 1e-6 < 1e-3 < first, kind
    if comfy.version.dynamic:
        return
    comfy.free(let_go=True)
    comfy.run(merged(None))
    found = comfy.evaluate(f"SHARE = {SHARE}\n{COMPARE}")
    assert found["ffn.0.weight"][0] < 1e-6
    assert found["modulation"][1] == 0, "as the page on ComfyUI says"
