# SPDX-License-Identifier: Apache-2.0
"""Transfers on simulated devices: equal results, and exactly the bytes that must move over each link."""

from __future__ import annotations

import gc
import logging
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


def test_a_broadcast_uses_each_link_once() -> None:
    source = block("sim:1")
    distorch_sim.reset_counters()
    copies = transfer.broadcast(source, ["sim:0", "sim:1", "sim:2", "cpu", "sim:0"])
    assert distorch_sim.transfers() == {
        ("sim:1", other): source.nbytes for other in ("sim:0", "sim:2", "cpu")
    }
    assert [str(c.device) for c in copies] == ["sim:0", "sim:1", "sim:2", "cpu", "sim:0"]
    assert copies[1] is source
    assert copies[0] is copies[4]
    assert all(torch.equal(c.cpu(), source.cpu()) for c in copies)


def test_an_exchange_moves_each_tensor_once_to_each_other_device() -> None:
    tensors = [block(f"sim:{i}", size=100 * (i + 1), seed=i) for i in range(4)]
    distorch_sim.reset_counters()
    rows = transfer.exchange(tensors)
    assert distorch_sim.transfers() == {
        (f"sim:{i}", f"sim:{j}"): tensors[i].nbytes for i in range(4) for j in range(4) if i != j
    }
    for i, row in enumerate(rows):
        assert row[i] is tensors[i]
        for j, received in enumerate(row):
            assert received.device == tensors[i].device
            assert torch.equal(received.cpu(), tensors[j].cpu())


def test_an_exchange_needs_one_tensor_a_device() -> None:
    with pytest.raises(ValueError, match=r"not \['sim:0', 'sim:0'\]"):
        transfer.exchange([block("sim:0"), block("sim:0")])


def test_strided_tensors_arrive_whole() -> None:
    source = block("sim:0", 12).view(3, 4).t()
    (copy,) = transfer.broadcast(source, ["sim:1"])
    assert torch.equal(copy.cpu(), source.cpu())


def test_demanding_nccl_says_why_it_cannot_be_had() -> None:
    with pytest.raises(transfer.TransferError, match="NCCL serves CUDA devices, not sim"):
        transfer.broadcast(block("sim:0"), ["sim:1", "sim:2"], nccl=True)
    with pytest.raises(transfer.TransferError, match="not cpu, sim"):
        transfer.exchange([block("sim:0"), block("cpu")], nccl=True)


@pytest.mark.parametrize("variable", ["PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"])
def test_nccl_is_refused_beside_cuda_malloc_async(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "max_split_size_mb:64,backend:cudaMallocAsync")
    reason = transfer.why_not_nccl(["cuda:0", "cuda:1"])
    assert reason.startswith("NCCL cannot be used with the allocator cudaMallocAsync")
    assert "Remove backend:cudaMallocAsync" in reason
    monkeypatch.delenv(variable)
    assert transfer.why_not_nccl(["cuda", "cuda:1"]) == ""
    monkeypatch.setattr(torch.cuda, "get_allocator_backend", lambda: "cudaMallocAsync")
    assert transfer.why_not_nccl(["cuda:0", "cuda:1"]) == reason


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


def test_a_missing_library_falls_back_to_copies_with_one_warning(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    transfer._warn_once.cache_clear()

    class Missing:
        def __init__(self, devices: list[int]) -> None:
            raise RuntimeError("libnccl.so.2 was not found")

    fake = types.SimpleNamespace(
        NcclGroup=Missing, check_nccl_allocator=core().check_nccl_allocator
    )
    monkeypatch.setattr(transfer, "core", lambda: fake)
    tensors = [Stub(f"cuda:{i}", i, 64) for i in range(3)]
    with caplog.at_level(logging.WARNING, "distorch"):
        assert transfer._group_for(tensors, None, 2) is None
        assert transfer._group_for(tensors, None, 2) is None
    assert caplog.messages == ["NCCL is not used: libnccl.so.2 was not found"]
    with pytest.raises(transfer.TransferError, match="was not found"):
        transfer._group_for(tensors, True, 2)


class Group:
    """A communicator that writes down what it was asked to send."""

    def __init__(self) -> None:
        self.sent: list[tuple[object, ...]] = []

    def broadcast(self, source: object, targets: object, size: int) -> None:
        self.sent.append((source, targets, size))

    def exchange(self, messages: list[tuple[int, ...]]) -> None:
        self.sent += messages


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> Group:
    """Let the simulated devices count as CUDA's, with stream 100 + index."""
    made = Group()
    monkeypatch.setattr(transfer, "_group_for", lambda *_, **__: made)
    monkeypatch.setattr(transfer, "_stream", lambda device: 100 + device.index)
    return made


def test_nccl_gets_every_end_of_a_broadcast_once(group: Group) -> None:
    source = block("sim:1")
    distorch_sim.reset_counters()
    copies = transfer.broadcast(source, ["sim:0", "sim:1", "sim:2"])
    assert group.sent == [
        (
            (source.data_ptr(), 1, 101),
            [(copies[0].data_ptr(), 0, 100), (copies[2].data_ptr(), 2, 102)],
            source.nbytes,
        )
    ]
    assert distorch_sim.transfers() == {}, "nothing is copied beside it"


def test_nccl_gets_every_ordered_pair_of_an_exchange(group: Group) -> None:
    tensors = [block(f"sim:{i}", 10 * (i + 1)) for i in range(3)]
    rows = transfer.exchange(tensors)
    assert sorted(group.sent) == sorted(
        (tensors[j].data_ptr(), j, 100 + j, rows[i][j].data_ptr(), i, 100 + i, tensors[j].nbytes)
        for i in range(3)
        for j in range(3)
        if i != j
    )


def test_the_router_says_why_there_is_none() -> None:
    with pytest.raises(RuntimeError, match=r"libcuda\.so\.1 was not found: no NVIDIA driver"):
        core().TransferRouter(driver="/nowhere/libcuda.so.1")
