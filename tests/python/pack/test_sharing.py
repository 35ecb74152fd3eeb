# SPDX-License-Identifier: Apache-2.0
"""Models that share a device settle. Bytes are counted by the simulated devices."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import comfy_standin
import distorch_sim
import pytest
import torch

from distorch.allocation import parse

SIZE, DEPTH, STEPS = 256, 16, 2
MIB = 2**20
ROOM = 20 * MIB  # of which two models of 16 MB want to have their part
HERE = "sim:0"


class Dynamic(comfy_standin.ModelPatcher):
    """A model of DynamicVRAM: pages come when it runs, as far as there is room, and go one by one."""

    def __init__(self) -> None:
        super().__init__(torch.nn.Module(), torch.device(HERE), torch.device("cpu"))
        self.pages: list[torch.Tensor] = []
        self.detached = 0
        self.asked = 0.0  # bytes, by ComfyUI

    def is_dynamic(self) -> bool:
        return True

    def model_size(self) -> int:
        return 16 * MIB

    def loaded_size(self) -> int:
        return sum(page.nbytes for page in self.pages)

    def partially_load(self, device_to: Any, extra_memory: float = 0) -> None:
        pass

    def partially_unload(self, device_to: Any, memory_to_free: float = 0) -> int:
        self.asked += memory_to_free
        return self.give(memory_to_free)

    def give(self, memory_to_free: float) -> int:
        freed = 0
        while self.pages and freed < memory_to_free:
            freed += self.pages.pop().nbytes
        return freed

    def detach(self, unpatch_all: bool = True) -> None:
        self.detached += 1
        self.pages.clear()

    def run(self) -> None:
        while self.loaded_size() < self.model_size() and torch.sim.mem_get_info(0)[0] > 2 * MIB:
            self.pages.append(torch.empty(MIB, dtype=torch.uint8, device=HERE))


class Machine:
    """A device with 20 MB of room beside what ComfyUI keeps free to compute in."""

    def __init__(self, comfy: comfy_standin.StandIn, pack: Any) -> None:
        self.comfy, self.mm = comfy, comfy.mm
        self._adopt = pack.load("patches.placing.adopt").adopt
        self._request = pack.load("patches.placing.request").Request
        comfy.working = MIB
        free = torch.sim.mem_get_info(0)[0]
        self._hog = torch.empty(free - ROOM - MIB, dtype=torch.uint8, device=HERE)
        comfy.server.PromptServer.instance.last_prompt_id = "first"

    def placed(self, text: str = "sim:0,*") -> Any:
        spec = parse(f"{text}#sim:0", kinds=["sim"])
        model = self.comfy.model(size=SIZE, depth=DEPTH)
        return self._adopt(model, self._request("sim:0", spec))

    def dynamic(self) -> Dynamic:
        return Dynamic()

    def use(self, patcher: Any, **settings: Any) -> torch.Tensor | None:
        self.mm.load_models_gpu([patcher], **settings)
        if patcher.is_dynamic():
            patcher.run()
            return None
        value = torch.linspace(-1, 1, 4 * SIZE).reshape(4, SIZE)
        for _ in range(STEPS):
            with torch.inference_mode():
                result = patcher.model(value.to(HERE))
        return result.cpu()

    def prompt(self, *patchers: Any) -> int:
        """Runs a prompt that uses these one after the other; returns the bytes that came and went."""
        instance = self.comfy.server.PromptServer.instance
        instance.last_prompt_id += "+"
        distorch_sim.reset_counters()
        for patcher in patchers:
            self.use(patcher)
        return distorch_sim.copied("cpu", "sim:0") + distorch_sim.copied("sim:0", "cpu")


def streamed(*patchers: Any) -> int:
    """What a prompt that uses these has to move: weights that are streamed, inputs and results."""
    inputs = 4 * SIZE * 4 * (STEPS + 1)
    runners = [p.distorch_placed().runner for p in patchers]
    return sum(STEPS * r.engine.bytes_per_step + inputs if r.engine else inputs for r in runners)


@pytest.fixture
def machine(pack: Any, comfy: comfy_standin.StandIn) -> Iterator[Machine]:
    comfy.mm.load_models_gpu = comfy.load_where_room_is_made
    sharing = pack.load("patches.placing.sharing")
    sharing.install()
    yield Machine(comfy, pack)
    sharing.uninstall()
    assert comfy.mm.load_models_gpu == comfy.load_where_room_is_made


@pytest.fixture
def expected(comfy: comfy_standin.StandIn) -> torch.Tensor:
    value = torch.linspace(-1, 1, 4 * SIZE).reshape(4, SIZE)
    with torch.inference_mode():
        return comfy.model(size=SIZE, depth=DEPTH).model(value)


def test_two_placed_models_move_no_more_than_is_streamed(machine: Machine, expected) -> None:
    one, other = machine.placed(), machine.placed()
    machine.prompt(one, other)
    assert other.distorch_placed().spilled == set(), "a newcomer gets its room"
    assert one.loaded_size() < 4 * MIB
    machine.prompt(one, other)
    moved = machine.prompt(one, other)
    assert moved == streamed(one, other)
    assert moved < STEPS * 16 * MIB
    assert other.distorch_placed().spilled == set()
    assert torch.equal(machine.use(one), expected)
    assert torch.equal(machine.use(other), expected)
    assert torch.sim.memory_allocated(0) <= torch.sim.mem_get_info(0)[1] - MIB, "room to compute in"


def test_without_it_each_puts_the_other_out(machine: Machine, pack: Any) -> None:
    pack.load("patches.placing.sharing").uninstall()
    one, other = machine.placed(), machine.placed()
    for _ in range(2):
        machine.prompt(one, other)
    assert machine.prompt(one, other) > 24 * MIB + streamed(other)


def test_three_models_settle(machine: Machine) -> None:
    models = [machine.placed() for _ in range(3)]
    for _ in range(2):
        machine.prompt(*models)
    assert machine.prompt(*models) == streamed(*models)


def test_parts_on_a_donor_settle(machine: Machine) -> None:
    other = torch.device("sim", 1)
    free = torch.sim.mem_get_info(1)[0]
    hog = torch.empty(free - ROOM - MIB, dtype=torch.uint8, device=other)
    models = [machine.placed("sim:1,*") for _ in range(2)]
    for _ in range(2):
        machine.prompt(*models)
    machine.prompt(*models)
    assert distorch_sim.copied("cpu", "sim:1") == distorch_sim.copied("sim:1", "cpu") == 0
    del hog


def test_a_model_that_lies_idle_for_a_prompt_gives_way(machine: Machine) -> None:
    one, other = machine.placed(), machine.placed()
    machine.prompt(one, other)
    machine.prompt(one)
    assert one.distorch_placed().spilled, "the other was used in the prompt before"
    machine.prompt(one)
    assert one.distorch_placed().spilled == set()
    machine.prompt(other)
    assert other.distorch_placed().spilled
    machine.prompt(other)
    assert other.distorch_placed().spilled == set()


def test_after_a_free_the_first_use_counts_again(machine: Machine) -> None:
    one, other = machine.placed(), machine.placed()
    machine.prompt(one, other)
    machine.mm.unload_all_models()
    machine.prompt(other, one)
    assert one.distorch_placed().spilled == set()
    assert other.loaded_size() < 4 * MIB


def test_memory_to_compute_in_is_made_free_all_the_same(machine: Machine) -> None:
    one, other = machine.placed(), machine.placed()
    machine.prompt(one, other)
    machine.use(one, memory_required=8 * MIB)
    assert torch.sim.mem_get_info(0)[0] >= 8 * MIB - one.distorch_placed().held_bytes()
    assert other.distorch_placed().spilled


def test_a_model_that_must_load_as_a_whole_does(machine: Machine) -> None:
    one, other = machine.placed(), machine.placed()
    machine.prompt(one, other)
    machine.use(one, force_full_load=True)
    assert one.distorch_placed().spilled == set()
    assert other.distorch_placed().spilled


def test_a_dynamic_model_that_comes_back_puts_no_placed_one_out(machine: Machine) -> None:
    dynamic, placed = machine.dynamic(), machine.placed()
    machine.prompt(dynamic, placed)
    assert placed.distorch_placed().spilled == set(), "a newcomer gets its room"
    for _ in range(2):
        machine.prompt(dynamic, placed)
        assert placed.distorch_placed().spilled == set()
    assert machine.prompt(dynamic, placed) == streamed(placed)


def test_a_placed_model_that_comes_back_puts_no_dynamic_one_out(machine: Machine) -> None:
    placed, dynamic = machine.placed(), machine.dynamic()
    machine.prompt(placed, dynamic)
    pages = dynamic.loaded_size()
    assert pages == 16 * MIB, "a newcomer gets its room"
    for _ in range(2):
        moved = machine.prompt(placed, dynamic)
    assert moved == streamed(placed)
    # What the placed one cannot do without is asked for once.
    slots = placed.distorch_placed().held_bytes()
    assert pages - slots - 2 * MIB <= dynamic.loaded_size() <= pages
    assert dynamic.detached == 0


def test_models_of_the_core_are_not_concerned(machine: Machine, comfy) -> None:
    ordinary = [comfy.model(size=SIZE, depth=DEPTH) for _ in range(2)]
    for _ in range(2):
        for patcher in ordinary:
            machine.mm.load_models_gpu([patcher])
    assert [e.model for e in comfy.mm.current_loaded_models] == [ordinary[1]]


# comfy-aimdo, as far as its headroom goes


@pytest.fixture
def aimdo(monkeypatch: pytest.MonkeyPatch) -> Callable[[Dynamic], list[int]]:
    """The library's stand-in for one model: at each allocation on the device pages leave until the headroom is free."""
    headrooms = [256]
    control: Any = types.ModuleType("comfy_aimdo.control")
    control.lib = object()
    control.get_simple_vram_headroom = lambda: headrooms[-1]
    control.set_simple_vram_headroom = headrooms.append
    monkeypatch.setitem(sys.modules, "comfy_aimdo.control", control)
    empty = torch.empty

    def begin(model: Dynamic) -> list[int]:
        def hooked(*args: Any, **kwargs: Any) -> torch.Tensor:
            if str(kwargs.get("device")) == HERE:
                free = torch.sim.mem_get_info(0)[0]
                model.give(headrooms[-1] - free)
            return empty(*args, **kwargs)

        monkeypatch.setattr(torch, "empty", hooked)
        return headrooms

    return begin


