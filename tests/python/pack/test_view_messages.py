# SPDX-License-Identifier: Apache-2.0
"""What the server tells pages: its messages, and that its answers are what docs/openapi.json describes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import comfy_standin
import pytest
import torch
from pack_import import ROOT
from waiting import wait_for

from distorch.allocation import parse
from distorch.memory import sampler as sampling

MB = 2**20
SCHEMAS = json.loads((ROOT / "docs/openapi.json").read_text())["components"]["schemas"]


def check(data: Any, schema: dict[str, Any], where: str) -> None:
    """Every field that is required is there, and none that is not described."""
    schema = SCHEMAS[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
    if isinstance(data, list):
        for value in data:
            check(value, schema["items"], f"{where}[]")
    elif isinstance(data, dict) and "properties" in schema:
        missing = set(schema.get("required", ())) - data.keys()
        assert not missing, f"{where}: {missing} missing"
        extra = data.keys() - schema["properties"].keys()
        assert not extra, f"{where}: {extra} not described"
        for name, value in data.items():
            check(value, schema["properties"][name], f"{where}.{name}")


class Server:
    """The memory view of a server with one open page; the worker does its work when told to."""

    def __init__(self, pack: Any, comfy: comfy_standin.StandIn) -> None:
        self.sent: list[tuple[str, Any]] = []
        self.sockets: dict[str, object] = {"page": object()}
        self.prompt_queue = comfy.queue
        self.prompt_queue.get_tasks_remaining = lambda: 0
        self.view = pack.load("patches.view.memory_view").MemoryView(self, comfy.mm)
        self.view.watch("page", "tab")

    def send_sync(self, event: str, data: Any, _page: str | None = None) -> None:
        self.sent.append((event, json.loads(json.dumps(data))))

    def told(self, event: str) -> list[Any]:
        """What was sent under this name; each has the fields that the page is promised."""
        found = [data for name, data in self.sent if name == event]
        for data in found:
            check(data, SCHEMAS[event.removeprefix("distorch.").title()], event)
        return found

    def work(self) -> None:
        """What the worker does between prompts."""
        self.view.actions.jobs._run_waiting()
        self.view.actions.jobs._finish()


@pytest.fixture
def sampler(comfy: comfy_standin.StandIn, monkeypatch: pytest.MonkeyPatch) -> sampling.Sampler:
    """The process's sampler for this test: no thread of it runs, and a sample holds for an hour."""
    made = sampling.Sampler(interval=3600)
    monkeypatch.setattr(sampling, "sampler", lambda: made)
    return made


@pytest.fixture
def server(pack: Any, comfy: comfy_standin.StandIn, sampler: sampling.Sampler) -> Iterator[Server]:
    yield Server(pack, comfy)
    comfy.mm.current_loaded_models.clear()


def test_a_sample_is_sent_when_memory_has_moved(server: Server, sampler: sampling.Sampler) -> None:
    assert server.view.updates.push_sample() is False, "there is none yet"
    sampler.take_sample()
    assert server.view.updates.push_sample() is True
    assert server.view.updates.push_sample() is False
    held = torch.empty(8 * MB, dtype=torch.uint8, device="sim:1")
    sampler.take_sample()
    assert server.view.updates.push_sample() is True
    first, second = server.told("distorch.sample")
    assert first["devices"]["sim:1"]["used"] == 0
    assert second["devices"]["sim:1"]["used"] == second["devices"]["sim:1"]["peak"] == held.nbytes
    assert second == server.view.history(60)["samples"][-1]
    server.sockets.clear()
    del held
    sampler.take_sample()
    assert server.view.updates.push_sample() is False, "nobody would read it"


def test_the_thread_sends_samples_by_itself(server: Server, sampler: sampling.Sampler) -> None:
    sampler.take_sample()
    server.view.updates.start()
    try:
        wait_for(lambda: server.told("distorch.sample"))
        wait_for(lambda: any(event == "distorch.update" for event, _ in server.sent))
    finally:
        server.view.updates.stop()
    assert len(server.told("distorch.sample")) == 1


def test_a_run_is_sent_while_it_goes_on_and_when_it_has_ended(server: Server) -> None:
    view = server.view
    view.message("execution_start", {"prompt_id": "p"})
    view.node_started("p", "3", "KSampler", {})
    held = torch.empty(8 * MB, dtype=torch.uint8, device="sim:1")
    view.node_ended("p", "3", [])
    del held
    assert view.updates.push_runs() == 1
    view.message("execution_success", {"prompt_id": "p"})
    assert view.updates.push_runs() == 1
    first, last = server.told("distorch.run")
    assert (first["prompt"], first["status"], first["ended"]) == ("p", "running", None)
    assert (last["prompt"], last["status"]) == ("p", "success")
    (node,) = last["nodes"]
    assert (node["node"], node["kind"], node["peak"]["sim:1"]) == ("3", "KSampler", 8 * MB)
    assert last == view.history(60, "p")["runs"][0]


def test_a_report_is_sent_of_each_job_when_it_is_done(
    server: Server, comfy: comfy_standin.StandIn
) -> None:
    view, patcher = server.view, comfy.model()
    view._scanner.note_loaded(patcher)
    comfy.mm.load_models_gpu([patcher])
    view._scanner.invalidate()
    used = torch.sim.memory_allocated(0)
    found = view.models()["models"]
    number = next(m["id"] for m in found if view._scanner.module(m["id"]) is patcher.model)
    eject, clear = view.eject([number]), view.clear_cache(["sim:1"])
    assert server.told("distorch.report") == [], "the worker has not come past"
    server.work()
    reports = server.told("distorch.report")
    assert [r["ticket"] for r in reports] == [eject["ticket"], clear["ticket"]]
    assert [(r["kind"], r["state"]) for r in reports] == [
        ("eject", "done"),
        ("clear_cache", "done"),
    ]
    assert reports[0]["freed"] == {"sim:0": used}
    assert reports[1]["freed"] == {}
    assert reports == [view.report(r["ticket"]) for r in reports]
    assert view.updates._wake.is_set(), "the update with the new rows follows at once"


def test_answers_have_the_fields_that_are_described(
    server: Server, pack: Any, comfy: comfy_standin.StandIn, sampler: sampling.Sampler
) -> None:
    """With a model of ours over three devices and one of others."""
    view, request = server.view, pack.load("patches.placing.request").Request
    ours, others = comfy.model(), comfy.model()
    spec = parse("sim:1,300kb;cpu,300kb;sim:0,*#sim:0", kinds=["sim"])
    pack.load("patches.placing.adopt").adopt(ours, request("sim:0", spec, "node", "file"))
    comfy.mm.load_models_gpu([ours, others])
    sampler.take_sample()
    view.message("execution_start", {"prompt_id": "p"})
    view.node_started("p", "3", "KSampler", {})
    view.node_ended("p", "3", [])
    answers = {
        "Models": view.models(), "Devices": view.devices(), "Placements": view.placements(),
        "History": view.history(60), "Profiler": view.profiler(),
    }  # fmt: skip
    for name, answer in answers.items():
        check(json.loads(json.dumps(answer)), SCHEMAS[name], name)
    assert len(answers["Models"]["models"]) >= 2
    (placement,) = [p for p in answers["Placements"]["placements"] if p["key"] == id(ours.model)]
    assert {block["how"] for block in placement["blocks"]} >= {"resident", "streamed"}
    assert answers["History"]["samples"]
    assert answers["History"]["runs"][0]["nodes"]
