# SPDX-License-Identifier: Apache-2.0
"""What a load and its first steps write to the log of real ComfyUI: at most twelve lines at INFO, each once."""

from __future__ import annotations

import pytest
from comfy_harness import ComfyServer, Workflow

pytestmark = pytest.mark.comfy

LISTEN = """
import logging
class _Kept(logging.Handler):
    def emit(self, record):
        _records.append([record.levelname, record.getMessage()])
_records, _kept = [], _Kept()
for _name in ("DisTorch", "distorch"):
    logging.getLogger(_name).addHandler(_kept)
    logging.getLogger(_name).setLevel(logging.DEBUG)
"""
HEARD = """
for _name in ("DisTorch", "distorch"):
    logging.getLogger(_name).removeHandler(_kept)
    logging.getLogger(_name).setLevel(logging.INFO)
result = _records
"""


def test_a_load_says_little_at_info_and_the_tables_at_debug(comfy: ComfyServer) -> None:
    comfy.free()
    w = Workflow()
    ours = w.add(
        "UNETLoaderDisTorch2MultiGPU", unet_name="wan.safetensors", weight_dtype="default",
        compute_device="sim:0", virtual_vram_gb=0.0, donor_device="cpu",
        expert_mode_allocations="sim:0,1%;sim:1,1%;cpu,1%", eject_models=False,
    )  # fmt: skip
    w.save(w.sample(ours, w.conditioning(8, 4096), w.latent(1, 16, 1, 8, 8), steps=4), "wan")
    comfy.evaluate(LISTEN)
    comfy.run(w)
    records = comfy.evaluate(HEARD)
    comfy.free()
    lines = [line for level, text in records if level == "INFO" for line in text.splitlines()]
    assert 0 < len(lines) <= 12, lines
    assert len(set(lines)) == len(lines), lines
    warned = [text for level, text in records if level == "WARNING"]
    assert any("taken as ratios" in text for text in warned), warned
    told = "\n".join(text for level, text in records if level == "DEBUG")
    for words in (
        *("Final Device/Layer Assignments", "top-level parents", "Grouped into", "sim:0: "),
        "Captured model: diffusion_models/wan.safetensors",
    ):
        assert words in told, words
