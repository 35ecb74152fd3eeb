# SPDX-License-Identifier: Apache-2.0
"""`distorch monitor` over a driver that is a stand-in: NVML and CUDA are found and called as the real ones are."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fake_comfy import GB, FakeComfy, FakeDevice

from distorch.tools.stats import read_logs

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both libraries."""
    folder = tmp_path_factory.mktemp("driver")
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    assert compiler is not None, "a C compiler builds this package; it must be here"
    for name in ("libnvidia-ml.so.1", "libcuda.so.1"):
        command = [
            compiler,
            "-shared",
            "-fPIC",
            "-o",
            str(folder / name),
            str(HERE / "fake_driver.c"),
        ]
        subprocess.run(command, check=True)
    return folder


def monitor(
    driver: Path, folder: Path, *words: str, **environment: str
) -> subprocess.CompletedProcess:
    path = f"{driver}:{os.environ.get('LD_LIBRARY_PATH', '')}"
    kept = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"}
    return subprocess.run(
        [sys.executable, "-m", "distorch", "monitor", "--for", "300ms", "--interval", "100ms", "--quiet",
         "--csv", "--log", "x.csv", *words],
        cwd=folder, env={**kept, "LD_LIBRARY_PATH": path, **environment},
        capture_output=True, text=True, check=False, timeout=280,
    )  # fmt: skip


def used(folder: Path) -> dict[str, int]:
    """GB by device, as logged."""
    return {d.device: d.peak // 1024 for d in read_logs([folder / "x.csv"]).devices}


def test_eight_gpus(driver: Path, tmp_path: Path) -> None:
    done = monitor(driver, tmp_path, "--no-server")
    assert (done.returncode, done.stderr) == (0, "")
    assert used(tmp_path) == {f"cuda:{i}": i for i in range(8)}
    assert ",nvml\n" in (tmp_path / "x.csv").read_text()


def test_cudas_order_is_the_drivers(driver: Path, tmp_path: Path) -> None:
    """CUDA counts the fastest first and may see but a few; NVML counts all by their bus."""
    monitor(driver, tmp_path, "--no-server", FAKE_CUDA_ORDER="52", CUDA_VISIBLE_DEVICES="0,1")
    assert used(tmp_path) == {"cuda:0": 5, "cuda:1": 2}


def test_without_cudas_library_the_environment_decides(driver: Path, tmp_path: Path) -> None:
    only_nvml = tmp_path / "driver"
    only_nvml.mkdir()
    shutil.copy(driver / "libnvidia-ml.so.1", only_nvml)
    monitor(only_nvml, tmp_path, "--no-server", CUDA_VISIBLE_DEVICES="6,GPU-00000002")
    assert used(tmp_path) == {"cuda:0": 6, "cuda:1": 1}


def test_a_gpu_that_is_lost_hides_no_other(driver: Path, tmp_path: Path) -> None:
    done = monitor(driver, tmp_path, "--no-server", FAKE_LOST="2")
    assert done.returncode == 0, done.stderr
    assert used(tmp_path) == {f"cuda:{i}": i for i in range(8) if i != 2}


def test_a_slice_of_a_gpu_is_what_cuda_shows(driver: Path, tmp_path: Path) -> None:
    only_nvml = tmp_path / "driver"
    only_nvml.mkdir()
    shutil.copy(driver / "libnvidia-ml.so.1", only_nvml)
    monitor(only_nvml, tmp_path, "--no-server", FAKE_CUT="5", CUDA_VISIBLE_DEVICES="MIG-1,4")
    assert used(tmp_path) == {"cuda:0": 3, "cuda:1": 4}


def test_the_doctor_sees_what_is_lost(driver: Path) -> None:
    environment = {**os.environ, "LD_LIBRARY_PATH": str(driver), "FAKE_LOST": "2", "FAKE_CUT": "5"}
    done = subprocess.run(
        [sys.executable, "-m", "distorch", "doctor", "--json"],
        env=environment, capture_output=True, text=True, check=False, timeout=280,
    )  # fmt: skip
    (row,) = [r for r in json.loads(done.stdout) if r["name"] == "NVIDIA driver"]
    lost = "card 2 (nvmlDeviceGetMemoryInfo failed: NVML error 15, the GPU is lost)"
    assert row["status"] == "broken"
    assert lost in row["found"]
    assert "card 1, " in row["found"]
    assert row["advice"].startswith("a GPU is lost, the others work")
    assert done.returncode == 1


def test_nvml_that_fails_leaves_nvidia_smi(driver: Path, tmp_path: Path) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(
        "#!/bin/sh\necho 'GPU-00000004-0000-0000-0000-000000000000, card 3, 1000, 200, 800'\n"
    )
    program.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = monitor(
        driver, tmp_path, "--no-server", FAKE_NVML_ERROR="9", FAKE_CUDA_ORDER="53", PATH=path
    )
    assert done.returncode == 0, done.stderr
    (device,) = read_logs([tmp_path / "x.csv"]).devices
    assert (device.device, device.peak) == ("cuda:1", 200)
    assert ",nvidia-smi\n" in (tmp_path / "x.csv").read_text()


def test_the_driver_stands_in_for_a_server_that_is_down(driver: Path, tmp_path: Path) -> None:
    with FakeComfy([FakeDevice("cuda:0", used=9 * GB)]) as server:
        monitor(driver, tmp_path, "--url", server.url)
        assert used(tmp_path) == {"cuda:0": 9}
        server.stop()
        monitor(driver, tmp_path, "--url", server.url, FAKE_CUDA_ORDER="3")
    assert ",nvml\n" in (tmp_path / "x.csv").read_text()
    assert "cuda:0,3221225472," in (tmp_path / "x.csv").read_text()
