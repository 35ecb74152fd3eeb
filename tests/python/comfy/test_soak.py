# SPDX-License-Identifier: Apache-2.0
"""tools/soak.py on a real server, some cycles of it: how many are told by DISTORCH_SOAK_CYCLES."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest
from comfy_harness import ComfyServer, Workflow

pytestmark = [pytest.mark.comfy, pytest.mark.timeout(3600)]

TOOL = pathlib.Path(__file__).resolve().parents[3] / "tools/soak.py"
CYCLES = int(os.environ.get("DISTORCH_SOAK_CYCLES", "6"))


def workflow(compute: str, spec: str) -> dict:
    w = Workflow()
    model = w.add(
        "UNETLoaderDisTorch2MultiGPU",
        unet_name="wan.safetensors",
        weight_dtype="default",
        compute_device=compute,
        expert_mode_allocations=spec,
        eject_models=True,
        keep_loaded=False,
    )
    latent = w.sample(model, w.conditioning(8, 4096), w.latent(1, 16, 1, 8, 8), seed=7)
    return w.save(latent, "out")


def test_nothing_grows(comfy: ComfyServer, tmp_path: pathlib.Path) -> None:
    for name, compute, spec in (
        ("first", "sim:0", "sim:0,5mb;sim:1,5mb;cpu,*"),
        ("second", "sim:1", "sim:1,4mb;sim:0,6mb;cpu,*"),
    ):
        (tmp_path / f"{name}.json").write_text(json.dumps(workflow(compute, spec)))
    workflows = [str(tmp_path / f"{name}.json") for name in ("first", "second")]
    server = ["--url", f"http://127.0.0.1:{comfy.port}"]
    cycles = ["--cycles", str(CYCLES), "--warm", str(max(1, CYCLES // 5)), "--every", "5"]
    ended = subprocess.run(
        [sys.executable, str(TOOL), *workflows, *server, *cycles, "--interrupt-every", "3"],
        capture_output=True,
        text=True,
        timeout=3500,
    )
    print(ended.stdout)
    last = ended.stdout.splitlines()[-1]
    if CYCLES >= 50:  # fewer are all warm-up: memory of the process grows with what is met first
        assert ended.returncode == 0, ended.stdout + ended.stderr
    assert last.startswith(f"{CYCLES} cycles ("), ended.stdout + ended.stderr
    assert " more are held" not in ended.stdout
