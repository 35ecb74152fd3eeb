# SPDX-License-Identifier: Apache-2.0
"""What is asked of a CUDA device besides its entry points, on simulated ones."""

from __future__ import annotations

import distorch_sim
import pytest
import torch

from distorch.run.cuda import CudaDevice, cuda_device

pytestmark = pytest.mark.usefixtures("sim")


@pytest.fixture(autouse=True)
def _torch_has_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that is built without CUDA."""
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda index: index, raising=False)


def test_torch_copies_once_each_way_before_we_copy_from_a_donor() -> None:
    """`cudaDeviceEnablePeerAccess` does not open pools and expandable segments of torch's allocator; its copies do."""
    device = CudaDevice(router=None, index=0)
    distorch_sim.reset_counters()
    for _ in range(2):
        device.open_to(torch.device("sim:1"))
    assert distorch_sim.copied("sim:1", "sim:0") == distorch_sim.copied("sim:0", "sim:1") == 4
    device.open_to(torch.device("sim:2"))
    assert distorch_sim.copied("sim:2", "sim:0") == 4


def test_only_cuda_has_them() -> None:
    assert cuda_device(torch.device("sim:0")) is None
    assert cuda_device(torch.device("cpu")) is None
    device = CudaDevice(router=None, index=0)
    assert [device.number(torch.device(name)) for name in ("cpu", "cuda:2", "cuda")] == [-1, 2, 0]
