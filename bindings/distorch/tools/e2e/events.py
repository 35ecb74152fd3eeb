# SPDX-License-Identifier: Apache-2.0
"""What ComfyUI says about one prompt, put together: pure data, fed by websocket messages and by /history."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

from distorch.tools.e2e.workflow import Node


class Status(str, enum.Enum):
    """How a scene ended."""

    SUCCESS = "success"
    REFUSED = "validation error"
    FAILED = "execution error"
    INTERRUPTED = "interrupted"  # by somebody else
    TIMEOUT = "timeout"
    LOST = "server lost"
    STOPPED = "stopped"  # by Ctrl-C or a signal to this program
    NOT_RUN = "not run"


@dataclass(frozen=True)
class Outcome:
    """The end of a prompt. `node` and `error` (the exception's class) are None where they do not apply."""

    status: Status
    message: str = ""
    node: str | None = None
    error: str | None = None


@dataclass
class NodeRun:
    """A node that ran. Times are of this machine's monotonic clock; `ended` is None while it runs."""

    node: Node
    started: float
    ended: float | None = None
    value: float = 0.0
    most: float = 0.0

    @property
    def seconds(self) -> float | None:
        """How long it took."""
        return None if self.ended is None else self.ended - self.started


class Tracker:
    """Follows one prompt. `feed` and `read_history` tell it what came; it never raises for odd data."""

    def __init__(self, prompt_id: str, nodes: dict[str, Node]) -> None:
        self.prompt_id = prompt_id
        self.started: float | None = None
        self.cached: set[str] = set()
        self.runs: list[NodeRun] = []
        self.outcome: Outcome | None = None
        self.ended = False  # the server is through with it: /history has it
        self.nodes = nodes

    @property
    def current(self) -> NodeRun | None:
        """The node that runs now."""
        return self.runs[-1] if self.runs and self.runs[-1].ended is None else None

    def feed(self, message: dict[str, Any], now: float) -> bool:
        """Take a message; return whether anything about this prompt changed."""
        kind, data = message.get("type"), message.get("data")
        if not isinstance(data, dict) or data.get("prompt_id") != self.prompt_id:
            return False
        if kind == "execution_start":
            self.begin(now)
        elif kind == "execution_cached":
            self._note_cached(data)
        elif kind == "executing":
            self._executing(data, now)
        elif kind == "progress":
            self._progress(data, now)
        elif kind in ("execution_success", "execution_error", "execution_interrupted"):
            self._end_node(now)
            self.outcome = _outcome(str(kind), data)
        else:
            return False
        return True

    def read_history(self, entry: dict[str, Any], now: float) -> Outcome:
        """Take what /history says at the end; return the outcome."""
        self.begin(now)
        self._end_node(now)
        self.ended = True
        status = entry.get("status")
        status = status if isinstance(status, dict) else {}
        messages = status.get("messages")
        for row in messages if isinstance(messages, list) else []:
            if isinstance(row, list) and len(row) == 2 and isinstance(row[1], dict):
                if row[0] == "execution_cached":
                    self._note_cached(row[1])
                elif row[0] in ("execution_success", "execution_error", "execution_interrupted"):
                    self.outcome = _outcome(row[0], row[1])
        if self.outcome is None:
            good = status.get("status_str") == "success"
            self.outcome = (
                Outcome(Status.SUCCESS)
                if good
                else Outcome(Status.FAILED, "ComfyUI recorded an error and no message")
            )
        return self.outcome

    def begin(self, now: float) -> None:
        """The server works on it."""
        if self.started is None:
            self.started = now

    def _note_cached(self, data: dict[str, Any]) -> None:
        nodes = data.get("nodes")
        self.cached |= {str(n) for n in nodes} if isinstance(nodes, list) else set()

    def _executing(self, data: dict[str, Any], now: float) -> None:
        node = data.get("node")
        self._end_node(now)
        if node is None:
            self.ended = True
            return
        self.begin(now)
        # A node made by another one (a loop, a subgraph) is shown as the one that the file has.
        shown = next(
            (str(k) for k in (node, data.get("display_node")) if str(k) in self.nodes), str(node)
        )
        self.runs.append(NodeRun(self.nodes.get(shown, Node(shown, "?", "?")), now))

    def _progress(self, data: dict[str, Any], now: float) -> None:
        value, most = data.get("value"), data.get("max")
        node = data.get("node")
        if self.current is None and node is not None:  # the message before was lost
            self._executing({"node": node}, now)
        if self.current is not None and _number(value) and _number(most):
            assert isinstance(value, (int, float))
            assert isinstance(most, (int, float))
            self.current.value, self.current.most = float(value), float(most)

    def _end_node(self, now: float) -> None:
        if self.current is not None:
            self.current.ended = now


def _number(found: object) -> bool:
    return isinstance(found, (int, float)) and not isinstance(found, bool)


def _outcome(kind: str, data: dict[str, Any]) -> Outcome:
    if kind == "execution_success":
        return Outcome(Status.SUCCESS)
    node = None if data.get("node_id") is None else str(data["node_id"])
    where = f"node {node} ({data.get('node_type', '?')})"
    if kind == "execution_interrupted":
        return Outcome(Status.INTERRUPTED, f"{where}: interrupted, not by this program", node)
    words = str(data.get("exception_message") or "no message").strip()
    error = str(data.get("exception_type") or "") or None
    return Outcome(Status.FAILED, f"{where}: {words}", node, error)
