# SPDX-License-Identifier: Apache-2.0
"""The memory view inside ComfyUI: what the routes answer, and who tells the scan what.

`install()` starts the scan, the sampler, the events and the jobs between prompts, registers the
routes and pushes changes to the browser. Nothing of ComfyUI's behaviour changes: it watches, and
acts only when a route is called.
"""

from __future__ import annotations

import time
from typing import Any

from distorch import allocation, placements, sampler, scan
from distorch.peaks import Ledger
from distorch.recorder import Held, RunRecorder
from distorch.step_times import StepTimes

from . import metrics
from .between_prompts import Job
from .node_events import ENDINGS, NodeEvents
from .server_routes import add_profiler_route, add_to_table
from .view_actions import Actions
from .view_facts import (
    dynamic_bytes,
    inventory,
    management_of,
    placement_json,
    resolve,
    staging_bytes,
)
from .view_updates import Updates

_installed: MemoryView | None = None


class MemoryView:
    """What the REST interface asks for (server_routes.Backend), of a running ComfyUI."""

    def __init__(self, server: Any, management: Any) -> None:
        """`management`: comfy.model_management."""
        self._server = server
        self._scanner = scan.scanner()
        self._sampler = sampler.sampler()
        self._steps = StepTimes()
        self._used: dict[str, int] = {}
        self.recorder = RunRecorder(self._sampler, self._inventory)
        self.actions = Actions(server, management, self._scanner)
        self.updates = Updates(server, self._sampler, self._state, self.actions.jobs.nudge)
        self.actions.jobs.finished.append(self._job_finished)
        self.actions.changed.append(self.updates.wake)
        self.recorder.listeners.append(self.updates.note_run)
        self.flag, self.eject = self.actions.flag, self.actions.eject
        self.free, self.clear_cache = self.actions.free, self.actions.clear_cache
        self.report = self.actions.jobs.report

    def models(self) -> dict[str, Any]:
        """Return every model that holds memory, largest first."""
        rows = self._scanner.rows()
        return {
            "models": [self._model(row) for row in rows],
            "scan_ms": round(self._scanner.last_scan_seconds * 1000, 3),
        }

    def devices(self) -> dict[str, Any]:
        """Return the bar of each device."""
        return {"devices": scan.device_view(self._scanner.rows())}

    def placements(self) -> dict[str, Any]:
        """Return where the blocks of each model of ours lie, in the model's order."""
        return {"placements": [placement_json(p, self._steps) for p in placements.placements()]}

    def history(self, seconds: int, prompt: str | None = None) -> dict[str, Any]:
        """Return the samples of the last `seconds` and what runs needed then (or one prompt's)."""
        since = time.time() - seconds
        return {
            "seconds": seconds,
            "interval": self._sampler.interval,
            "samples": self._sampler.samples(since),
            "runs": self.recorder.runs(since, prompt),
        }

    def metrics(self) -> str:
        """Return the state in Prometheus' text form."""
        rows, totals = self._scanner.rows(), self.recorder.totals
        state = metrics.State(
            devices=scan.device_view(rows),
            models=[row.as_json() for row in rows],
            samples=self._sampler.samples(time.time() - metrics.PEAK_SECONDS),
            placements=self.placements()["placements"],
            runs=dict(totals.runs),
            last_peak=totals.last_peak,
            nodes=dict(totals.nodes),
            node_seconds=dict(totals.node_seconds),
            loaded=dict(totals.loaded),
            jobs=dict(self.actions.done),
            freed=dict(self.actions.freed),
            scan_seconds=self._scanner.last_scan_seconds,
            sampler_seconds=self._sampler.cpu_seconds,
        )
        return metrics.metrics(state)

    def profiler(self) -> dict[str, Any]:
        """Return the models in the form of the profiler's route."""
        return scan.profiler_form(self._scanner.rows())

    def parse(self, text: str) -> dict[str, Any]:
        """Check an allocation string as the node's widget does while it is typed."""
        try:
            spec = allocation.parse(text)
        except allocation.AllocationError as error:
            return {
                "ok": False,
                "message": error.message,
                "offset": error.offset,
                "fragment": error.fragment,
                "expected": error.expected,
                "caret": error.caret,
            }
        return {"ok": True, "normal": allocation.format_spec(spec)}

    def _model(self, row: scan.Row) -> dict[str, Any]:
        flag, reason = self.actions.flag_of(row), self.actions.why_not(row)
        return {**row.as_json(), "eject": flag, "ejectable": not reason, "why_not": reason}

    def _state(self) -> dict[str, Any]:
        state = {**self.models(), **self.devices(), **self.placements()}
        del state["scan_ms"]
        return state

    def _inventory(self) -> dict[int, Held]:
        # At the end of a node: what it loaded must not be told of the next one.
        used = {d: n for d, n in self._sampler.used().items() if d != "cpu"}
        changed = scan.memory_changed(self._used, used, scan.NOTICED_BYTES)
        self._used = used
        return inventory(self._scanner.rows(max_age=0.0 if changed else None))

    def _job_finished(self, job: Job) -> None:
        self._server.send_sync("distorch.report", job.report())
        self.updates.wake()

    # Listening (node_events.NodeListener)

    def node_started(self, prompt: str, node: str, kind: str, inputs: dict[str, Any]) -> None:
        """See NodeListener."""
        self._scanner.node_started((prompt, node), inputs, resolve)
        self.recorder.node_started(prompt, node, kind)

    def node_ended(self, prompt: str, node: str, outputs: object) -> None:
        """See NodeListener."""
        self._scanner.node_ended((prompt, node), outputs)
        self.recorder.node_ended(prompt, node)
        self.updates.wake()

    def progress(self, value: int, total: int) -> None:
        """See NodeListener."""
        self._steps.progress(value, total)

    def passed(self, model: object) -> None:
        """See NodeListener."""
        self._steps.passed(model)

    def message(self, event: str, data: dict[str, Any]) -> None:
        """See NodeListener."""
        prompt = str(data.get("prompt_id", ""))
        if event == "execution_start":
            self.recorder.prompt_started(prompt)
        elif event in ENDINGS:
            self._scanner.invalidate()
            self._scanner.look_for_unknown()
            self.recorder.prompt_ended(prompt, ENDINGS[event])
            self.updates.wake()


def install() -> MemoryView:
    """Install everything in the ComfyUI of this process. A second call does nothing."""
    global _installed
    if _installed is not None:
        return _installed
    import comfy.model_base
    import comfy.model_management
    import comfy.utils
    import execution
    from server import PromptServer

    server = PromptServer.instance
    view = MemoryView(server, comfy.model_management)
    scanner = scan.scanner()
    scanner.add_management(management_of)
    scanner.add_outside(dynamic_bytes)
    scanner.add_outside(staging_bytes)
    scanner.add_users(view.actions.in_use)
    scanner.start()
    for kind in ("cuda", "xpu"):
        ledger = Ledger.of(kind)
        if ledger is not None:
            ledger.install()
    sampler.start()
    view.actions.jobs.install()
    events = NodeEvents(execution, comfy.utils, comfy.model_base)
    events.listeners.append(view)
    events.install()
    add_to_table(server.routes, view)
    _add_profiler_route_last(server, view)
    view.updates.start()
    _installed = view
    return view


def _add_profiler_route_last(server: Any, view: MemoryView) -> None:
    # Only when all packs are imported is it known whether one of them has that route.
    original = server.add_routes

    def add_routes(*args: Any, **kwargs: Any) -> Any:
        add_profiler_route(server.routes, view)
        return original(*args, **kwargs)

    server.add_routes = add_routes
