# SPDX-License-Identifier: Apache-2.0
"""Ejecting: exactly the flagged models, and a strict no-op when there is none."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable

import pytest
import torch
from placing import plan_of
from torch import nn

from distorch._C import UnloadReport
from distorch.eject import Registry
from distorch.model_blocks import inventory
from distorch.placed import PlacedModel
from distorch.placing import place

pytestmark = pytest.mark.usefixtures("sim")


def placed_model(*devices: str) -> PlacedModel:
    model = nn.Sequential(*[nn.Linear(128, 128) for _ in range(4)]).eval()
    names = [b.name for b in inventory(model).blocks]
    plan = plan_of({n: devices[i % len(devices)] for i, n in enumerate(names)})
    return place(model, plan, compute=devices[0])


def names(report: UnloadReport) -> list[str]:
    return [model.name for model in report.unloaded]


class Counting:
    """Counts every call that would touch an allocator."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def measure(self, names: list[str]) -> dict[str, int]:
        self.calls.append("measure")
        return {}

    def clear(self, names: list[str]) -> None:
        self.calls.append("clear")


def test_none_flagged_is_a_strict_no_op() -> None:
    counting = Counting()
    registry = Registry(measure=counting.measure, clear=counting.clear)

    class Untouchable:
        def __getattr__(self, name: str) -> object:
            raise AssertionError(f"{name} was asked for")

    models = [registry.manage(Untouchable(), f"m{i}") for i in range(3)]
    report = registry.eject_flagged()
    assert (names(report), report.devices, report.failures) == ([], [], [])
    assert counting.calls == []
    assert registry.models() == models
    assert str(report) == "no model is flagged, nothing is unloaded\nstill loaded: m0, m1, m2"


def test_exactly_the_flagged_model_is_freed_on_every_device_it_touches() -> None:
    registry = Registry()
    first = placed_model("sim:0", "sim:1")
    second = placed_model("sim:0", "sim:2", "cpu")
    a = registry.manage(first, "first", eject=True)
    registry.manage(second, "second")
    pointers = [p.data_ptr() for p in second.model.parameters()]
    objects = [id(p) for p in second.model.parameters()]
    size = first.bytes_per_device()
    report = registry.eject_flagged()
    assert names(report) == ["first"]
    assert [(m.name, m.loaded, m.kept) for m in report.stay] == [("second", True, True)]
    rows = {d.device: d for d in report.devices}
    assert {d: r.freed for d, r in rows.items()} == size
    share = second.bytes_per_device()["sim:0"]
    assert rows["sim:0"].after == share == torch.sim.memory_allocated(0)
    assert rows["sim:0"].holders == [f"second ({share >> 10} KB)"]
    assert rows["sim:1"].after == 0
    assert rows["sim:1"].holders == []
    assert [p.data_ptr() for p in second.model.parameters()] == pointers
    assert [id(p) for p in second.model.parameters()] == objects
    assert a.placed is None
    assert "sim:1: " in str(report)


def test_a_kept_model_outlives_everyone_else_and_an_ejected_one_does_not() -> None:
    registry = Registry()
    handle = registry.manage(placed_model("sim:0", "sim:1"), "kept")
    alive = weakref.ref(handle.placed.model)
    gc.collect()
    assert alive() is not None
    assert torch.sim.memory_allocated(1) > 0
    handle.eject = True
    registry.eject_flagged()
    gc.collect()
    assert alive() is None
    assert torch.sim.memory_allocated(0) == 0


def test_one_model_can_be_ejected_whatever_its_flag() -> None:
    registry = Registry()
    a = registry.manage(placed_model("sim:0"), "a")
    b = registry.manage(placed_model("sim:0"), "b", eject=True)
    report = registry.eject(a)
    assert names(report) == ["a"]
    assert registry.models() == [b]
    assert names(registry.eject(a)) == []


def test_a_failing_unload_is_reported_and_the_others_go_on() -> None:
    registry = Registry()
    bad, good = placed_model("sim:0"), placed_model("sim:1")

    def fail(_placed: PlacedModel) -> None:
        raise RuntimeError("no")

    bad.on_unload(fail)
    registry.manage(bad, "bad", eject=True)
    registry.manage(good, "good", eject=True)
    report = registry.eject_flagged()
    assert report.failures == ["bad: no"]
    assert torch.sim.memory_allocated(1) == 0
    assert registry.models() == []


def test_threads_eject_each_model_once() -> None:
    registry = Registry()
    count = 40
    for i in range(count):
        registry.manage(placed_model("sim:0", "sim:1"), f"m{i}", eject=i % 2 == 0)
    ejected: list[str] = []
    lock = threading.Lock()

    def work() -> None:
        for _ in range(5):
            report = registry.eject_flagged()
            with lock:
                ejected.extend(names(report))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(ejected) == sorted(f"m{i}" for i in range(0, count, 2))
    assert len(registry.models()) == count // 2


class Fake:
    """What the registry asks of a placed model."""

    def __init__(self, asked: Callable[[], dict[str, int]] = lambda: {"sim:0": 1}) -> None:
        self._asked = asked
        self.unloaded = 0

    def bytes_per_device(self) -> dict[str, int]:
        return self._asked()

    def unload(self) -> None:
        self.unloaded += 1


def quiet() -> Registry:
    return Registry(measure=lambda names: dict.fromkeys(names, 0), clear=lambda _: None)


def test_a_model_ejected_by_another_thread_meanwhile_does_not_stop_this_eject() -> None:
    registry = quiet()
    handles = {}

    def eject_the_other() -> dict[str, int]:
        registry.eject(handles["other"])  # as another thread might, just now
        return {"sim:0": 1}

    flagged, other = Fake(eject_the_other), Fake()
    registry.manage(flagged, "flagged", eject=True)
    handles["other"] = registry.manage(other, "other")
    report = registry.eject_flagged()
    assert names(report) == ["flagged"]
    assert (flagged.unloaded, other.unloaded) == (1, 1)
    assert registry.models() == []


def test_a_model_that_cannot_tell_its_bytes_keeps_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail() -> dict[str, int]:
        raise RuntimeError("device lost")

    registry = quiet()
    flagged, broken = Fake(), Fake(fail)
    registry.manage(flagged, "flagged", eject=True)
    registry.manage(broken, "broken")
    assert names(registry.eject_flagged()) == ["flagged"]
    assert flagged.unloaded == 1
    assert "a model or device could not be asked: device lost" in caplog.text


def test_an_allocator_that_fails_does_not_keep_the_flagged_models(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(_: list[str]) -> dict[str, int]:
        raise RuntimeError("device lost")

    registry = Registry(measure=fail, clear=fail)
    flagged = Fake()
    registry.manage(flagged, "flagged", eject=True)
    report = registry.eject_flagged()
    assert flagged.unloaded == 1
    assert report.failures == ["clearing caches: device lost"]
    assert "a model or device could not be asked: device lost" in caplog.text


def test_models_die_with_their_registry_and_an_interrupt_waits_for_the_others() -> None:
    class Interrupted(Fake):
        def unload(self) -> None:
            raise KeyboardInterrupt

    registry = quiet()
    interrupted, other = Interrupted(), Fake()
    registry.manage(interrupted, "interrupted", eject=True)
    registry.manage(other, "other", eject=True)
    with pytest.raises(KeyboardInterrupt):
        registry.eject_flagged()
    assert other.unloaded == 1
    registry.manage(other, "other again")
    gone = [weakref.ref(x) for x in (registry, other, interrupted)]
    del registry, other, interrupted
    gc.collect()
    assert [x() for x in gone] == [None, None, None]
