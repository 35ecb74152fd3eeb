# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools
import json
import pathlib
import threading
from typing import Any

import pytest

from distorch.memory.recorder import Held, RunRecorder, arrivals

SCHEMAS = json.loads(
    (pathlib.Path(__file__).resolve().parents[3] / "docs/openapi.json").read_text()
)["components"]["schemas"]


class Windows:
    """A device whose use the test sets; windows see the most of it."""

    def __init__(self) -> None:
        self.open: dict[int, int] = {}
        self._ids = itertools.count(1)
        self.used = 0

    def use(self, used: int) -> None:
        self.used = used
        self.open = {k: max(v, used) for k, v in self.open.items()}

    def open_window(self) -> int:
        window = next(self._ids)
        self.open[window] = self.used
        return window

    def close_window(self, window: int) -> dict[str, int]:
        return {"cuda:0": self.open.pop(window)} if window in self.open else {}

    def window_peaks(self, window: int) -> dict[str, int]:
        return {"cuda:0": self.open[window]}


class Server:
    """A recorder with everything that it watches."""

    def __init__(self, **more: Any) -> None:
        self.windows, self.models, self.told = Windows(), {}, []
        self.recorder = RunRecorder(
            self.windows, lambda: self.models, clock=lambda: float(next(self._time)), **more
        )
        self._time = itertools.count(100)
        self.recorder.listeners.append(self.told.append)

    def node(self, prompt: str, node: str, kind: str = "Kind", peak: int = 0) -> None:
        self.recorder.node_started(prompt, node, kind)
        before = self.windows.used
        self.windows.use(peak)
        self.windows.use(before)
        self.recorder.node_ended(prompt, node)


def test_a_run_has_the_shape_and_figures_of_the_description() -> None:
    server = Server()
    server.recorder.prompt_started("p")
    server.node("p", "1", "UNETLoader", peak=5)
    server.recorder.node_started("p", "2", "KSampler")
    server.windows.use(70)
    server.models[3] = Held("wan", "checkpoint", {"cuda:0": 60, "cpu": 4})
    server.windows.use(60)
    server.recorder.node_ended("p", "2")
    server.recorder.prompt_ended("p", "success")
    (run,) = server.recorder.runs()
    assert run == {
        "prompt": "p", "started": 100.0, "ended": 105.0, "status": "success", "peak": {"cuda:0": 70},
        "nodes": [
            {"node": "1", "kind": "UNETLoader", "started": 101.0, "ended": 102.0,
             "peak": {"cuda:0": 5}, "growth": {"cuda:0": 5}, "loaded": []},
            {"node": "2", "kind": "KSampler", "started": 103.0, "ended": 104.0,
             "peak": {"cuda:0": 70}, "growth": {"cuda:0": 70},
             "loaded": [{"name": "wan", "type": "checkpoint", "bytes": {"cuda:0": 60, "cpu": 4}}]},
        ],
    }  # fmt: skip
    assert sorted(run) == sorted(SCHEMAS["Run"]["required"])
    assert sorted(run["nodes"][0]) == sorted(SCHEMAS["NodeRun"]["required"])
    assert server.told[-1] == run
    assert [told["nodes"][-1]["node"] for told in server.told] == ["1", "2", "2"]
    assert server.windows.open == {}
    totals = server.recorder.totals
    assert (totals.runs, totals.nodes) == ({"success": 1}, {"UNETLoader": 1, "KSampler": 1})
    assert totals.node_seconds == {"UNETLoader": 1.0, "KSampler": 1.0}
    assert totals.loaded == {"cuda:0": 60, "cpu": 4}
    assert totals.last_peak == {"cuda:0": 70}


def test_what_runs_is_shown_with_its_peak_so_far() -> None:
    server = Server()
    server.recorder.prompt_started("p")
    server.recorder.node_started("p", "1", "KSampler")
    server.windows.use(9)
    (run,) = server.recorder.runs()
    assert (run["status"], run["ended"], run["peak"]) == ("running", None, {"cuda:0": 9})
    assert (run["nodes"][0]["ended"], run["nodes"][0]["peak"]) == (None, {"cuda:0": 9})
    running = server.recorder.running()
    assert running is not None
    assert running.kind == "KSampler"
    server.recorder.prompt_ended("p", "interrupted")
    (run,) = server.recorder.runs()
    assert run["status"] == "interrupted"
    assert run["nodes"][0]["ended"] is not None, "a node ends with its prompt"
    assert server.recorder.running() is None
    assert server.windows.open == {}


