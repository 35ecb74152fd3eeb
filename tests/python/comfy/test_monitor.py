# SPDX-License-Identifier: Apache-2.0
"""`distorch monitor` beside real ComfyUI: the pack's history with its peaks, nodes and models; and without the pack."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from comfy_harness import ComfyServer, Workflow

from distorch.tools.monitor.http_json import JsonClient
from distorch.tools.monitor.sources import SystemStatsSource
from distorch.tools.stats import read_logs

pytestmark = pytest.mark.comfy

GB = 2**30
# 1 GB on a device for 50 ms, between two looks.
BURST = """
import time, torch
burst = torch.empty(2**30, dtype=torch.uint8, device="sim:1")
time.sleep(0.05)
del burst
result = torch.sim.memory_allocated(1)
"""


def wait_for(condition, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def unseen(log: Path) -> int:
    """MB of the peak of sim:1 that no look has met; the allocator's counter has them."""
    found = {d.device: d for d in read_logs([log]).devices}
    return found["sim:1"].peak - found["sim:1"].sampled_peak if "sim:1" in found else 0


def workflow() -> Workflow:
    w = Workflow()
    model = w.add("UNETLoader", unet_name="wan.safetensors", weight_dtype="default")
    w.save(w.sample(model, w.conditioning(8, 4096), w.latent(1, 16, 1, 8, 8)), "wan")
    return w


def test_a_run_with_its_burst_its_nodes_and_its_model(comfy: ComfyServer, tmp_path: Path) -> None:
    log = tmp_path / "vram-usage.jsonl"
    process = subprocess.Popen(
        [sys.executable, "-m", "distorch", "monitor", "--url", f"http://127.0.0.1:{comfy.port}",
         "--interval", "2s", "--jsonl", "--plot", "run.svg"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        wait_for(lambda: log.exists() and log.read_text().count("\n") > 3)
        comfy.run(workflow())
        left = comfy.evaluate(BURST)
        assert left < GB
        wait_for(lambda: '"status":"success"' in log.read_text() and unseen(log) >= 1000)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, err) == (0, ""), err
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    samples = [row for row in rows if "device" in row]
    assert {row["source"] for row in samples} == {"history"}
    found = read_logs([log])
    assert found.bad_lines == 0
    burst = next(d for d in found.devices if d.device == "sim:1")
    assert unseen(log) >= 1000
    assert f"Peak VRAM: {burst.peak} MB" in out
    kinds = {node.name for node in found.nodes}
    assert "UNETLoader" in kinds
    assert any("wan" in model.name for model in found.models), [m.name for m in found.models]
    assert [row["status"] for row in rows if "run" in row] == ["success"]
    assert "<svg" in (tmp_path / "run.svg").read_text()


def test_comfyuis_own_figures(comfy: ComfyServer) -> None:
    """/system_stats of this version, as it is without the pack."""
    client = JsonClient(f"http://127.0.0.1:{comfy.port}", timeout=20)
    reading = SystemStatsSource(client).read()
    first = reading.devices[0]
    assert first.device == "sim:0"
    assert first.total == 8 * GB
    assert first.used + first.free == first.total
    assert reading.queue is not None
    assert reading.queue.prompt is None
