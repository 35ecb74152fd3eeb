# SPDX-License-Identifier: Apache-2.0
"""The settings page: what ComfyUI's front end stores is what the server does."""

from __future__ import annotations

import json
import pathlib
import time
import urllib.request
from typing import Any

import pytest
import torch
from comfy_harness import ComfyServer, Workflow, state, versions

pytestmark = pytest.mark.comfy

NOW = """
import logging, sys
_settings = next(m for n, m in sys.modules.items() if n.endswith("patches.settings"))
result = {**_settings.settings.values(), "level": logging.getLogger("DisTorch").getEffectiveLevel()}
"""


def choose(comfy: ComfyServer, **choices: Any) -> dict[str, Any]:
    """Store choices as the front end does, and wait until the server has seen them."""
    for name, value in choices.items():
        comfy.request(f"/settings/DisTorch.{name}", value)
    for _ in range(100):
        now = comfy.evaluate(NOW)
        if all(now[name] == value for name, value in choices.items()):
            return dict(now)
        time.sleep(0.1)
    raise AssertionError(f"the server does not see {choices}: {now}")


@pytest.fixture
def chosen(comfy: ComfyServer):
    """Choices for one test."""
    yield lambda **choices: choose(comfy, **choices)
    choose(comfy, reserve_gb=0, strict=False, log_level="INFO", debug_mode=False)
    choose(comfy, kept_memory_threshold=92, kept_under_pressure=True)


PLACED = {"compute_device": "sim:0", "expert_mode_allocations": "sim:1,6mb;cpu,*"}


def run_file(comfy: ComfyServer, file: str, loader: str, **inputs: Any) -> torch.Tensor:
    w = Workflow()
    model = w.add(loader, unet_name=file, weight_dtype="default", **inputs)
    w.save(w.sample(model, w.conditioning(8, 4096), w.latent(1, 16, 1, 8, 8)), "wan")
    return comfy.run(w).values["wan"]


def run_placed(comfy: ComfyServer, file: str) -> torch.Tensor:
    return run_file(comfy, file, "UNETLoaderDisTorch2MultiGPU", **PLACED)


def run_wan(comfy: ComfyServer) -> dict[str, int]:
    run_placed(comfy, "wan.safetensors")
    return dict(state(comfy).placed("WAN21")["bytes"])


def test_a_reserve_is_left_free(comfy: ComfyServer, chosen: Any) -> None:
    assert run_wan(comfy)["sim:1"] > 4 * 2**20
    comfy.free()
    chosen(reserve_gb=8 - 3 / 1024)  # of 8 GB: a cap of 3 MB
    assert 0 < run_wan(comfy)["sim:1"] <= 3 * 2**20


def test_the_log_is_as_loud_as_chosen(comfy: ComfyServer, chosen: Any) -> None:
    assert chosen(log_level="ERROR")["level"] == 40
    before = comfy.log().count("WAN21: ")
    run_wan(comfy)
    assert comfy.log().count("WAN21: ") == before
    comfy.free()
    assert chosen(log_level="DEBUG", debug_mode=True)["level"] == 10
    run_wan(comfy)
    assert comfy.log().count("WAN21: ") > before
    assert "wan.safetensors: tag=loaded by UNETLoaderDisTorch2MultiGPU|cpu=" in comfy.log()


def test_choices_hold_after_a_restart_without_a_page(
    comfy_models: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "models").symlink_to(comfy_models)
    folder = tmp_path / "user" / "default"
    folder.mkdir(parents=True)
    choices = {"DisTorch.cpu_memory_threshold": 77, "DisTorch.scan_interval": 2.5}
    (folder / "comfy.settings.json").write_text(json.dumps(choices))
    found = versions(dynamic=False)
    if not found:
        pytest.skip("COMFYUI_PATH is not set")
    server = ComfyServer(found[0], tmp_path)
    try:
        now = server.evaluate(NOW)
        assert (now["cpu_memory_threshold"], now["scan_interval"]) == (77, 2.5)
        assert server.evaluate(
            "_cleanup = next(m for n, m in sys.modules.items() if n.endswith('patches.ejecting.cleanup'))\n"
            "result = _cleanup.cpu_threshold"
        ) == pytest.approx(0.77)
    finally:
        server.stop()