def test_room_is_asked_of_dynamic_models_by_the_headroom(machine: Machine, aimdo) -> None:
    dynamic, placed = machine.dynamic(), machine.placed()
    machine.prompt(dynamic)
    headrooms = aimdo(dynamic)
    machine.prompt(placed)
    assert dynamic.asked == dynamic.detached == 0, "ComfyUI's own way was not needed"
    assert dynamic in [e.model for e in machine.mm.current_loaded_models]
    assert max(headrooms) > 16 * MIB
    assert headrooms[-1] == 256, "as it was"
    assert placed.distorch_placed().spilled == set()


def test_without_a_headroom_comfyui_makes_the_room(machine: Machine) -> None:
    dynamic, placed = machine.dynamic(), machine.placed()
    machine.prompt(dynamic)
    machine.prompt(placed)
    assert dynamic.asked > 10 * MIB
    assert placed.distorch_placed().spilled == set()


def test_a_library_that_frees_nothing_is_no_error(machine: Machine, monkeypatch) -> None:
    headrooms = [256]
    control: Any = types.ModuleType("comfy_aimdo.control")
    control.lib = object()
    control.get_simple_vram_headroom = lambda: headrooms[-1]
    control.set_simple_vram_headroom = headrooms.append
    monkeypatch.setitem(sys.modules, "comfy_aimdo.control", control)
    dynamic, placed = machine.dynamic(), machine.placed()
    machine.prompt(dynamic)
    machine.prompt(placed)
    assert headrooms[-1] == 256
    assert placed.distorch_placed().spilled == set()
