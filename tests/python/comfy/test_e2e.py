# SPDX-License-Identifier: Apache-2.0
"""`distorch e2e`, as a process of its own, against real ComfyUI: a clean workflow, a leaking one, a cached one, errors."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import pytest
from comfy_harness import ComfyServer, Workflow, models, staged, versions

pytestmark = pytest.mark.comfy

HERE = pathlib.Path(__file__).parent
MB = 2**20
SCENES = 11


@pytest.fixture(scope="module", params=versions() or [None], ids=lambda v: v.name if v else "none")
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ComfyServer]:
    """A server of its own, with the leaking pack."""
    if request.param is None:
        pytest.skip("COMFYUI_PATH is not set")
    base = tmp_path_factory.mktemp("e2e-" + request.param.name)
    folder = base / "models/diffusion_models"
    models.write(folder / "wan.safetensors", models.wan_shapes())
    made = ComfyServer(request.param, base, packs=[HERE / "leak_pack"])
    yield made
    made.stop()


@dataclass
class Ended:
    status: int
    out: str
    err: str
    json: dict[str, Any]

    @property
    def drift(self) -> dict[str, dict[str, Any]]:
        return {d["device"]: d for d in self.json["drift"]}


def command(server: ComfyServer, workflow: Workflow, *arguments: str) -> list[str]:
    path = server.base / "scene.json"
    path.write_text(json.dumps(workflow))
    url = f"http://127.0.0.1:{server.port}"
    return [sys.executable, "-m", "distorch", "e2e", str(path), "--url", url, *arguments]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(staged())}


def e2e(server: ComfyServer, workflow: Workflow, *arguments: str) -> Ended:
    where = server.base / "result.json"
    where.unlink(missing_ok=True)
    ran = subprocess.run(
        [*command(server, workflow, "--interval", "0.2", "--json", str(where)), *arguments],
        env=environment(), capture_output=True, text=True, timeout=170, check=False,
    )  # fmt: skip
    found = json.loads(where.read_text()) if where.exists() else {}
    return Ended(ran.returncode, ran.stdout, ran.stderr, found)


def wait_until(condition: Callable[[], Any], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "not so within the time limit"
        time.sleep(0.1)


def wan(leak: float = 0.0, device: str = "sim:1", seed: int = 7, steps: int = 2) -> Workflow:
    """A Wan model over two devices and RAM; `leak` MB stay on `device` each time."""
    w = Workflow()
    model = w.add(
        "UNETLoaderDisTorch2MultiGPU",
        unet_name="wan.safetensors",
        weight_dtype="default",
        compute_device="sim:0",
        expert_mode_allocations="sim:0,6mb;sim:2,4mb;cpu,*",
        eject_models=False,
        keep_loaded=False,
    )
    sampled = w.sample(
        model, w.conditioning(8, 4096), w.latent(1, 16, 1, 8, 8), seed=seed, steps=steps
    )
    if leak:
        sampled = w.add("DistorchTestLeak", value=sampled, device=device, megabytes=leak)
    return w.save(sampled, "wan")


def test_a_clean_workflow_gives_its_memory_back(
    server: ComfyServer, tmp_path: pathlib.Path
) -> None:
    files = ("--junit", str(tmp_path / "run.xml"), "--plot", str(tmp_path / "run.svg"))
    ended = e2e(server, wan(), "--repeat", str(SCENES), "--clear-cache", *files)
    assert ended.status == 0, ended.out + ended.err
    assert [s["status"] for s in ended.json["scenes"]] == ["success"] * SCENES
    assert {s["cache"] for s in ended.json["scenes"]} == {"none"}
    assert {d: f["verdict"] for d, f in ended.drift.items()} == {
        "sim:0": "clean", "sim:1": "clean", "sim:2": "clean",
    }  # fmt: skip
    assert all(f["scenes"] == SCENES for f in ended.drift.values())
    scene = ended.json["scenes"][5]
    assert scene["peak"]["sim:0"] > scene["rest"]["sim:0"] + 4 * MB
    assert "UNETLoaderDisTorch2MultiGPU" in [n["kind"] for n in scene["ran"]]
    for name in ("run.xml", "run.svg"):
        ElementTree.parse(tmp_path / name)


def test_a_leak_is_found_and_its_device_named(server: ComfyServer) -> None:
    drawn = server.base / "leak.svg"
    ended = e2e(
        server, wan(leak=4.0), "--repeat", str(SCENES), "--clear-cache", "--plot", str(drawn)
    )
    assert "leak: +4.00 MB/scene" in drawn.read_text()
    (server.base / "leak.txt").write_text(ended.out)
    assert ended.status == 4, ended.out + ended.err
    assert {d: f["verdict"] for d, f in ended.drift.items()} == {
        "sim:0": "clean", "sim:1": "leak", "sim:2": "clean",
    }  # fmt: skip
    assert ended.drift["sim:1"]["slope"] == pytest.approx(4 * MB, rel=0.05)
    assert "sim:1: LEAK, +4.00 MB/scene" in ended.out


def test_a_cached_generation_is_said_to_measure_nothing(server: ComfyServer) -> None:
    w = wan(seed=3)
    del w[str(len(w))]  # DistorchTestSave runs each time
    w.add("SaveLatent", samples=[str(len(w)), 0], filename_prefix="e2e")
    ended = e2e(server, w, "--repeat", "2")
    assert ended.status == 6, ended.out + ended.err
    assert [s["cache"] for s in ended.json["scenes"]] == ["none", "all"]
    assert ended.json["scenes"][1]["figures_hold"] is False
    assert "everything came from ComfyUI's cache and no node ran" in ended.out


def test_errors_are_told_in_comfyui_words(server: ComfyServer) -> None:
    w = wan(seed=4)
    w["1"]["inputs"]["unet_name"] = "there_is_none.safetensors"
    ended = e2e(server, w)
    assert ended.status == 1
    (scene,) = ended.json["scenes"]
    assert (scene["status"], scene["error_node"]) == ("validation error", "1")
    assert "Value not in list: unet_name: 'there_is_none.safetensors' not in" in scene["message"]
    w = wan(seed=5)
    w.add("DistorchTestRun", value=["1", 0], code="raise ValueError('out of luck')")
    w.save([str(len(w)), 0], "never")
    ended = e2e(server, w)
    assert ended.status == 1
    (scene,) = ended.json["scenes"]
    assert scene["status"] == "execution error"
    assert (scene["message"], scene["error_type"]) == (
        "node 6 (DistorchTestRun): out of luck",
        "ValueError",
    )


def test_a_time_limit_interrupts_the_sampler(server: ComfyServer) -> None:
    ended = e2e(server, wan(seed=6, steps=5000), "--timeout", "3")
    assert ended.status == 3, ended.out + ended.err
    (scene,) = ended.json["scenes"]
    assert "not done within 3 s: node 4 (KSampler) was running" in scene["message"]
    assert server.get("/queue") == {"queue_running": [], "queue_pending": []}


def test_ctrl_c_interrupts_the_prompt_and_leaves_the_server_working(server: ComfyServer) -> None:
    w = wan(seed=8, steps=5000)
    with subprocess.Popen(
        command(server, w), env=environment(), stdout=subprocess.PIPE, text=True
    ) as process:
        wait_until(lambda: server.get("/queue")["queue_running"])
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
    wait_until(lambda: not server.get("/queue")["queue_running"])
    assert e2e(server, wan(seed=9)).status == 0


def test_a_server_that_dies_is_told_from_a_failure(server: ComfyServer) -> None:
    """The last test: it ends the server."""
    where = server.base / "dying.json"
    command_line = command(
        server, wan(seed=10, steps=5000), "--reconnect", "1s", "--json", str(where)
    )
    with subprocess.Popen(
        command_line, env=environment(), stdout=subprocess.PIPE, text=True
    ) as process:
        wait_until(lambda: server.get("/queue")["queue_running"])
        server.stop()
        assert process.wait(60) == 5
    (scene,) = json.loads(where.read_text())["scenes"]
    assert scene["status"] == "server lost"
    assert "no usable answer for 1 s" in scene["message"]
