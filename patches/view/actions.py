# SPDX-License-Identifier: Apache-2.0
"""What the memory view changes: flags, ejects, frees, cleared caches. Only when no prompt runs."""

from __future__ import annotations

import collections
import gc
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from distorch import caches, hostmemory, links, memory

from ..ejecting import keep, managed
from ..seams.between_prompts import BetweenPrompts, Job
from .request_checks import FOREIGN, IN_RAM, UnknownModelError

NOTHING = {"ticket": 0, "when": "never", "models": []}


class Actions:
    """The changing half of server_routes.Backend, of a running ComfyUI."""

    def __init__(self, server: Any, management: Any, scanner: memory.Scanner) -> None:
        """`management`: comfy.model_management."""
        self._server, self._management, self._scanner = server, management, scanner
        self.jobs = BetweenPrompts(server.prompt_queue, self._measure, self._settle)
        self.jobs.finished.append(self._count)
        self.done: collections.Counter[tuple[str, str]] = collections.Counter()  # kind, state
        self.freed: collections.Counter[str] = collections.Counter()  # device
        #: Called when a flag changed.
        self.changed: list[Callable[[], None]] = []

    # What is asked for

    def flag(self, model_id: int, eject: bool) -> dict[str, Any]:
        """Keep a model, or have it ejected with the next eject (and ComfyUI's next "free")."""
        module = self._module(model_id)
        if eject:
            keep.release(module)
        else:
            keep.retain(module)
        self._scanner.invalidate()
        for listener in self.changed:
            listener()
        return {"id": model_id, "eject": eject}

    def eject(self, ids: list[int] | None, let_go: bool = False) -> dict[str, Any]:
        """Unload these models, or those that are flagged, when no prompt runs.

        `let_go`: end their keeping too, also of those that lie in host memory only. Flagged ones are let go of anyway.
        """
        if ids is None:
            let_go = True
            flagged = [row.id for row in self._scanner.rows() if self.flag_of(row)]
            chosen = [i for i in flagged if managed.entries_of(self._scanner.module(i))]
        else:
            chosen = list(dict.fromkeys(ids))
            for model_id in chosen:
                self._can_go(model_id, let_go)
        if not chosen:
            return {**NOTHING, "will": "no model in use is flagged, nothing is unloaded"}
        names = [row.name for row in self._scanner.rows() if row.id in chosen]
        job = self.jobs.post("eject", lambda: self._eject_now(chosen, let_go))
        verb = "let go of" if let_go and ids is not None else "unload"
        job.details["names"] = names
        return self._accepted(job, f"{verb} {', '.join(names)}", chosen)

    def free(self, unload_models: bool, free_memory: bool) -> dict[str, Any]:
        """Do as ComfyUI's /free, with a report."""
        flags = {"unload_models": unload_models, "free_memory": free_memory}
        wanted = [name for name, value in flags.items() if value]
        if not wanted:
            return {**NOTHING, "will": "nothing was asked for"}
        with self._server.prompt_queue.mutex:  # the worker must see all of it at once
            job = self.jobs.post("free", lambda: None)
            for name in wanted:
                self._server.prompt_queue.set_flag(name, True)
        text = "free models and node cache" if free_memory else "free models"
        return self._accepted(job, text, [])

    def clear_cache(self, devices: list[str] | None) -> dict[str, Any]:
        """Give unused memory of the allocators back; unloads nothing."""
        known = [view["device"] for view in memory.device_view(())]
        for device in devices or ():
            if device not in known:
                raise UnknownModelError(
                    f"there is no device {device!r}; there are: {', '.join(known)}"
                )
        job = self.jobs.post("clear_cache", lambda: _clear_now(devices))
        return self._accepted(
            job, "clear the caches of " + ", ".join(devices or ["every device"]), []
        )

    def measure_links(self) -> dict[str, Any]:
        """Measure the links between the devices when no prompt runs; nothing is unloaded."""
        job = self.jobs.post("links", _measure_links)
        return self._accepted(job, "measure the links", [])

    def _accepted(self, job: Job, will: str, models: list[int]) -> dict[str, Any]:
        running = self._server.prompt_queue.get_tasks_remaining() > 0
        when = "after the running prompt" if running else "now"
        return {"ticket": job.ticket, "kind": job.kind, "asked": job.asked, "when": when, "will": will,
                "models": models}  # fmt: skip

    # What is known of a model

    def flag_of(self, row: memory.Row) -> bool:
        """Whether the next eject takes the model."""
        return keep.is_flagged(self._scanner.module(row.id))

    def why_not(self, row: memory.Row) -> str:
        """Return why the model cannot be moved off the GPU, "" where it can."""
        if all(device == "cpu" or not size for device, size in row.bytes.items()):
            return IN_RAM
        if managed.entries_of(self._scanner.module(row.id)):
            return ""
        return FOREIGN

    def is_kept(self, row: memory.Row) -> bool:
        """Whether the model stays through "free", and can be let go of."""
        return keep.is_kept(self._scanner.module(row.id))

    def in_use(self) -> list[nn.Module]:
        """Return the modules that ComfyUI uses now, the last loaded first; none between prompts."""
        if not self._server.prompt_queue.currently_running:
            return []
        return [inner for entry, inner in self._entries() if entry.currently_used]

    def _entries(self) -> Iterator[tuple[Any, nn.Module]]:
        """Yield ComfyUI's loaded models, the last loaded first, which is its own order."""
        for entry in list(self._management.current_loaded_models):
            patcher = entry.model
            if patcher is not None:
                yield entry, patcher.model

    def _module(self, model_id: int) -> nn.Module:
        module = self._scanner.module(model_id)
        if module is None:
            raise UnknownModelError(f"no live model has the id {model_id}")
        return module

    def _can_go(self, model_id: int, let_go: bool) -> None:
        module = self._module(model_id)
        if managed.entries_of(module) or (let_go and keep.is_kept(module)):
            return
        remedy = "only the node that holds it can let it go"
        if keep.is_kept(module):
            remedy = 'it is kept in host memory: ask with "let_go" to end that'
        raise UnknownModelError(
            f"model {model_id} ({type(module).__name__}) is not loaded by ComfyUI: {remedy}"
        )

    # In ComfyUI's worker, between prompts

    def _eject_now(self, ids: list[int], let_go: bool) -> dict[str, Any]:
        modules = [self._scanner.module(model_id) for model_id in ids]
        alive = [module for module in modules if module is not None]
        report = managed.unload("these", alive, let_go=let_go)
        if report.failures:
            raise RuntimeError("; ".join(report.failures))
        return {"unloaded": [model.name for model in report.unloaded]}

    def _measure(self) -> dict[str, int]:
        total, available = hostmemory.total_and_available()
        return {**caches.taken_bytes(), "cpu": total - available}

    def _settle(self) -> None:
        gc.collect()
        self._management.soft_empty_cache()
        self._scanner.clear_loaded_models()

    def _count(self, job: Job) -> None:
        self.done[job.kind, job.state] += 1
        self.freed.update(job.freed)


def _measure_links() -> dict[str, Any]:
    report = links.report(refresh=True)
    found = [
        {"source": link.source, "target": link.target, "gbps": link.gbps, "error": link.error}
        for link in report.links
    ]
    return {"links": found}


def _clear_now(devices: list[str] | None) -> dict[str, Any]:
    report = caches.clear_caches(devices)
    return {"freed": report.freed, "collected": report.collected}
