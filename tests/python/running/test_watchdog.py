# SPDX-License-Identifier: Apache-2.0
"""A copy that never ends, on the double and on torch's events: told in the host's patience, nothing changed, other devices go on."""

from __future__ import annotations

import copy
import gc
import time
import weakref

import distorch_sim
import pytest
import torch
from fake_cuda import streamed_by_the_core
from pin_budget import Budget
from placing import Layer, plan_of
from torch import nn

from distorch import transfer
from distorch.model_blocks import inventory
from distorch.placing import place
from distorch.run import StreamedExecutor, pinning, torch_streaming

pytestmark = pytest.mark.usefixtures("sim")

PATIENCE = 0.5  # seconds
X = torch.randn(2, 5, 128, generator=torch.Generator().manual_seed(4))


def model() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(*(Layer(128) for _ in range(4))).eval()


def run(on: nn.Module, device: str) -> torch.Tensor:
    with torch.no_grad():
        return on(X.to(device)).cpu()


def test_is_told_and_the_rest_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pageable memory: the host waits for its copies."""
    monkeypatch.setattr(pinning, "_budget", Budget(0))
    stuck, sound = model(), model()
    weights = copy.deepcopy(stuck.state_dict())
    expected = run(model().to("sim:1"), "sim:1")
    on_host = plan_of({block.name: "cpu" for block in inventory(stuck).blocks})
    with streamed_by_the_core(monkeypatch, patience=PATIENCE) as fake:
        placed = place(stuck, on_host, compute="sim:0")
        executor = StreamedExecutor(placed)
        fake.library.fake_hang(-1, 0)
        begin = time.monotonic()
        with pytest.raises(RuntimeError, match=r"did not end in 0\.5 s") as told:
            run(stuck, "sim:0")
        with pytest.raises(RuntimeError, match=r"did not end in 0\.5 s"):
            run(stuck, "sim:0")
        buffers = list(executor.engine._streamer.buffers)
        executor.detach()
        del executor
        storages = [buffer.untyped_storage() for buffer in buffers]
        kept = [weakref.ref(buffer) for buffer in buffers]
        del buffers
        gc.collect()
        assert time.monotonic() - begin >= PATIENCE
        message = str(told.value)
        assert "bytes on cuda:0" in message
        assert "restart this process" in message
        assert fake.violations == []

        # What the device may still write is somebody's: nobody else is given that memory.
        assert all(reference() is not None for reference in kept)
        for storage in storages:
            distorch_sim.take_back(storage)  # the simulated device writes nothing any more

        other = place(sound, on_host, compute="sim:1")
        StreamedExecutor(other)
        assert torch.equal(run(sound, "sim:1"), expected)
    for name, tensor in stuck.state_dict().items():
        assert torch.equal(tensor.cpu(), weights[name]), name


def test_of_another_accelerator_is_told_where_the_host_waits(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As on an XPU or NPU: by torch's streams and events."""
    stuck, sound = model(), model()
    expected = run(model().to("sim:1"), "sim:1")
    weights = copy.deepcopy(stuck.state_dict())
    on_host = plan_of({block.name: "cpu" for block in inventory(stuck).blocks})
    executor = StreamedExecutor(place(stuck, on_host, compute="sim:0"))
    assert torch.equal(run(stuck, "sim:0"), expected)
    never = torch.sim.Event.query
    with monkeypatch.context() as patch:
        patch.setattr(transfer, "PATIENCE_SECONDS", PATIENCE)
        patch.setattr(torch_streaming, "_kept", [])
        patch.setattr(torch.sim.Event, "query", lambda event: never(event) and False)
        begin = time.monotonic()
        with pytest.raises(RuntimeError, match=r"on sim:0 did not end in 0\.5 s.*restart this"):
            executor.engine.invalidate()
        assert time.monotonic() - begin >= PATIENCE
        for _ in range(2):  # refused at once
            with pytest.raises(RuntimeError, match=r"did not end in 0\.5 s"):
                run(stuck, "sim:0")
        streamer = executor.engine._streamer
        size = sum(buffer.nbytes for buffer in streamer.buffers)
        kept = [weakref.ref(tensor) for tensor in (*streamer.buffers, streamer.groups[0].stored[0])]
        assert f"{size} bytes" in str(streamer._streams.stalled)
        del streamer
        with caplog.at_level("ERROR", "distorch"):
            executor.detach()
        assert "did not end in 0.5 s" in caplog.text
        del executor
        gc.collect()
        assert all(reference() is not None for reference in kept)
        for name, tensor in stuck.state_dict().items():
            assert torch.equal(tensor.cpu(), weights[name]), name
    StreamedExecutor(place(sound, on_host, compute="sim:1"))
    assert torch.equal(run(sound, "sim:1"), expected)
