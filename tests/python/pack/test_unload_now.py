# SPDX-License-Identifier: Apache-2.0
"""Unloading in the middle of a prompt, and when a cached node must run again."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import comfy_standin
import pytest
import torch

from distorch.allocation import parse

FLAG = "_mgpu_unload_distorch_model"


class Bench:
    """Core models and managed ones, loaded."""

    def __init__(self, pack: Any, comfy: comfy_standin.StandIn) -> None:
        self.comfy, self.mm = comfy, comfy.mm
        self.now = pack.load("patches.ejecting.unload_now")
        self.keep = pack.load("patches.ejecting.keep")
        self.adopt = pack.load("patches.placing.adopt").adopt
        self.request = pack.load("patches.placing.request").Request
        self.keep.install()
        self.held: list[Any] = []  # the core holds its patchers weakly; nodes' outputs hold them

    def plain(self) -> Any:
        patcher = self.comfy.model()
        self.held.append(patcher)
        self.mm.load_models_gpu([patcher])
        return patcher

    def placed(self, file: str, *, kept: bool = False) -> Any:
        request = self.request(
            "sim:0",
            parse("sim:1,300kb;sim:0,*#sim:0", kinds=["sim"]),
            "node",
            file,
            keep_loaded=kept,
        )
        patcher = self.comfy.model()
        self.adopt(patcher, request)
        self.held.append(patcher)
        if kept:
            outputs = (patcher,)
            self.keep._on_loaded(request, "node", {"unet_name": file}, outputs)
        self.mm.load_models_gpu([patcher])
        return patcher

    @staticmethod
    def gone(report: Any) -> dict[str, list[str]]:
        return {model.name: model.devices for model in report.unloaded}

    @staticmethod
    def freed(report: Any) -> dict[str, int]:
        return {row.device: row.freed for row in report.devices}

    def loaded(self) -> list[Any]:
        return [e.model for e in self.mm.current_loaded_models]


@pytest.fixture
def bench(pack: Any, comfy: comfy_standin.StandIn) -> Iterator[Bench]:
    bench = Bench(pack, comfy)
    yield bench
    bench.keep.uninstall()
    bench.mm.current_loaded_models.clear()
    gc.collect()


def test_this_model_leaves_every_device_and_can_be_loaded_again(bench: Bench) -> None:
    plain, placed = bench.plain(), bench.placed("a.safetensors")
    used = torch.sim.memory_allocated(1)
    assert used > 0
    report = bench.now.run(bench.now.THIS, placed)
    assert bench.gone(report) == {"Model (a.safetensors)": ["sim:0", "sim:1"]}
    assert bench.freed(report)["sim:1"] == used
    assert bench.freed(report)["sim:0"] > 0
    assert bench.loaded() == [plain]
    assert {p.device.type for p in placed.model.parameters()} == {"cpu"}
    assert f"sim:1: {used} bytes given back" in str(report)
    assert "still loaded: Model" in str(report)
    bench.mm.load_models_gpu([placed])
    assert torch.sim.memory_allocated(1) == used


def test_all_others_leave_this_one(bench: Bench) -> None:
    first, second, mine = bench.plain(), bench.placed("a"), bench.placed("b")
    report = bench.now.run(bench.now.OTHERS, mine)
    assert set(bench.gone(report)) == {"Model", "Model (a)"}
    assert {m.model for m in bench.loaded() if m.model is mine.model} == {mine.model}
    assert {p.device.type for m in (first, second) for p in m.model.parameters()} == {"cpu"}
    assert {p.device.type for p in mine.model.parameters()} == {"sim"}


def test_everything_needs_no_model(bench: Bench) -> None:
    bench.plain(), bench.placed("a")
    bench.now.run(bench.now.EVERYTHING, {"samples": 1})
    assert bench.loaded() == []
    assert torch.sim.memory_allocated(0) == torch.sim.memory_allocated(1) == 0
    again = bench.now.run(bench.now.EVERYTHING, None)
    assert str(again) == "nothing to unload: no such model is loaded"
    assert again.devices == []


@pytest.mark.parametrize("what", ["this model", "all others"])
def test_a_value_without_a_model_is_refused(bench: Bench, what: str) -> None:
    plain = bench.plain()
    with pytest.raises(ValueError, match=f"'{what}' needs a model.*but got dict"):
        bench.now.run(what, {"samples": 1})
    assert bench.loaded() == [plain]


@pytest.mark.parametrize("let_go", [False, True])
def test_a_kept_model_stays_kept_unless_let_go(bench: Bench, let_go: bool) -> None:
    placed = bench.placed("a", kept=True)
    report = bench.now.run(bench.now.EVERYTHING, None, let_go)
    assert bench.loaded() == []
    assert bench.keep.is_kept(placed.model) is not let_go
    assert bench.keep.is_flagged(placed.model) is let_go
    assert [m.name for m in report.stay if m.kept] == ([] if let_go else ["Model (a)"])
    assert ("switch let_go on" in bench.now.text(report)) is not let_go


def test_a_cached_node_runs_again_only_for_models_that_others_loaded(bench: Bench) -> None:
    memory, what = bench.now.memory, bench.now.EVERYTHING
    first = memory.token("7", what)
    bench.plain()
    assert memory.token("7", what) == first  # the node has never run: nothing is cached
    bench.now.run(what, None, node="7")
    mine = bench.plain()  # behind the node, in the same prompt
    memory.prompt_ended()
    assert memory.token("7", what) == first
    memory.prompt_ended()
    other = bench.plain()  # by another workflow, which has no such node
    memory.prompt_ended()
    second = memory.token("7", what)
    assert second != first
    memory.prompt_ended()
    assert memory.token("7", what) == second
    assert bench.loaded() == [other, mine]


def test_only_the_model_it_is_about_makes_a_node_run_again(bench: Bench) -> None:
    memory, mine = bench.now.memory, bench.placed("a")
    first = memory.token("7", bench.now.THIS)
    bench.now.run(bench.now.THIS, mine, node="7")
    memory.prompt_ended()
    bench.plain()
    assert memory.token("7", bench.now.THIS) == first
    memory.prompt_ended()
    bench.mm.load_models_gpu([mine])
    assert memory.token("7", bench.now.THIS) != first
    assert memory.token("8", bench.now.THIS) == 0


def test_models_are_not_held_by_the_memory(bench: Bench) -> None:
    for number in range(300):
        bench.now.memory.about(str(number), bench.comfy.model(size=8, depth=1).model)
    assert len(bench.now.memory._about) == 256
    gc.collect()
    assert bench.now.memory._about["299"]() is None


def test_what_only_its_keeping_held_is_counted_when_it_is_let_go_of(bench: Bench) -> None:
    placed = bench.placed("a", kept=True)
    used = [torch.sim.memory_allocated(index) for index in (0, 1)]
    bench.held.clear()
    del placed
    report = bench.now.run(bench.now.EVERYTHING, None, True)
    assert list(bench.freed(report).values()) == used
    assert bench.mm.current_loaded_models == []