def as_user(server: ComfyServer, user: str, path: str, body: object) -> Any:
    """POST as the front end of one of several users does it."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{server.port}{path}",
        json.dumps(body).encode(),
        {"Content-Type": "application/json", "comfy-user": user},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        text = answer.read()
    return json.loads(text) if text else None


def test_with_several_users_the_choice_made_last_counts(tmp_path: pathlib.Path) -> None:
    found = versions(dynamic=False)
    if not found:
        pytest.skip("COMFYUI_PATH is not set")
    server = ComfyServer(found[0], tmp_path, arguments=["--multi-user"])
    try:
        ann, bob = (as_user(server, "", "/users", {"username": name}) for name in ("ann", "bob"))
        for user, gigabytes in ((ann, 2), (bob, 3), (ann, 4)):
            as_user(server, user, "/settings/DisTorch.reserve_gb", gigabytes)
            for _ in range(100):
                if server.evaluate(NOW)["reserve_gb"] == gigabytes:
                    break
                time.sleep(0.1)
            assert server.evaluate(NOW)["reserve_gb"] == gigabytes
        as_user(server, bob, "/settings/Comfy.ColorPalette", "light")
        server.evaluate("_settings.settings.look()")
        assert server.evaluate(NOW)["reserve_gb"] == 4
    finally:
        server.stop()


# The host has `FREE` of its memory available as long as more than one model is kept, then plenty.
FULL_HOST = """
import sys
from distorch import hostmemory
_keep = next(m for n, m in sys.modules.items() if n.endswith("patches.ejecting.keep"))
torch.distorch_test_available = hostmemory.available_bytes
hostmemory.available_bytes = lambda: int(
    hostmemory.total_bytes() * (FREE if len(_keep.kept()) > 1 else 0.9))
"""
REAL_HOST = """
from distorch import hostmemory
hostmemory.available_bytes = torch.distorch_test_available
"""
KEPT = "result = [entry.request.file for entry in _keep.kept()]"


@pytest.mark.parametrize(
    ("choices", "kept"),
    [
        ({}, ["wan_second.safetensors", "wan_scaled_fp8.safetensors"]),
        ({"kept_memory_threshold": 96}, None),
        ({"kept_under_pressure": False}, None),
    ],
)
def test_a_full_host_lets_go_of_the_kept_model_that_waited_longest(
    comfy: ComfyServer, chosen: Any, choices: dict[str, Any], kept: list[str] | None
) -> None:
    files = ["wan.safetensors", "wan_second.safetensors", "wan_scaled_fp8.safetensors"]
    expected = run_file(comfy, files[2], "UNETLoader")
    run_placed(comfy, files[0])
    run_placed(comfy, files[1])
    chosen(**choices)
    before = comfy.log().count("is no longer kept")
    comfy.evaluate(FULL_HOST.replace("FREE", "0.06"))
    try:
        assert comfy.evaluate(KEPT) == files[:2]
        result = run_placed(comfy, files[2])
    finally:
        comfy.evaluate(REAL_HOST)
    assert (result - expected).abs().max() <= 1e-5
    assert comfy.evaluate(KEPT) == (kept or files)
    told = "memory is more than 92 % full: WAN21 (wan.safetensors) is no longer kept"
    assert comfy.log().count("is no longer kept") == before + (kept is not None)
    assert (told in comfy.log().rpartition("got prompt")[2]) is (kept is not None)
    comfy.free(let_go=False)
    there = [row for row in state(comfy).loaded if row[1] == "WAN21"]
    assert len(there) == 1, "each newcomer had the kept ones leave its device"
    assert comfy.evaluate(KEPT) == (kept or files)
