# SPDX-License-Identifier: Apache-2.0
"""The memory view inside ComfyUI: what the routes answer, and who tells the scan what.

`install()` starts the scan, the events and the jobs between prompts, registers the routes and
pushes changes to the browser. Nothing of ComfyUI's behaviour changes: it watches, and acts
only when a route is called.
"""

from __future__ import annotations

import gc
import logging
import threading
import weakref
from collections.abc import Iterator
from typing import Any

from torch import nn

from distorch import allocation, caches, placements, scan

from . import keep, timeline
from .between_prompts import BetweenPrompts, Job
from .node_events import NodeEvents
from .server_routes import UnknownModelError, add_profiler_route, add_to_table

log = logging.getLogger("DisTorch")

UPDATE_SECONDS = 1.0
# Smaller differences of a device are not worth a message to the browser.
UPDATE_BYTES = 1024 * 1024

_installed: MemoryView | None = None


class MemoryView:
    """What the REST interface asks for (server_routes.Backend), of a running ComfyUI."""

    def __init__(self, server: Any, management: Any) -> None:
        """`management`: comfy.model_management."""
        self._server, self._management = server, management
        self._timeline = timeline.Timeline()
        self._scanner = scan.scanner()
        self._flags: weakref.WeakKeyDictionary[nn.Module, bool] = weakref.WeakKeyDictionary()
        self.jobs = BetweenPrompts(server.prompt_queue, self._measure, self._settle)
        self.jobs.finished.append(self._job_finished)
        self._sent: dict[str, Any] = {}
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None

    # Reading

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
        return {"placements": [_placement(p) for p in placements.placements()]}

    def history(self, seconds: int) -> dict[str, Any]:
        """Return the timeline of the last `seconds`."""
        return self._timeline.history(seconds)

    def metrics(self) -> str:
        """Return the state in Prometheus' text form."""
        rows = self._scanner.rows()
        return timeline.metrics(scan.device_view(rows), [row.as_json() for row in rows])

    def profiler(self) -> dict[str, Any]:
        """Return the models in the form of the profiler's route."""
        return scan.profiler_form(self._scanner.rows())

    def report(self, ticket: int) -> dict[str, Any] | None:
        """Return what became of a request."""
        return self.jobs.report(ticket)

    # Changing

    def flag(self, model_id: int, eject: bool) -> dict[str, Any]:
        """Keep a model, or have it ejected with the next eject."""
        module = self._module(model_id)
        self._flags[module] = eject
        if any(module is model for model in keep.managed()):
            if eject:
                keep.release(module)
            else:
                keep.retain(module)
        self._scanner.invalidate()
        self._wake.set()
        return {"id": model_id, "eject": eject}

    def eject(self, ids: list[int] | None) -> dict[str, Any]:
        """Unload these models, or those that are flagged, when no prompt runs."""
        if ids is None:
            chosen = [row.id for row in self._scanner.rows() if self._flag_of(row)]
        else:
            chosen = list(dict.fromkeys(ids))
            for model_id in chosen:
                self._loaded(model_id)
        if not chosen:
            return {
                "ticket": 0,
                "when": "never",
                "will": "nothing is flagged, nothing is unloaded",
                "models": [],
            }
        names = [row.name for row in self._scanner.rows() if row.id in chosen]
        job = self.jobs.post("eject", lambda: self._eject_now(chosen))
        return self._accepted(job, f"unload {', '.join(names)}", chosen)

    def free(self, unload_models: bool, free_memory: bool) -> dict[str, Any]:
        """Do as ComfyUI's /free, with a report."""
        flags = {"unload_models": unload_models, "free_memory": free_memory}
        wanted = [name for name, value in flags.items() if value]
        if not wanted:
            return {"ticket": 0, "when": "never", "will": "nothing was asked for", "models": []}
        job = self.jobs.post("free", lambda: None)
        for name in wanted:
            self._server.prompt_queue.set_flag(name, True)
        text = "free models and node cache" if free_memory else "free models"
        return self._accepted(job, text, [])

    def clear_cache(self, devices: list[str] | None) -> dict[str, Any]:
        """Give unused memory of the allocators back; unloads nothing."""
        known = [view["device"] for view in scan.device_view(())]
        for device in devices or ():
            if device not in known:
                raise UnknownModelError(
                    f"there is no device {device!r}; there are: {', '.join(known)}"
                )
        job = self.jobs.post("clear_cache", lambda: self._clear_now(devices))
        return self._accepted(
            job, "clear the caches of " + ", ".join(devices or ["every device"]), []
        )

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

    def _accepted(self, job: Job, will: str, models: list[int]) -> dict[str, Any]:
        running = self._server.prompt_queue.get_tasks_remaining() > 0
        when = "after the running prompt" if running else "now"
        return {"ticket": job.ticket, "when": when, "will": will, "models": models}

    def _model(self, row: scan.Row) -> dict[str, Any]:
        flag = self._flag_of(row)
        reason = self._why_not(row)
        return {**row.as_json(), "eject": flag, "ejectable": not reason, "why_not": reason}

    def _flag_of(self, row: scan.Row) -> bool:
        module = self._scanner.module(row.id)
        own = self._flags.get(module) if module is not None else None
        return bool(row.eject) if own is None else own

    def _module(self, model_id: int) -> nn.Module:
        module = self._scanner.module(model_id)
        if module is None:
            raise UnknownModelError(f"no live model has the id {model_id}")
        return module

    def _entries(self) -> Iterator[tuple[int, Any, nn.Module]]:
        """Yield ComfyUI's loaded models with their place in its list, the last first."""
        loaded = self._management.current_loaded_models
        for index in range(len(loaded) - 1, -1, -1):
            patcher = loaded[index].model
            if patcher is not None:
                yield index, loaded[index], patcher.model

    def _loaded(self, model_id: int) -> nn.Module:
        module = self._module(model_id)
        if all(inner is not module for _, _, inner in self._entries()):
            raise UnknownModelError(
                f"model {model_id} ({type(module).__name__}) is not loaded by ComfyUI: "
                "only the node that holds it can let it go"
            )
        return module

    def _why_not(self, row: scan.Row) -> str:
        module = self._scanner.module(row.id)
        for _, _, inner in self._entries():
            if inner is module:
                return ""
        if all(device == "cpu" for device in row.bytes):
            return "it is in RAM already"
        return "it was not loaded through ComfyUI: only the node that holds it can let it go"

    def _eject_now(self, ids: list[int]) -> dict[str, Any]:
        modules = [self._scanner.module(model_id) for model_id in ids]
        unloaded = []
        for index, entry, inner in list(self._entries()):
            if any(inner is module for module in modules):
                if any(inner is model for model in keep.managed()):
                    keep.release(inner)
                if entry.model_unload():
                    self._management.current_loaded_models.pop(index)
                unloaded.append(type(inner).__name__)
        return {"unloaded": unloaded}

    def _clear_now(self, devices: list[str] | None) -> dict[str, Any]:
        report = caches.clear_caches(devices)
        return {"freed": report.freed, "collected": report.collected}

    # Worker and browser

    def _measure(self) -> dict[str, int]:
        views = scan.device_view(())
        return {v["device"]: v["tensors"] + v["unused"] for v in views if v["device"] != "cpu"}

    def _settle(self) -> None:
        gc.collect()
        self._management.soft_empty_cache()
        self._scanner.clear_loaded_models()

    def _job_finished(self, job: Job) -> None:
        self._server.send_sync("distorch.report", job.report())
        self._wake.set()

    def start(self) -> None:
        """Begin to push changes to the browser."""
        self._thread = threading.Thread(target=self._push, name="distorch-view", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End it."""
        self._stop.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join()

    def _push(self) -> None:
        while not self._stop.is_set():
            self._wake.wait(UPDATE_SECONDS)
            self._wake.clear()
            if self._stop.is_set():
                return
            try:
                self.jobs.nudge()
                self._timeline.add(scan.device_view(()))
                self.push_update()
            except Exception:
                log.exception("DisTorch: the memory view could not be updated")
                self._stop.wait(30)

    def push_update(self) -> bool:
        """Send the state to every open page if it changed; returns whether it did."""
        if not self._server.sockets:
            return False
        state = {**self.models(), **self.devices(), **self.placements()}
        del state["scan_ms"]
        if not _differs(self._sent, state):
            return False
        self._sent = state
        self._server.send_sync("distorch.update", state)
        return True

    # Listening (node_events.NodeListener)

    def node_started(self, prompt: str, node: str, kind: str, inputs: dict[str, Any]) -> None:
        """See NodeListener."""
        self._scanner.node_started((prompt, node), inputs, _resolve)

    def node_ended(self, prompt: str, node: str, outputs: object) -> None:
        """See NodeListener."""
        self._scanner.node_ended((prompt, node), outputs)
        self._wake.set()

    def message(self, event: str, data: dict[str, Any]) -> None:
        """See NodeListener."""
        if event in ("execution_success", "execution_error", "execution_interrupted"):
            self._scanner.invalidate()
            self._scanner.look_for_unknown()
            self._wake.set()

    def in_use(self) -> list[nn.Module]:
        """Return the modules that ComfyUI uses now, none while no prompt runs."""
        if not self._server.prompt_queue.currently_running:
            return []
        return [inner for _, entry, inner in self._entries() if entry.currently_used]


def _differs(old: dict[str, Any], new: dict[str, Any]) -> bool:
    if old.get("models") != new["models"] or old.get("placements") != new["placements"]:
        return True
    before, after = old.get("devices", []), new["devices"]
    if len(before) != len(after):
        return True
    return any(
        abs(a[key] - b[key]) >= UPDATE_BYTES
        for a, b in zip(before, after, strict=True)
        for key in ("models", "tensors", "unused", "free" if a["device"] != "cpu" else "models")
    )


def _placement(placement: placements.Placement) -> dict[str, Any]:
    return {
        "key": placement.key,
        "name": placement.name,
        "file": placement.file,
        "compute": placement.compute,
        "requested": placement.requested,
        "state": placement.state,
        "blocks": [{"name": name, "device": device} for name, device in placement.blocks.items()],
        "bytes": dict(placement.bytes_per_device),
        "streaming": placement.streaming,
        "notes": list(placement.notes),
    }


def _management_of(module: nn.Module) -> scan.Management | None:
    for placement in placements.placements():
        if placement.key == id(module):
            away = sum(
                size
                for device, size in placement.bytes_per_device.items()
                if device != placement.compute
            )
            streamed = away if placement.state == "placed" else 0
            return scan.Management(False, placement.compute, streamed, 0)
    return None


def _resolve(folder: str, name: str) -> str | None:
    import folder_paths

    if folder not in folder_paths.folder_names_and_paths:
        return None
    found: str | None = folder_paths.get_full_path(folder, name)
    return found


def install() -> MemoryView:
    """Install everything in the ComfyUI of this process. A second call does nothing."""
    global _installed
    if _installed is not None:
        return _installed
    import comfy.model_management
    import execution
    from server import PromptServer

    server = PromptServer.instance
    view = MemoryView(server, comfy.model_management)
    scanner = scan.scanner()
    scanner.add_management(_management_of)
    scanner.add_users(view.in_use)
    scanner.start()
    view.jobs.install()
    events = NodeEvents(execution)
    events.listeners.append(view)
    events.install()
    add_to_table(server.routes, view)
    _add_profiler_route_last(server, view)
    view.start()
    _installed = view
    return view


def _add_profiler_route_last(server: Any, view: MemoryView) -> None:
    # Only when all packs are imported is it known whether one of them has that route.
    original = server.add_routes

    def add_routes(*args: Any, **kwargs: Any) -> Any:
        add_profiler_route(server.routes, view)
        return original(*args, **kwargs)

    server.add_routes = add_routes
