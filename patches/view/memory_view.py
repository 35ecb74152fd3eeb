# SPDX-License-Identifier: Apache-2.0
"""The memory view inside ComfyUI: what the routes answer, and who tells the scan what.

`install()` starts the scan, the sampler, the events and the jobs between prompts, registers the
routes and pushes changes to the browser. Nothing of ComfyUI's behaviour changes: it watches, and
acts only when a route is called.

`uninstall()` gives all of it back: functions, listeners, threads. What aiohttp's router cannot give
back are the routes: they stay, answer 404, and are the same ones when it is installed again.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

from distorch import memory
from distorch.memory import placements, sampler
from distorch.memory.activity import activity
from distorch.memory.peaks import Ledger
from distorch.memory.recorder import Held, RunRecorder
from distorch.memory.step_times import StepTimes

from ..ejecting import unload
from ..seams.between_prompts import Job
from ..seams.node_events import ENDINGS, NodeEvents
from ..seams.seam import FunctionSeam
from . import metrics
from .actions import Actions
from .facts import (
    Loaders,
    dynamic_bytes,
    inventory,
    management_of,
    placement_json,
    resolve,
    staging_bytes,
)
from .plans import Plans
from .server_routes import Gate, add_profiler_route, add_to_table
from .updates import Updates
from .watchers import Watchers

_installed: MemoryView | None = None
_undo = contextlib.ExitStack()  # what gives back what install() took
_gate = Gate()


class MemoryView:
    """What the REST interface asks for (server_routes.Backend), of a running ComfyUI."""

    def __init__(self, server: Any, management: Any) -> None:
        """`management`: comfy.model_management."""
        self._server = server
        self._scanner = memory.scanner()
        self._sampler = sampler.sampler()
        self._steps = StepTimes()
        self._used: dict[str, int] = {}
        self.recorder = RunRecorder(self._sampler, self._inventory)
        self.actions = Actions(server, management, self._scanner)
        self.watchers = Watchers(server)
        self._activity: dict[str, dict[str, Any]] = {}
        self.updates = Updates(
            self.watchers, self._sampler, self._state, self.actions.jobs.nudge, self._look
        )
        self.actions.jobs.finished.append(self._job_finished)
        self.actions.changed.append(self.updates.wake)
        self.recorder.listeners.append(self.updates.note_run)
        self.flag, self.eject = self.actions.flag, self.actions.eject
        self.free, self.clear_cache = self.actions.free, self.actions.clear_cache
        self.measure_links = self.actions.measure_links
        self.watch = self.watchers.watch
        self.report = self.actions.jobs.report
        self._plans = Plans(self._scanner.module)
        self.parse, self.plan = self._plans.parse, self._plans.plan
        self._loaders = Loaders()

    def models(self) -> dict[str, Any]:
        """Return every model that holds memory, largest first."""
        rows = self._scanner.rows()
        return {
            "models": [self._model(row) for row in rows],
            "scan_ms": round(self._scanner.last_scan_seconds * 1000, 3),
        }

    def devices(self) -> dict[str, Any]:
        """Return the bar of each device."""
        if not self.watchers.of("tab"):  # nobody looks each second
            self._look()
        return self._devices(self._scanner.rows())

    def placements(self) -> dict[str, Any]:
        """Return where the blocks of each model of ours lie, in the model's order."""
        ids = {id(self._scanner.module(row.id)): row.id for row in self._scanner.rows()}
        found = placements.placements()
        return {
            "placements": [
                {**placement_json(p, self._steps), "model": ids.get(p.key)} for p in found
            ]
        }

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
            devices=memory.device_view(rows),
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
        return memory.profiler_form(self._scanner.rows())

    def _model(self, row: memory.Row) -> dict[str, Any]:
        flag, reason = self.actions.flag_of(row), self.actions.why_not(row)
        kept = self.actions.is_kept(row)
        told = {"eject": flag, "ejectable": not reason, "why_not": reason, "kept": kept}
        told["node"] = self._loaders.of(self._scanner.module(row.id))
        return {**row.as_json(), **told}

    def _state(self) -> dict[str, Any]:
        state = {**self.models(), **self._devices(self._scanner.rows()), **self.placements()}
        del state["scan_ms"]
        return state

    def _devices(self, rows: list[memory.Row]) -> dict[str, Any]:
        views = memory.device_view(rows)
        return {"devices": [{**v, "activity": self._activity.get(v["device"])} for v in views]}

    def _look(self) -> None:
        self._activity = activity()

    def _inventory(self) -> dict[int, Held]:
        # At the end of a node: what it loaded must not be told of the next one.
        used = {d: n for d, n in self._sampler.used().items() if d != "cpu"}
        changed = memory.memory_changed(self._used, used, memory.NOTICED_BYTES)
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
        self._loaders.returned(prompt, node, outputs)
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
    global _installed, _undo
    if _installed is not None:
        return _installed
    import comfy.model_base
    import comfy.model_management
    import comfy.utils
    import execution
    from server import PromptServer

    server = PromptServer.instance
    view = MemoryView(server, comfy.model_management)
    view.actions.jobs.finishing.append(unload.add_details)
    events = NodeEvents(execution, comfy.utils, comfy.model_base)
    events.listeners.append(view)
    with contextlib.ExitStack() as undo:  # what fails on the way leaves nothing behind
        _watch(view, undo)
        undo.callback(view.actions.jobs.uninstall)
        view.actions.jobs.install()
        undo.callback(events.uninstall)
        events.install()
        _open_routes(server, view, undo)
        undo.callback(view.updates.stop)
        view.updates.start()
        _undo = undo.pop_all()
    _installed = view
    return view


def uninstall() -> None:
    """Give everything back but the routes, which answer 404 from now on; a second call does nothing."""
    global _installed
    _installed = None
    _undo.close()


def _watch(view: MemoryView, undo: contextlib.ExitStack) -> None:
    scanner = memory.scanner()
    undo.callback(
        scanner.forget_sources, management_of, dynamic_bytes, staging_bytes, view.actions.in_use
    )
    scanner.add_management(management_of)
    scanner.add_outside(dynamic_bytes)
    scanner.add_outside(staging_bytes)
    scanner.add_users(view.actions.in_use)
    undo.callback(scanner.stop)
    scanner.install_hooks()
    scanner.start()
    for kind in ("cuda", "xpu"):
        ledger = Ledger.of(kind)
        if ledger is not None:
            undo.callback(ledger.uninstall)
            ledger.install()
    undo.callback(sampler.sampler().stop)
    sampler.start()


def _open_routes(server: Any, view: MemoryView, undo: contextlib.ExitStack) -> None:
    undo.callback(setattr, _gate, "backend", None)
    _gate.backend = view
    if all(table is not server.routes for table in _gate.tables):
        add_to_table(server.routes, _gate)
        _gate.tables.append(server.routes)

    def around(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
        # Only when all packs are imported is it known whether one of them has that route.
        add_profiler_route(server.routes, _gate)
        return original(self, *args, **kwargs)

    seam = FunctionSeam(type(server), "add_routes", around, "the profiler's route comes last")
    undo.callback(seam.uninstall)
    seam.install()