def test_a_prompt_that_never_ended_ends_with_the_next() -> None:
    server = Server()
    server.recorder.prompt_started("lost")
    server.recorder.node_started("lost", "1", "Kind")
    server.recorder.prompt_started("next")
    assert [(r["prompt"], r["status"]) for r in server.recorder.runs()] == [
        ("lost", "error"),
        ("next", "running"),
    ]


def test_events_in_a_wrong_order_are_no_error() -> None:
    server = Server()
    server.recorder.node_ended("p", "1")
    server.recorder.prompt_ended("p", "success")
    assert server.recorder.runs() == []
    server.node("q", "1")  # the start of its prompt was missed
    assert [r["prompt"] for r in server.recorder.runs()] == ["q"]


def test_runs_are_chosen_by_time_and_prompt() -> None:
    server = Server()
    for prompt in ("a", "b", "c"):
        server.recorder.prompt_started(prompt)
        server.recorder.prompt_ended(prompt, "success")
    server.recorder.prompt_started("d")
    ends = {r["prompt"]: r["ended"] for r in server.recorder.runs()}
    assert [r["prompt"] for r in server.recorder.runs(since=ends["b"])] == ["b", "c", "d"]
    assert [r["prompt"] for r in server.recorder.runs(since=1e9)] == ["d"], "it still runs"
    assert [r["prompt"] for r in server.recorder.runs(prompt="b")] == ["b"]
    assert server.recorder.runs(prompt="x") == []


def test_what_is_kept_is_bounded() -> None:
    server = Server(kept_runs=3, kept_nodes=2)
    for index in range(10):
        for node in range(5):
            server.node(str(index), str(node))
        server.recorder.prompt_ended(str(index), "success")
    runs = server.recorder.runs()
    assert [r["prompt"] for r in runs] == ["7", "8", "9"]
    assert [[n["node"] for n in r["nodes"]] for r in runs] == [["0", "1"]] * 3
    assert server.recorder.totals.nodes["Kind"] == 50, "counted all the same"


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ({}, {"cpu": 10}, {"cpu": 10}),
        ({"cpu": 10}, {"cuda:0": 10}, {"cuda:0": 10}),
        ({"cpu": 10}, {"cuda:0": 6, "cuda:1": 4}, {"cuda:0": 6, "cuda:1": 4}),
        ({"cuda:0": 10}, {"cpu": 10}, None),  # unloaded
        ({"cuda:0": 10}, {"cuda:0": 4, "cpu": 6}, None),  # in part
        ({"cuda:0": 4, "cpu": 6}, {"cuda:0": 10}, {"cuda:0": 6}),
        ({"cuda:0": 10}, {"cuda:0": 10}, None),
        ({"cpu": 10}, {"cpu": 10, "cuda:0": 8}, {"cuda:0": 8}),  # the host copy stays
    ],
)
def test_what_arrived_is_what_a_model_has_more_of(
    before: dict[str, int], after: dict[str, int], expected: dict[str, int] | None
) -> None:
    old = {1: Held("m", "vae", before)} if before else {}
    found = arrivals(old, {1: Held("m", "vae", after)})
    assert [dict(h.bytes) for h in found] == ([expected] if expected else [])


def test_readers_and_events_may_come_from_different_threads() -> None:
    server = Server(kept_runs=5)
    stop = threading.Event()
    errors: list[BaseException] = []

    def read() -> None:
        try:
            while not stop.is_set():
                json.dumps(server.recorder.runs())
                server.recorder.running()
        except BaseException as error:  # told to the test
            errors.append(error)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for index in range(200):
        server.node(str(index), "1")
        server.recorder.prompt_ended(str(index), "success")
    stop.set()
    for reader in readers:
        reader.join()
    assert errors == []
