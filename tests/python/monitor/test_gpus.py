# SPDX-License-Identifier: Apache-2.0
"""Which GPU is `cuda:0`: NVML and nvidia-smi matched with CUDA by UUID."""

from __future__ import annotations

import stat
import textwrap
import time
import uuid

import pytest

from distorch.tools.monitor import gpus
from distorch.tools.monitor.answers import AnswerError
from distorch.tools.monitor.gpus import Gpu

MB = 2**20
IDS = [f"GPU-{uuid.UUID(int=i + 1)}" for i in range(8)]
EIGHT = [Gpu(i, IDS[i], f"card {i}", 100, i, 100 - i) for i in range(8)]


def order(found) -> list[int]:
    return [d.used for d in found]


def no_driver() -> None:
    return None


def test_uuids_of_the_driver_decide() -> None:
    """CUDA counts the fastest first, and CUDA_VISIBLE_DEVICES has left two."""
    found = gpus.by_cuda_index(EIGHT, lambda: [IDS[5].upper().replace("GPU", "gpu"), IDS[2]])
    assert [(d.device, d.name) for d in found] == [("cuda:0", "card 5"), ("cuda:1", "card 2")]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, list(range(8))),
        ("3,1", [3, 1]),
        (f"{IDS[7]},0", [7, 0]),
        ("0,9,1", [0]),
    ],
)
def test_without_the_driver_the_environment_decides(monkeypatch, value, expected) -> None:
    if value is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert order(gpus.by_cuda_index(EIGHT, no_driver)) == expected


def test_what_the_driver_keeps_counts_as_used() -> None:
    """As in CUDA's and NVML's figures; nvidia-smi tells of it apart."""
    (found,) = gpus.by_cuda_index([Gpu(0, IDS[0], "card", 100, 10, 85)], lambda: [IDS[0]])
    assert (found.used, found.free, found.total) == (15, 85, 100)


def test_no_visible_device_is_an_error(monkeypatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(AnswerError, match="CUDA_VISIBLE_DEVICES leaves no device"):
        gpus.by_cuda_index(EIGHT, lambda: [])


def test_uuids_that_nvml_does_not_know_are_not_used(monkeypatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert order(gpus.by_cuda_index(EIGHT, lambda: ["GPU-elsewhere"])) == [1]


def test_a_gpu_that_tells_no_memory_hides_no_other(monkeypatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    lost = Gpu(1, "", "", None, None, None)
    found = gpus.by_cuda_index([EIGHT[0], lost, EIGHT[2]], no_driver)
    assert [(d.device, d.name) for d in found] == [("cuda:0", "card 0"), ("cuda:2", "card 2")]
    with pytest.raises(AnswerError, match="the driver tells the memory of no device"):
        gpus.by_cuda_index([lost], no_driver)


def test_a_slice_of_a_gpu_is_a_device_of_its_own(monkeypatch) -> None:
    cut = Gpu(1, IDS[1], "card 1", 100, 1, 99, cut=True)
    piece = Gpu(1, f"MIG-{uuid.UUID(int=77)}", "slice", 20, 7, 13, slice=0)
    found = gpus.by_cuda_index([EIGHT[0], cut, piece], lambda: [str(uuid.UUID(int=77))])
    assert [(d.device, d.name, d.total) for d in found] == [("cuda:0", "slice", 20)]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", f"0,{piece.uuid}")
    found = gpus.by_cuda_index([EIGHT[0], cut, piece], no_driver)
    assert [d.name for d in found] == ["card 0", "slice"]


class Driver:
    """libcuda with two devices."""

    def __init__(self, fails: str = "") -> None:
        self.fails = fails

    def cuInit(self, flags):  # noqa: N802
        return int(self.fails == "init")

    def cuDeviceGetCount(self, count):  # noqa: N802
        count._obj.value = 2
        return int(self.fails == "count")

    def cuDeviceGet(self, device, index):  # noqa: N802
        device._obj.value = index + 40
        return int(self.fails == "get")

    def cuDeviceGetUuid_v2(self, raw, device):  # noqa: N802
        raw._obj[:] = uuid.UUID(IDS[device.value - 40][4:]).bytes
        return int(self.fails == "uuid")


def test_the_driver_tells_its_uuids_in_order() -> None:
    assert gpus.driver_uuids(Driver()) == [text.removeprefix("GPU-") for text in IDS[:2]]


@pytest.mark.parametrize("call", ["init", "count", "get", "uuid"])
def test_a_driver_that_fails_tells_nothing(call: str) -> None:
    assert gpus.driver_uuids(Driver(call)) is None


def test_nvml_says_why_there_is_no_device(monkeypatch) -> None:
    class Core:
        def nvml_devices(self):
            return [], "", "nvmlInit failed: NVML error 9"

    monkeypatch.setattr(gpus, "core", Core)
    with pytest.raises(AnswerError, match="NVML error 9"):
        gpus.nvml_gpus()


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    def install(body: str) -> None:
        program = tmp_path / "nvidia-smi"
        program.write_text("#!/bin/sh\n" + textwrap.dedent(body))
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    return install


def test_nvidia_smi_is_read(nvidia_smi) -> None:
    nvidia_smi(f"""\
        case "$1" in *uuid,name,memory.total,memory.used,memory.free) ;; *) exit 2;; esac
        echo '{IDS[0]}, NVIDIA A100, 80 GB, 81920, 1024, 80896'
        echo '{IDS[1]}, Thing, [N/A], [N/A], [N/A]'
        echo '{IDS[2]}, NVIDIA T4, 15360, 0, 15360'
        """)
    found = gpus.smi_gpus()
    assert found == [
        Gpu(0, IDS[0], "NVIDIA A100, 80 GB", 81920 * MB, 1024 * MB, 80896 * MB),
        Gpu(2, IDS[2], "NVIDIA T4", 15360 * MB, 0, 15360 * MB),
    ]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "echo 'NVIDIA-SMI has failed because it could not communicate'; exit 9",
            "could not communicate",
        ),
        ("echo 'rubbish'", "told the memory of no device"),
        ("exit 3", "nvidia-smi: 3"),
        ("exec sleep 30", "no answer within 0.3 s"),
    ],
)
def test_nvidia_smi_that_fails_says_why(nvidia_smi, body: str, message: str) -> None:
    nvidia_smi(body)
    start = time.monotonic()
    with pytest.raises(AnswerError, match=message):
        gpus.smi_gpus(timeout=0.3)
    assert time.monotonic() - start < 5


def test_without_nvidia_smi(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(AnswerError, match="nvidia-smi was not found"):
        gpus.smi_gpus()
