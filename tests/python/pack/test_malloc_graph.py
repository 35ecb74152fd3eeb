# SPDX-License-Identifier: Apache-2.0
"""Beside ComfyUI's compiler, which records what a block allocates and gives the same addresses out in the next step.

A stand-in takes its place: everything between the begin of one block and that of the next, or the end of the model, is
one scope, as there. It counts breaks (a step in which a scope allocates another number of times than in the first
one recorded) and strangers (memory of another device than the model's in a scope).
"""

from __future__ import annotations

import sys
import threading
import types
from typing import Any

import distorch_sim
import pytest
import torch

from distorch.allocation import parse

SIZE = 128


class Recorder:
    """The compiler's stand-in on the blocks of one model."""

    def __init__(self, root: torch.nn.Module, compute: str, others: list[str]) -> None:
        self.breaks = self.strangers = 0
        self._compute, self._others = compute, others
        self._known: dict[int, int] = {}
        self._scope: tuple[int, int, int] | None = None
        for number, block in enumerate(root.blocks):
            block.register_forward_pre_hook(self._opens(number))
        root.register_forward_hook(lambda *_: self._close(), always_call=True)

    def _opens(self, number: int) -> Any:
        def begin(*_: Any) -> None:
            self._close()
            here, there = self._counts()
            self._scope = number, here, there

        return begin

    def _counts(self) -> tuple[int, int]:
        return (
            distorch_sim.allocation_count(self._compute),
            sum(map(distorch_sim.allocation_count, self._others)),
        )

    def _close(self) -> None:
        scope, self._scope = self._scope, None
        if scope is None:
            return
        number, here, there = scope
        here_now, there_now = self._counts()
        self.breaks += self._known.setdefault(number, here_now - here) != here_now - here
        self.strangers += there_now - there


@pytest.fixture(params=["MALLOC_GRAPHS", "ACTIVE_MALLOC_GRAPHS"])
def graphs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> dict:
    """The table of the threads whose allocations are recorded."""
    module: Any = types.ModuleType("comfy.model_prefetch")
    table: dict[int, object] = {}
    setattr(module, request.param, table)
    monkeypatch.setitem(sys.modules, "comfy.model_prefetch", module)
    return table


@pytest.fixture
def make(pack, comfy):
    adopt, request = pack.load("patches.placing.adopt"), pack.load("patches.placing.request")

    def make(text: str):
        spec = parse(f"{text}#sim:0", kinds=["sim"])
        patcher = adopt.adopt(comfy.model(size=SIZE), request.Request("sim:0", spec))
        comfy.load_models_gpu([patcher])
        return patcher

    return make


def run(patcher: Any, device: str = "sim:0") -> torch.Tensor:
    value = torch.linspace(-1, 1, 4 * SIZE).reshape(4, SIZE).to(device)
    with torch.inference_mode():
        return patcher.model(value).cpu()


def test_streaming_allocates_nothing_of_its_own_inside_a_block(make, comfy, graphs) -> None:
    expected = run(comfy.model(size=SIZE), "cpu")
    patcher = make("sim:0,4%;cpu,*")
    run(patcher)  # learns the order
    graphs[threading.get_ident()] = object()
    recorder = Recorder(patcher.model, "sim:0", ["sim:1", "sim:2"])
    plain = make("sim:0,*")
    beside = Recorder(plain.model, "sim:0", ["sim:1", "sim:2"])
    for _ in range(3):
        assert torch.equal(run(patcher), expected)
        assert torch.equal(run(plain), expected)
    assert (recorder.breaks, recorder.strangers) == (0, 0)
    assert recorder._known == beside._known, "as many as of the model in one piece"


def test_groups_are_streamed_while_allocations_are_recorded(make, comfy, graphs, caplog) -> None:
    expected = run(comfy.model(size=SIZE), "cpu")
    patcher = make("sim:0,4%;sim:1,*,mode=migrate")
    engine = patcher.distorch_placed().runner.engine
    for _ in range(2):
        run(patcher)
    assert engine.migrated == {"sim:1": [f"blocks.{i}" for i in range(4)]}
    graphs[threading.get_ident() + 1] = object()  # another thread's
    run(patcher)
    assert engine.migrated
    graphs[threading.get_ident()] = object()
    recorder = Recorder(patcher.model, "sim:0", ["sim:1", "sim:2"])
    caplog.clear()
    assert torch.equal(run(patcher), expected)  # by ComfyUI's own casts
    assert recorder.strangers == 0
    assert engine.migrated == {}
    assert engine.streamed == [f"blocks.{i}" for i in range(4)]
    assert sum("--disable-comfy-compiler" in r.getMessage() for r in caplog.records) == 1
    recorder._known.clear()  # the graph is recorded anew when the model's blocks change
    for _ in range(3):
        assert torch.equal(run(patcher), expected)
    assert (recorder.breaks, recorder.strangers) == (0, 0)
    assert engine.migrated == {}


def test_slots_are_not_made_anew_inside_a_block(make, comfy, graphs) -> None:
    expected = run(comfy.model(size=SIZE), "cpu")
    patcher = make("sim:0,4%;cpu,*")
    for _ in range(2):
        run(patcher)
    engine = patcher.distorch_placed().runner.engine
    graphs[threading.get_ident()] = object()
    blocks = patcher.model.blocks
    swap = blocks[1].register_forward_pre_hook(lambda *_: _replace(blocks[2].up))
    slots = engine._streamer.buffers
    assert torch.equal(run(patcher), expected)
    assert engine._streamer.buffers is slots, "not while the step runs"
    swap.remove()
    assert torch.equal(run(patcher), expected)
    assert engine._streamer.buffers is not slots, "but at the next one"
    recorder = Recorder(patcher.model, "sim:0", ["sim:1", "sim:2"])
    for _ in range(3):
        assert torch.equal(run(patcher), expected)
    assert (recorder.breaks, recorder.strangers) == (0, 0)


def _replace(layer: torch.nn.Module) -> None:
    """Somebody else hangs an equal tensor into the model while it runs."""
    layer._parameters["weight"] = torch.nn.Parameter(layer.weight.clone(), requires_grad=False)
