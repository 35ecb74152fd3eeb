# SPDX-License-Identifier: Apache-2.0
"""The switches and buttons of the memory view, beside the stand-in for ComfyUI."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import comfy_standin
import pytest

from distorch.allocation import parse
from distorch.memory import Scanner

FLAG = "_mgpu_unload_distorch_model"


class View:
    """The actions on a scanner of their own, and the models in it."""

    def __init__(self, pack: Any, comfy: comfy_standin.StandIn) -> None:
        self.keep = pack.load("patches.ejecting.keep")
        self.lifecycle = pack.load("patches.seams.lifecycle")
        self.request = pack.load("patches.placing.request").Request
        self.routes = pack.load("patches.view.server_routes")
        self.facts = pack.load("patches.view.facts")
        self.keep.install()
        self.comfy, self.queue = comfy, comfy.queue
        self.queue.get_tasks_remaining = lambda: 0
        self.scanner = Scanner()
        self.scanner.add_management(self.facts.management_of)
        server = SimpleNamespace(prompt_queue=comfy.queue)
        self.actions = pack.load("patches.view.actions").Actions(server, comfy.mm, self.scanner)

    def load(self, *, keep: bool | None = None) -> Any:
        """A model on sim:0; with `keep` as a loader of ours does."""
        patcher = self.comfy.model()
        if keep is not None:
            request = self.request(
                "sim:0", parse("sim:0,*#sim:0", kinds=["sim"]), "m", "m", keep_loaded=keep
            )
            setattr(patcher.model, FLAG, not keep)
            self.lifecycle.tell(self.lifecycle.adopted, patcher, request)
            self.lifecycle.tell(self.lifecycle.loaded, request, "n", {}, (patcher,))
        self.comfy.mm.load_models_gpu([patcher])
        return patcher

    def row(self, patcher: Any) -> Any:
        self.scanner.note_loaded(patcher)
        found = self.scanner.rows(max_age=0)
        return next(r for r in found if self.scanner.module(r.id) is patcher.model)

    def work(self) -> None:
        """What the worker does between prompts."""
        self.actions.jobs._run_waiting()
        self.actions.jobs._finish()

    def loaded(self, patcher: Any) -> bool:
        return any(e.model is patcher for e in self.comfy.mm.current_loaded_models)


@pytest.fixture
def view(pack: Any, comfy: comfy_standin.StandIn) -> Iterator[View]:
    view = View(pack, comfy)
    yield view
    view.keep.uninstall()
    comfy.mm.current_loaded_models.clear()


def test_the_switch_shows_what_a_free_does(view: View) -> None:
    kept, let_go = view.load(keep=True), view.load(keep=False)
    assert view.actions.flag_of(view.row(kept)) is False
    assert view.actions.flag_of(view.row(let_go)) is True, "keep_loaded is off"
    view.actions.flag(view.row(let_go).id, False)
    assert view.actions.flag_of(view.row(let_go)) is False
    view.keep.release(kept.model)  # another part of the pack lets go of it
    assert view.actions.flag_of(view.row(kept)) is True


def test_the_switch_of_another_packs_model_holds_for_a_free_too(view: View) -> None:
    model = view.load()
    view.actions.flag(view.row(model).id, True)
    assert view.keep.is_flagged(model.model)
    assert view.actions.flag_of(view.row(model)) is True


def test_eject_flagged_takes_the_flagged_ones_that_are_loaded(view: View) -> None:
    stays, goes, gone = view.load(), view.load(), view.load()
    for model in (goes, gone):
        view.actions.flag(view.row(model).id, True)
    view.comfy.mm.current_loaded_models[:] = [
        e for e in view.comfy.mm.current_loaded_models if e.model is not gone
    ]
    answer = view.actions.eject(None)
    assert answer["models"] == [view.row(goes).id]
    assert (answer["when"], answer["will"].startswith("unload ")) == ("now", True)
    view.work()
    assert (view.loaded(stays), view.loaded(goes)) == (True, False)
    report = view.actions.jobs.report(answer["ticket"])
    assert (report["state"], report["details"]["unloaded"]) == ("done", ["Model"])


def test_nothing_flagged_is_loaded_nothing_is_promised(view: View) -> None:
    model = view.load()
    view.actions.flag(view.row(model).id, True)
    view.comfy.mm.current_loaded_models.clear()
    answer = view.actions.eject(None)
    assert answer == {
        "ticket": 0, "when": "never", "models": [],
        "will": "no model in use is flagged, nothing is unloaded",
    }  # fmt: skip


def test_what_cannot_be_ejected_is_refused_with_the_reason(view: View) -> None:
    model = view.load()
    number = view.row(model).id
    view.comfy.mm.current_loaded_models.clear()
    with pytest.raises(view.routes.UnknownModelError, match="is not loaded by ComfyUI"):
        view.actions.eject([number])
    with pytest.raises(view.routes.UnknownModelError, match="no live model has the id 987654"):
        view.actions.flag(987654, True)
    with pytest.raises(view.routes.UnknownModelError, match="there is no device 'sim:9'"):
        view.actions.clear_cache(["sim:9"])


def test_a_model_can_be_moved_off_its_device_and_stays_kept(view: View) -> None:
    model = view.load(keep=True)
    row = view.row(model)
    assert (view.actions.is_kept(row), view.actions.why_not(row)) == (True, "")
    answer = view.actions.eject([row.id])
    assert answer["will"].startswith("unload ")
    view.work()
    assert not view.loaded(model)
    assert view.keep.is_kept(model.model)
    assert not view.keep.is_flagged(model.model)


def test_a_model_that_lies_in_ram_has_nothing_to_move_off_a_gpu(view: View) -> None:
    """As a text encoder that ComfyUI runs on the processor: on its list, and nowhere but in RAM."""
    patcher = view.load()
    row = view.row(patcher)
    assert view.actions.why_not(row) == ""
    (entry,) = [e for e in view.comfy.mm.current_loaded_models if e.model is patcher]
    patcher.model.to("cpu")
    view.scanner.invalidate()
    assert view.loaded(patcher), entry
    assert view.actions.why_not(view.row(patcher)) == "It is in RAM already"


def test_a_kept_model_in_host_memory_is_let_go_of_when_that_is_asked(view: View) -> None:
    model = view.load(keep=True)
    number = view.row(model).id
    view.actions.eject([number])
    view.work()
    with pytest.raises(view.routes.UnknownModelError, match='host memory: ask with "let_go"'):
        view.actions.eject([number])
    answer = view.actions.eject([number], let_go=True)
    assert answer["will"].startswith("let go of ")
    view.work()
    report = view.actions.jobs.report(answer["ticket"])
    assert (report["state"], report["details"]["unloaded"]) == ("done", ["Model"])
    assert not view.keep.is_kept(model.model)
    assert view.keep.is_flagged(model.model)


def test_letting_go_takes_a_model_off_its_device_too(view: View) -> None:
    model = view.load(keep=True)
    view.actions.eject([view.row(model).id], let_go=True)
    view.work()
    assert (view.loaded(model), view.keep.is_kept(model.model)) == (False, False)
