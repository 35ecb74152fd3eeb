# SPDX-License-Identifier: Apache-2.0
"""Transfers on simulated devices: equal results, and exactly the bytes that must move over each link."""

from __future__ import annotations

import gc
import types

import distorch_sim
import pytest
import torch

from distorch import transfer
from distorch._load import core

MIB = 2**20


@pytest.fixture(autouse=True)
def _sim() -> None:
    gc.collect()
    distorch_sim.install([16 * MIB] * 4)


def block(device: str, size: int = 1000, seed: int = 1) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(device)


@pytest.mark.parametrize("pair", [("cpu", "sim:0"), ("sim:0", "cpu"), ("sim:0", "sim:3")])
def test_a_copy_moves_its_bytes_once(pair: tuple[str, str]) -> None:
    source = block(pair[0])
    target = torch.empty_like(source, device=pair[1])
    distorch_sim.reset_counters()
    assert transfer.copy(target, source) == "torch"
    assert distorch_sim.transfers() == {pair: source.nbytes}
    assert torch.equal(target.cpu(), source.cpu())


def test_a_copy_refuses_other_shapes_and_types() -> None:
    with pytest.raises(ValueError, match=r"not \(3,\) torch.float32 and \(4,\) torch.float32"):
        transfer.copy(torch.empty(4), torch.empty(3))
    with pytest.raises(ValueError, match=r"torch\.float16"):
        transfer.copy(torch.empty(3), torch.empty(3, dtype=torch.float16))


def test_a_failed_copy_says_what_failed() -> None:
    source = block("sim:0")
    target = torch.empty_like(source, device="sim:1")
    with distorch_sim.faults(copy=1), pytest.raises(RuntimeError, match="injected"):
        transfer.copy(target, source)


def test_strided_tensors_arrive_whole() -> None:
    source = block("sim:0", 12).view(3, 4).t()
    target = torch.empty(4, 3, device="sim:1")
    transfer.copy(target, source)
    assert torch.equal(target.cpu(), source.cpu())


class Stub:
    """What the CUDA half of the module asks of a tensor, without a GPU."""

    def __init__(self, device: str, address: int, nbytes: int, pinned: bool = False) -> None:
        self.device = torch.device(device)
        self.shape, self.dtype, self.nbytes = torch.Size([nbytes]), torch.uint8, nbytes
        self._address, self._pinned = address, pinned

    def data_ptr(self) -> int:
        return self._address

    def is_contiguous(self) -> bool:
        return True

    def is_pinned(self) -> bool:
        return self._pinned


class Streams:
    """Current streams of CUDA devices that write down who waits for whom."""

    def __init__(self, log: list[object]) -> None:
        self.log = log

    def current_stream(self, device: torch.device) -> types.SimpleNamespace:
        name = str(device)
        return types.SimpleNamespace(
            cuda_stream=1000 + (device.index or 0),
            name=name,
            wait_stream=lambda other: self.log.append(f"{name} waits for {other.name}"),
        )


class Router:
    def __init__(self, log: list[object]) -> None:
        self.log = log

    def copy(self, *arguments: int) -> str:
        self.log.append(arguments)
        return "staged" if arguments[3] < 0 else "peer"


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    written: list[object] = []
    monkeypatch.setattr(transfer, "_router", lambda: Router(written))
    monkeypatch.setattr(torch.cuda, "current_stream", Streams(written).current_stream)
    return written


def test_a_cuda_pair_is_ordered_on_both_streams(log: list[object]) -> None:
    assert transfer.copy(Stub("cuda:1", 8, 64), Stub("cuda:0", 4, 64)) == "peer"
    assert log == [
        "cuda:1 waits for cuda:0",
        (8, 1, 4, 0, 64, 1, 1001),
        "cuda:0 waits for cuda:1",
    ]


def test_large_pageable_tensors_are_routed_and_need_no_second_stream(log: list[object]) -> None:
    size = transfer.PAGEABLE_THRESHOLD
    assert transfer.copy(Stub("cuda:1", 8, size), Stub("cpu", 4, size)) == "staged"
    assert log == [(8, 1, 4, -1, size, 1, 1001)]


@pytest.mark.parametrize(
    ("target", "source"),
    [
        (Stub("cuda:1", 8, 64), Stub("cpu", 4, 64)),
        (Stub("cuda:1", 8, 1 << 30), Stub("cpu", 4, 1 << 30, pinned=True)),
        (Stub("cuda:1", 8, 64), Stub("cuda:1", 4, 64)),
        (Stub("xpu:0", 8, 64), Stub("cuda:1", 4, 64)),
    ],
)
def test_everything_else_is_left_to_torch(target: Stub, source: Stub) -> None:
    assert not transfer._is_routed(target, source)


def test_the_router_says_why_there_is_none() -> None:
    with pytest.raises(RuntimeError, match=r"libcuda\.so\.1 was not found: no NVIDIA driver"):
        core().TransferRouter(driver="/nowhere/libcuda.so.1")
