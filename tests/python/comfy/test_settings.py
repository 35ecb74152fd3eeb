# SPDX-License-Identifier: Apache-2.0
"""The settings page: what ComfyUI's front end stores is what the server does."""

from __future__ import annotations

import json
import pathlib
import time
import urllib.request
from typing import Any

import pytest
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


def run_wan(comfy: ComfyServer) -> dict[str, int]:
    w = Workflow()
    model = w.add(
        "UNETLoaderDisTorch2MultiGPU",
        unet_name="wan.safetensors",
        weight_dtype="default",
        compute_device="sim:0",
        expert_mode_allocations="sim:1,6mb;cpu,*",
    )
    w.save(w.sample(model, w.conditioning(8, 4096), w.latent(1, 16, 1, 8, 8)), "wan")
    comfy.run(w)
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
            "_cleanup = next(m for n, m in sys.modules.items() if n.endswith('patches.cleanup'))\n"
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
