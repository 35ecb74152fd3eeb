# SPDX-License-Identifier: Apache-2.0
"""One prompt put together from messages: order, gaps, odd data."""

from __future__ import annotations

import pathlib

from fake_runner import PROMPT
from hypothesis import given
from hypothesis import strategies as st

from distorch.tools.e2e.events import Outcome, Status, Tracker
from distorch.tools.e2e.workflow import Workflow

NODES = Workflow(pathlib.Path("x"), PROMPT).nodes


def told(*messages: tuple[str, dict]) -> Tracker:
    tracker = Tracker("p", NODES)
    for now, (kind, data) in enumerate(messages):
        tracker.feed({"type": kind, "data": {"prompt_id": "p", **data}}, float(now))
    return tracker


def test_nodes_with_their_times() -> None:
    tracker = told(
        ("execution_start", {}),
        ("execution_cached", {"nodes": ["1"]}),
        ("executing", {"node": "2"}),
        ("progress", {"node": "2", "value": 3, "max": 20}),
        ("executing", {"node": "3"}),
        ("execution_success", {}),
        ("executing", {"node": None}),
    )
    assert [(r.node.id, r.seconds, r.value, r.most) for r in tracker.runs] == [
        ("2", 2.0, 3.0, 20.0), ("3", 1.0, 0.0, 0.0),
    ]  # fmt: skip
    assert (tracker.started, tracker.cached, tracker.current) == (0.0, {"1"}, None)
    assert (tracker.outcome, tracker.ended) == (Outcome(Status.SUCCESS), True)


def test_a_node_of_a_loop_is_shown_as_the_one_of_the_file() -> None:
    tracker = told(
        ("executing", {"node": "2.0.0.1", "display_node": "2"}),
        ("executing", {"node": "9", "display_node": "9"}),
    )
    assert [(r.node.id, r.node.kind) for r in tracker.runs] == [("2", "KSampler"), ("9", "?")]


def test_progress_of_a_node_whose_begin_was_missed() -> None:
    tracker = told(("progress", {"node": "2", "value": 1, "max": 4}))
    assert tracker.current is not None
    assert (tracker.current.node.kind, tracker.current.most) == ("KSampler", 4.0)


def test_other_prompts_and_kinds_change_nothing() -> None:
    tracker = Tracker("p", NODES)
    for message in (
        {"type": "status", "data": {"status": {}}},
        {"type": "executing", "data": {"node": "1", "prompt_id": "q"}},
        {"type": "executing"},
        {"type": "executing", "data": None},
        {"type": "new_kind", "data": {"prompt_id": "p"}},
    ):
        assert tracker.feed(message, 0.0) is False
    assert tracker.runs == []


def test_history_fills_what_was_missed() -> None:
    tracker = told(("executing", {"node": "2"}))
    error = {
        "node_id": "2",
        "node_type": "KSampler",
        "exception_message": "boom\n",
        "exception_type": "ValueError",
    }
    messages = [["execution_cached", {"nodes": ["1"]}], ["execution_error", error]]
    outcome = tracker.read_history({"status": {"status_str": "error", "messages": messages}}, 9.0)
    assert outcome == Outcome(Status.FAILED, "node 2 (KSampler): boom", "2", "ValueError")
    assert (tracker.cached, tracker.runs[0].ended) == ({"1"}, 9.0)


def test_history_without_messages() -> None:
    assert told().read_history({"status": {"status_str": "success"}}, 0.0).status is Status.SUCCESS
    found = told().read_history({"status": {"status_str": "error"}}, 0.0)
    assert found == Outcome(Status.FAILED, "ComfyUI recorded an error and no message")
    assert told().read_history({"status": None}, 0.0).status is Status.FAILED


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
KINDS = st.sampled_from(
    [
        "execution_start",
        "execution_cached",
        "executing",
        "progress",
        "execution_error",
        "execution_interrupted",
    ]
)
KEYS = (
    "node",
    "nodes",
    "value",
    "max",
    "node_id",
    "node_type",
    "exception_message",
    "exception_type",
)
DATA = st.fixed_dictionaries({"prompt_id": st.just("p")}, optional=dict.fromkeys(KEYS, JSON))


@given(st.lists(st.tuples(KINDS, DATA), max_size=6), JSON)
def test_odd_data_never_raises(messages, status) -> None:
    tracker = Tracker("p", NODES)
    for kind, data in messages:
        tracker.feed({"type": kind, "data": data}, 0.0)
    assert isinstance(tracker.read_history({"status": status}, 1.0), Outcome)
    assert tracker.current is None
