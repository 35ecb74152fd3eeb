# SPDX-License-Identifier: Apache-2.0
"""A load or unload of ours is in the scan's very next answer: nobody waits until the last one is too old."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import comfy_standin
import pytest
import torch

from distorch import memory
from distorch.allocation import parse
from distorch.memory import scanning

MB = 2**20


def held(model: torch.nn.Module) -> dict[str, int]:
    """The bytes of a model's storages on each device; a slab has some between its tensors."""
    whole = [t.untyped_storage() for t in (*model.parameters(), *model.buffers())]
    found: dict[str, int] = {}
    for storage in {s.data_ptr(): s for s in whole}.values():
        found[str(storage.device)] = found.get(str(storage.device), 0) + storage.nbytes()
    return found


class Scan:
    """The process's scan, with answers that do not grow old within a test."""

    def __init__(self, pack: Any, comfy: comfy_standin.StandIn) -> None:
        self.adopt = pack.load("patches.placing.adopt").adopt
        self.request = pack.load("patches.placing.request").Request
        self.donors = pack.load("patches.placing.donors")
        self.now = pack.load("patches.ejecting.unload_now")
        self.comfy = comfy

    def adopted(self, text: str = "sim:1,300kb;cpu,300kb;sim:0,*#sim:0") -> Any:
        """A model of ours on the host, already in an answer."""
        patcher = self.adopt(
            self.comfy.model(), self.request("sim:0", parse(text, kinds=["sim"]), "node", "file")
        )
        assert list(self.bytes_of(patcher.model)) == ["cpu"]
        return patcher

    def bytes_of(self, model: torch.nn.Module) -> dict[str, int]:
        """What the next answer says of a model; nothing if it is not there."""
        rows = memory.rows()
        assert memory.rows() is rows, "the answer is cached"
        mine = [row.bytes for row in rows if memory.scanner().module(row.id) is model]
        return dict(mine[0]) if mine else {}

    def entry(self, patcher: Any) -> Any:
        return next(e for e in self.comfy.mm.current_loaded_models if e.model is patcher)


@pytest.fixture
def seen(
    pack: Any, comfy: comfy_standin.StandIn, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Scan]:
    monkeypatch.setattr(memory.scanner(), "cache_seconds", 3600.0)
    yield Scan(pack, comfy)
    comfy.mm.current_loaded_models.clear()
    gc.collect()


def test_a_load_and_an_unload_are_in_the_next_answer(seen: Scan) -> None:
    patcher = seen.adopted()
    seen.comfy.load_models_gpu([patcher])
    loaded = seen.bytes_of(patcher.model)
    assert set(loaded) == {"sim:0", "sim:1", "cpu"}
    assert loaded == held(patcher.model)
    assert seen.entry(patcher).model_unload()  # the core's own unload
    unloaded = seen.bytes_of(patcher.model)
    assert set(unloaded) == {"cpu"}
    assert unloaded == held(patcher.model)


def test_each_eviction_is_in_the_next_answer(seen: Scan) -> None:
    patcher = seen.adopted()
    seen.comfy.load_models_gpu([patcher])
    before = seen.bytes_of(patcher.model)
    (donor,) = [e for e in seen.comfy.mm.current_loaded_models if e.device.index == 1]
    assert donor.model_unload()
    after = seen.bytes_of(patcher.model)
    assert "sim:1" not in after
    assert after == held(patcher.model)
    assert patcher.partially_unload(torch.device("cpu"), before["sim:0"]) > 0
    assert seen.bytes_of(patcher.model) == held(patcher.model) != after


def test_models_of_others_that_we_unload_are_in_the_next_answer(seen: Scan) -> None:
    patcher = seen.comfy.model()
    memory.note_loaded(patcher)
    whole = seen.bytes_of(patcher.model)
    seen.comfy.load_models_gpu([patcher])
    assert seen.bytes_of(patcher.model) == whole, "the core's own load: when the answer is too old"
    memory.invalidate()
    assert set(seen.bytes_of(patcher.model)) == {"sim:0"}
    seen.now.run(seen.now.EVERYTHING, None)
    assert seen.bytes_of(patcher.model) == whole
    seen.comfy.load_models_gpu([patcher])
    memory.invalidate()
    assert set(seen.bytes_of(patcher.model)) == {"sim:0"}
    seen.donors.unload(seen.entry(patcher))
    assert seen.bytes_of(patcher.model) == whole


def test_a_model_of_ours_that_dies_is_not_in_the_next_answer(seen: Scan) -> None:
    patcher = seen.adopted()
    number = next(r.id for r in memory.rows() if memory.scanner().module(r.id) is patcher.model)
    del patcher
    gc.collect()
    assert all(row.id != number for row in memory.rows())


def test_without_news_an_answer_is_given_for_one_second(
    pack: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ages and bytes that hold where nobody chose others."""
    now = [1000.0]
    settings = pack.load("patches.settings")
    made = memory.Scanner()
    made.install_hooks()
    clock = SimpleNamespace(
        monotonic=lambda: now[0], perf_counter=time.perf_counter, time=time.time
    )
    monkeypatch.setattr(scanning, "time", clock)
    try:
        first = made.rows()
        late = torch.nn.Linear(3, 3)
        now[0] += 0.999
        assert made.rows() is first
        now[0] += 0.002
        assert any(made.module(row.id) is late for row in made.rows())
    finally:
        made.stop()
    assert settings.CHOICES["scan_interval"].default == made.cache_seconds == 1
    assert memory.memory_changed({"sim:0": 0}, {"sim:0": 100 * MB + 1})
    assert not memory.memory_changed({"sim:0": 100 * MB}, {"sim:0": 0})
