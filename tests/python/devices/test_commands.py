# SPDX-License-Identifier: Apache-2.0
"""`distorch devices` and `distorch doctor`."""

from __future__ import annotations

import json
import re
import types

import distorch_sim
import pytest
import torch

from distorch.cli import doctor, main

MIB = 1 << 20


@pytest.fixture(autouse=True)
def _sim() -> None:
    distorch_sim.install([64 * MIB, 32 * MIB])


def test_devices_as_json(capsys) -> None:
    assert main(["devices", "--json"]) == 0
    rows = {row["device"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["sim:1"]["total"] == 32 * MIB
    assert rows["cpu"]["free"] > 0


def test_devices_as_a_table(capsys) -> None:
    assert main(["devices"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == [
        "device",
        "free",
        "GB",
        "total",
        "GB",
        "from",
        "cpu",
        "GB/s",
        "in",
        "use",
        "name",
    ]
    row = next(line for line in lines if line.startswith("sim:0"))
    assert row.split() == ["sim:0", "0.06", "0.06", "25.0", "yes", "Simulated", "accelerator", "0"]


def test_unknown_memory_is_a_question_mark(capsys, monkeypatch) -> None:
    module = types.ModuleType("torch.npu")
    module.device_count = lambda: 1
    module.is_initialized = lambda: False
    monkeypatch.setattr(torch, "npu", module, raising=False)
    main(["devices"])
    row = next(r for r in capsys.readouterr().out.splitlines() if r.startswith("npu:0"))
    assert row.split() == ["npu:0", "?", "?", "-", "no"]


def test_doctor_finds_nothing_broken_here(capsys, monkeypatch) -> None:
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    assert main(["doctor", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["torch"]["found"] == torch.__version__
    assert re.search(r"compiled by (gcc|clang) \d+", rows["distorch core"]["found"])
    assert "sim:1 (Simulated accelerator 1)" in rows["accelerators"]["found"]
    assert all(row["advice"] for row in rows.values() if row["status"] != "ok")


def test_doctor_reports_what_is_broken_and_fails(capsys, monkeypatch) -> None:
    def broken() -> None:
        raise ImportError("libabsl is gone\nmore")

    monkeypatch.setattr(doctor, "CHECKS", [("distorch core", broken, "build it")])
    assert main(["doctor"]) == 1
    assert capsys.readouterr().out == (
        "broken  distorch core  libabsl is gone\n                       -> build it\n"
    )


@pytest.mark.parametrize(
    ("problem", "status"),
    [
        ("", "ok"),
        ("libnvidia-ml.so.1 was not found: no NVIDIA driver on this machine", "absent"),
        (
            "nvmlInit failed: NVML error 18, the driver and its library are of different versions",
            "broken",
        ),
        ("nvmlInit failed: NVML error 4, no permission", "absent"),
        ("nvmlInit failed: NVML error 999", "broken"),
    ],
)
def test_doctor_on_the_driver(monkeypatch, problem: str, status: str) -> None:
    binary = types.SimpleNamespace(nvml_devices=lambda: ([], "580.1", problem))
    monkeypatch.setattr("distorch._load.core", lambda: binary)
    finding = doctor._driver()
    assert finding.status == status
    assert bool(finding.advice) == (status != "ok")


@pytest.mark.parametrize(
    ("error", "status", "advice"),
    [
        ("NVML error 15, the GPU is lost", "broken", "a GPU is lost, the others work"),
        ("NVML error 4, no permission", "absent", "give this user, or the container, access"),
        ("NVML error 3, not supported by this device", "ok", ""),
    ],
)
def test_doctor_on_one_gpu_that_does_not_answer(monkeypatch, error, status, advice) -> None:
    lost = types.SimpleNamespace(name="", index=1, problem=f"nvmlDeviceGetName failed: {error}")
    fine = types.SimpleNamespace(name="RTX 9000", index=0, problem="")
    binary = types.SimpleNamespace(nvml_devices=lambda: ([fine, lost], "580.1", ""))
    monkeypatch.setattr("distorch._load.core", lambda: binary)
    finding = doctor._driver()
    assert finding.found == f"580.1: RTX 9000, GPU 1 (nvmlDeviceGetName failed: {error})"
    assert finding.status == status
    assert finding.advice.startswith(advice)
    assert "reboot; in a container" not in finding.advice


def test_doctor_says_which_comfyui_folder_is_wrong(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    finding = doctor._comfyui()
    assert (finding.status, finding.found) == ("broken", f"no ComfyUI in {tmp_path}")
