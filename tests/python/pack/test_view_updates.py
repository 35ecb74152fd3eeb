# SPDX-License-Identifier: Apache-2.0
"""What open pages are told, and that it is no more than what changed."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest


def placement(key: int, **more: Any) -> dict[str, Any]:
    blocks = [{"name": f"b{i}", "device": "cpu", "how": "streamed"} for i in range(3)]
    return {"key": key, "blocks": blocks, "measured_step_ms": None, **more}


class Page:
    """The updates of a server with one open page."""

    def __init__(self, pack: Any) -> None:
        self.sent: list[tuple[str, Any]] = []
        self.state: dict[str, Any] = {
            "models": [{"id": 1, "last_used": 0.0}],
            "devices": [{"device": "sim:0", "models": 0, "tensors": 0, "unused": 0, "free": 0}],
            "placements": [placement(1), placement(2)],
        }
        server = SimpleNamespace(
            sockets={"a": object()}, send_sync=lambda *message: self.sent.append(message)
        )
        self.server = server
        self.watchers = pack.load("patches.view.watchers").Watchers(server)
        self.watchers.watch("a", "tab")
        self.updates = pack.load("patches.view.updates").Updates(
            self.watchers, None, lambda: copy.deepcopy(self.state), lambda: None, lambda: None
        )

    def told(self) -> Any:
        """What the next look sends; None for nothing."""
        self.sent.clear()
        return self.sent[0][1] if self.updates.push_update() else None


@pytest.fixture
def page(pack: Any) -> Page:
    return Page(pack)


def test_the_first_update_has_everything_and_the_next_nothing(page: Page) -> None:
    assert page.told() == page.state
    assert page.told() is None


def test_only_the_parts_that_differ_are_told(page: Page) -> None:
    page.told()
    page.state["models"][0]["last_used"] = 5.0
    assert page.told() == {"models": [{"id": 1, "last_used": 5.0}]}
    page.state["devices"][0]["models"] = 2**20
    assert list(page.told()) == ["devices"]


def test_blocks_are_told_again_only_when_they_moved(page: Page) -> None:
    page.told()
    page.state["placements"][0]["measured_step_ms"] = 12.5
    assert page.told() == {
        "placements": [{"key": 1, "measured_step_ms": 12.5}, {"key": 2, "measured_step_ms": None}]
    }
    page.state["placements"][1]["blocks"][0]["device"] = "sim:1"
    page.state["placements"].append(placement(3))
    first, second, third = page.told()["placements"]
    assert "blocks" not in first
    assert second["blocks"][0]["device"] == "sim:1"
    assert len(third["blocks"]) == 3
    page.state["placements"].pop(0)
    assert [p["key"] for p in page.told()["placements"]] == [2, 3]


def test_nothing_is_worked_out_without_a_page(page: Page) -> None:
    page.watchers.watch("a", "nothing")
    page.state = None  # type: ignore[assignment]
    assert page.updates.push_update() is False
    page.watchers.watch("a", "tab")
    page.server.sockets.clear()
    assert page.updates.push_update() is False
    assert page.sent == []


def test_badges_are_told_of_whole_percents_and_of_models_only(page: Page) -> None:
    page.watchers.watch("a", "badges")
    page.state["models"] = [{"id": 1, "name": "wan", "bytes": {"sim:0": 1}, "last_used": 0.0}]
    page.state["devices"] = [
        {"device": "sim:0", "models": 0, "tensors": 0, "unused": 0, "free": 900, "total": 1000},
        {"device": "cpu", "models": 0, "tensors": 0, "unused": 0, "free": 10, "total": 1000},
    ]
    assert list(page.told()) == ["models", "devices"]
    page.state["devices"][0]["free"] = 901
    page.state["devices"][1]["free"] = 500
    page.state["models"][0]["last_used"] = 9.0
    page.state["placements"][0]["measured_step_ms"] = 1.0
    assert page.told() is None
    page.state["devices"][0]["free"] = 880
    assert page.told()["devices"][0]["free"] == 880
    page.updates.note_run({"prompt": "a", "status": "running", "nodes": []})
    assert page.updates.push_runs() == 0


def test_each_page_is_told_what_it_shows(page: Page) -> None:
    page.server.sockets["b"] = object()
    page.watchers.watch("b", "badges")
    page.state["devices"][0]["total"] = 1000
    page.state["models"][0] |= {"name": "wan", "bytes": {}}
    page.updates.push_update()
    assert [(client, "placements" in data) for _, data, client in page.sent] == [
        ("a", True),
        ("b", False),
    ]


def test_pages_that_are_gone_are_forgotten(page: Page) -> None:
    for number in range(1000):
        page.watchers.watch(f"old {number}", "tab")
    assert len(page.watchers._levels) <= 256


def test_a_run_is_told_once_a_look_and_at_once_when_it_has_ended(page: Page) -> None:
    for nodes in range(1, 501):
        page.updates.note_run({"prompt": "a", "status": "running", "nodes": [{}] * nodes})
    assert page.sent == []
    assert not page.updates._wake.is_set()
    page.updates.note_run({"prompt": "a", "status": "success", "nodes": [{}] * 500})
    page.updates.note_run({"prompt": "b", "status": "running", "nodes": []})
    assert page.updates._wake.is_set()
    assert page.updates.push_runs() == 2
    told = [(event, run["prompt"], run["status"]) for event, run, _ in page.sent]
    assert told == [("distorch.run", "a", "success"), ("distorch.run", "b", "running")]
    assert page.updates.push_runs() == 0
    page.server.sockets.clear()
    page.updates.note_run({"prompt": "b", "status": "success", "nodes": []})
    assert page.updates.push_runs() == 0
