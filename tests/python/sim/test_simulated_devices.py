# SPDX-License-Identifier: Apache-2.0
"""The simulated accelerator itself: what other tests rest on must hold."""

from __future__ import annotations

import copy
import gc
import io
import threading
from collections.abc import Iterator

import distorch_sim
import pytest
import torch

MIB = 2**20


@pytest.fixture(autouse=True)
def _devices() -> Iterator[None]:
    gc.collect()
    distorch_sim.install([64 * MIB, 64 * MIB, MIB], {("cpu", "sim:0"): 10.0})
    for index in range(3):
        torch.sim.reset_peak_memory_stats(index)
    yield
    distorch_sim.clear_faults()
    gc.collect()


def test_bytes_of_each_pair_are_counted_exactly() -> None:
    a = torch.ones(1000)
    b = a.to("sim:0")
    c = b.to("sim:1")
    c.to("cpu")
    c.to("cpu")
    assert distorch_sim.transfers() == {
        ("cpu", "sim:0"): 4000,
        ("sim:0", "sim:1"): 4000,
        ("sim:1", "cpu"): 8000,
    }
    assert distorch_sim.copied("sim:1", "sim:0") == 0
    assert distorch_sim.copy_count() == 4
    distorch_sim.reset_counters()
    assert distorch_sim.transfers() == {}
    assert distorch_sim.copy_count() == 0


def test_operators_copy_nothing() -> None:
    x = torch.randn(64, 64).to("sim:0")
    linear = torch.nn.Linear(64, 64).to("sim:0")
    distorch_sim.reset_counters()
    with torch.inference_mode():
        torch.nn.functional.scaled_dot_product_attention(linear(x)[None], x[None], x[None]).sum()
    assert distorch_sim.transfers() == {}


def test_memory_allocated_peak_and_counts() -> None:
    x = torch.zeros(MIB, dtype=torch.uint8, device="sim:1")
    y = torch.zeros(MIB, dtype=torch.uint8, device="sim:1")
    assert torch.sim.memory_allocated(1) == 2 * MIB
    assert torch.sim.memory_allocated(0) == 0
    del y
    assert torch.sim.memory_allocated(1) == MIB
    assert torch.sim.max_memory_allocated(1) == 2 * MIB
    torch.sim.reset_peak_memory_stats(1)
    assert torch.sim.max_memory_allocated(1) == MIB
    assert torch.sim.mem_get_info(1) == (63 * MIB, 64 * MIB)
    assert distorch_sim.allocation_count("sim:1") == 2
    del x
    assert torch.sim.memory_allocated(1) == 0


def test_out_of_memory_is_torchs_own_error_and_leaves_nothing_behind() -> None:
    kept = torch.zeros(MIB // 2, dtype=torch.uint8, device="sim:2")
    with pytest.raises(torch.OutOfMemoryError, match=rf"Tried to allocate {MIB} bytes\. sim:2 has"):
        torch.zeros(MIB, dtype=torch.uint8, device="sim:2")
    assert torch.sim.memory_allocated(2) == MIB // 2
    exact = torch.zeros(MIB // 2, dtype=torch.uint8, device="sim:2")
    assert torch.sim.mem_get_info(2)[0] == 0
    del kept, exact


@pytest.mark.parametrize("sticky", [False, True])
def test_nth_allocation_fails_once_or_from_then_on(sticky: bool) -> None:
    outcomes = []
    with distorch_sim.faults(allocation=2, sticky=sticky):
        for _ in range(4):
            try:
                torch.empty(16, device="sim:0")
                outcomes.append(True)
            except torch.OutOfMemoryError as error:
                outcomes.append("injected fault" not in str(error))
    assert outcomes == ([True, False, False, False] if sticky else [True, False, True, True])
    torch.empty(16, device="sim:0")


@pytest.mark.parametrize("sticky", [False, True])
def test_nth_copy_fails_once_or_from_then_on(sticky: bool) -> None:
    x = torch.ones(16)
    outcomes = []
    with distorch_sim.faults(copy=2, sticky=sticky):
        for _ in range(4):
            try:
                x.to("sim:1")
                outcomes.append(True)
            except RuntimeError as error:
                outcomes.append("copy of 64 bytes from cpu to sim:1 failed" not in str(error))
    assert outcomes == ([True, False, False, False] if sticky else [True, False, True, True])
    assert distorch_sim.copied("cpu", "sim:1") == 64 * sum(outcomes)
    assert torch.sim.memory_allocated(1) == 0


def test_links_are_nominal_and_hold_both_ways() -> None:
    assert distorch_sim.link_gbps("cpu", "sim:0") == 10.0
    assert distorch_sim.link_gbps("sim:0", "cpu") == 10.0
    assert distorch_sim.link_gbps("cpu", "sim:1") == distorch_sim.HOST_LINK_GBPS
    assert distorch_sim.link_gbps("sim:1", "sim:2") == distorch_sim.PEER_LINK_GBPS
    with pytest.raises(ValueError, match="'cuda:0' is neither 'cpu' nor 'sim:N'"):
        distorch_sim.link_gbps("cpu", "cuda:0")


def test_devices_cannot_change_under_living_tensors() -> None:
    x = torch.ones(4, device="sim:0")
    with pytest.raises(RuntimeError, match="cannot be reconfigured while 16 bytes are allocated"):
        distorch_sim.install([MIB])
    del x
    distorch_sim.install([MIB])
    assert torch.sim.device_count() == 1
    with pytest.raises(RuntimeError, match="sim:1 does not exist"):
        torch.ones(4, device="sim:1")


def test_current_device_is_each_threads_own() -> None:
    torch.sim.set_device(1)
    seen = []
    thread = threading.Thread(target=lambda: seen.append(torch.sim.current_device()))
    thread.start()
    thread.join()
    assert seen == [0]
    assert torch.ones(1, device="sim").device.index == 1
    with torch.sim.device("sim:2"):
        assert torch.sim.current_device() == 2
    assert torch.sim.current_device() == 1
    torch.sim.set_device(0)


def test_tensors_stay_on_their_device_whatever_the_current_one() -> None:
    x = torch.ones(8, device="sim:1")
    assert (x + x).device == torch.device("sim:1")
    assert torch.sim.memory_allocated(0) == 0


CASES = {
    "linear": lambda x: torch.nn.functional.linear(x, x),
    "attention": lambda x: torch.nn.functional.scaled_dot_product_attention(x[None], x[None], x[None]),
    "layer_norm": lambda x: torch.nn.functional.layer_norm(x, (32,)),
    "rms_norm": lambda x: torch.nn.functional.rms_norm(x, (32,)),
    "group_norm": lambda x: torch.nn.functional.group_norm(x[None], 4),
    "conv1d": lambda x: torch.nn.functional.conv1d(x[None], x[:4, :32, None].expand(4, 32, 3), padding=1),
    "conv2d": lambda x: torch.nn.functional.conv2d(x[None, None], x[None, None, :3, :3], padding=1),
    "gelu": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    "softmax": lambda x: x.softmax(-1),
    "einsum": lambda x: torch.einsum("ij,kj->ik", x, x),
    "index": lambda x: x[torch.tensor([3, 1], device=x.device)],
    "where": lambda x: torch.where(x > 0, x, 0.5),
    "cat": lambda x: torch.cat([x, x[:, :4]], dim=1),
    "complex": lambda x: torch.view_as_real(torch.view_as_complex(x.view(32, 16, 2)) ** 2),
    "fft": lambda x: torch.fft.rfft(x).abs(),
    "interpolate": lambda x: torch.nn.functional.interpolate(x[None, None], scale_factor=2, mode="bilinear"),
    "in place": lambda x: x.clone().mul_(2).add_(x)[1:, ::2].exp_(),
    "topk": lambda x: x.topk(3).values,
    "cumsum": lambda x: x.cumsum(0),
    "bfloat16": lambda x: (x.bfloat16() @ x.bfloat16()).float(),
    "float16": lambda x: (x.half() @ x.half()).float(),
    "float8": lambda x: x.to(torch.float8_e4m3fn).float(),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_operators_give_the_cpus_bits(name: str) -> None:
    x = torch.randn(32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        result = CASES[name](x.to("sim:1"))
        assert result.device == torch.device("sim:1")
        assert torch.equal(result.cpu(), CASES[name](x))


def test_views_share_memory_and_outputs_can_grow() -> None:
    x = torch.zeros(8, 8, device="sim:0")
    x.view(torch.int32)[0, 0] = 1
    x.T[1, 0] = 5.0
    assert x[0, 1].item() == 5.0
    assert x.view(torch.int32)[0, 0].item() == 1
    out = torch.empty(0, device="sim:0")
    torch.cat([x, x], out=out)
    assert out.shape == (16, 8)


def test_a_model_can_be_copied_saved_and_loaded() -> None:
    layer = torch.nn.Linear(4, 4)
    moved = copy.deepcopy(layer).to("sim:1")
    assert copy.deepcopy(moved).weight.device == torch.device("sim:1")
    file = io.BytesIO()
    torch.save(moved.state_dict(), file)
    file.seek(0)
    loaded = torch.load(file, map_location="cpu")
    assert torch.equal(loaded["weight"], layer.weight)


@pytest.mark.usefixtures("device_in_cpp")
def test_pinned_memory_says_so() -> None:
    x = torch.ones(16)
    assert not x.is_pinned()
    assert x.pin_memory().is_pinned()
    assert torch.equal(x.pin_memory(), x)


def test_streams_and_events_keep_their_device() -> None:
    stream = torch.sim.Stream("sim:1")
    before = torch.sim.current_stream(1)
    with torch.sim.stream(stream):
        assert torch.sim.current_stream(1) is stream
        assert torch.sim.current_stream(0) is torch.sim.default_stream(0)
        event = stream.record_event()
    assert torch.sim.current_stream(1) is before
    assert event.query()
    assert event.recorded_on is stream


def test_threads_count_together() -> None:
    def work() -> None:
        for _ in range(200):
            torch.ones(25).to("sim:0").to("cpu")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert distorch_sim.copied("cpu", "sim:0") == 4 * 200 * 100
    assert distorch_sim.copied("sim:0", "cpu") == 4 * 200 * 100
    assert torch.sim.memory_allocated(0) == 0


def test_empty_cache_calls_are_counted() -> None:
    before = torch.sim.empty_cache_calls
    torch.sim.empty_cache()
    assert torch.sim.empty_cache_calls == before + 1


@pytest.mark.parametrize("other", ["sim:1", "cpu"])
@pytest.mark.parametrize("name", ["linear", "cat", "matmul", "layer_norm", "embedding", "add"])
def test_operands_on_different_devices_are_refused(name: str, other: str) -> None:
    here, there = torch.ones(4, 4, device="sim:0"), torch.ones(4, 4, device=other)
    calls = {
        "linear": lambda: torch.nn.functional.linear(here, there),
        "cat": lambda: torch.cat([here, there]),
        "matmul": lambda: here @ there,
        "layer_norm": lambda: torch.nn.functional.layer_norm(here, (4,), there[0]),
        "embedding": lambda: torch.nn.functional.embedding(here.long()[0], there),
        "add": lambda: here + there,
    }
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        calls[name]()


def test_numbers_and_indices_may_come_from_the_host() -> None:
    here = torch.arange(4.0, device="sim:0")
    assert (here * torch.tensor(2.0)).tolist() == [0.0, 2.0, 4.0, 6.0]
    assert here[torch.tensor([3, 1])].tolist() == [3.0, 1.0]


@pytest.mark.usefixtures("device_in_cpp")
def test_autocast_casts_as_on_the_host() -> None:
    layer, x = torch.nn.Linear(16, 8).requires_grad_(False), torch.randn(4, 16)
    with torch.autocast("cpu", torch.bfloat16):
        expected = layer(x)
    layer = layer.to("sim:0")
    with torch.autocast("sim", torch.bfloat16):
        got, product = layer(x.to("sim:0")), layer(x.to("sim:0")).float().softmax(-1)
    assert got.dtype == expected.dtype == torch.bfloat16
    assert torch.equal(got.cpu(), expected)
    assert product.dtype == torch.float32
    assert layer(x.to("sim:0")).dtype == torch.float32
