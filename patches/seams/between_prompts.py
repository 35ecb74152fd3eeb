# SPDX-License-Identifier: Apache-2.0
"""Runs what the memory view asks for in ComfyUI's worker, between two prompts.

Seam: `PromptQueue.get_flags` and `PromptQueue.get`. The worker asks for its flags after each
prompt, and at once when a flag is set while it is idle; it is the only moment at which models
may be unloaded without a node using them. It asks for the next prompt when it is done with
them. Holds for every ComfyUI since 0.3.64; an own flag name is ignored by the core.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from distorch import _load

from .seam import FunctionSeam

log = logging.getLogger("DisTorch")

FLAG = "distorch"
KEPT_REPORTS = 100

Measure = Callable[[], "dict[str, int]"]


@dataclasses.dataclass
class Job:
    """One request. `before` and `after` are the bytes in use on each device, `freed` of accelerators what was given back; `state` as docs/openapi.json has it.

    `before` is None until it was measured.
    """

    ticket: int
    kind: str
    action: Callable[[], dict[str, Any] | None]
    asked: float = dataclasses.field(default_factory=time.time)
    state: str = "queued"
    before: dict[str, int] | None = None
    after: dict[str, int] | None = None
    freed: dict[str, int] = dataclasses.field(default_factory=dict)
    details: dict[str, Any] = dataclasses.field(default_factory=dict)
    error: str = ""

    def report(self) -> dict[str, Any]:
        """Return what is known now, for the REST interface."""
        return {
            "ticket": self.ticket,
            "kind": self.kind,
            "state": self.state,
            "asked": self.asked,
            "before": self.before or {},
            "after": self.after or {},
            "freed": self.freed,
            "freed_total": sum(self.freed.values()),
            "details": self.details,
            "error": self.error,
        }


#: By the id of the queue whose methods it wraps now.
installed: dict[int, BetweenPrompts] = {}


class BetweenPrompts:
    """Jobs for the worker of one queue. `measure` gives the bytes in use on each device."""

    def __init__(self, queue: Any, measure: Measure, settle: Callable[[], None]) -> None:
        """`settle` collects garbage and empties allocators, so that what was freed shows."""
        self._queue, self._measure, self._settle = queue, measure, settle
        self._lock = threading.Lock()
        self._waiting: list[Job] = []
        self._unfinished: list[Job] = []
        self._jobs: collections.OrderedDict[int, Job] = collections.OrderedDict()
        self._next = 1
        #: Called when a job is done but not yet said to be: to add to its report; then when it is.
        self.finishing: list[Callable[[Job], None]] = []
        self.finished: list[Callable[[Job], None]] = []
        self._seams = (
            FunctionSeam(type(queue), "get_flags", self._around_get_flags, "jobs between prompts"),
            FunctionSeam(type(queue), "get", self._around_get, "the worker is done with its flags"),
        )

    def install(self) -> None:
        """Wrap the queue's methods."""
        for seam in self._seams:
            seam.install()
        installed[id(self._queue)] = self

    def uninstall(self) -> None:
        """Give them back."""
        installed.pop(id(self._queue), None)
        for seam in self._seams:
            seam.uninstall()

    def post(self, kind: str, action: Callable[[], dict[str, Any] | None]) -> Job:
        """Queue `action`; its result becomes the report's details. Returns at once."""
        with self._lock:
            job = Job(self._next, kind, action)
            self._next += 1
            self._waiting.append(job)
            self._jobs[job.ticket] = job
            while len(self._jobs) > KEPT_REPORTS:
                self._jobs.popitem(last=False)
        self._queue.set_flag(FLAG, True)
        return job

    def report(self, ticket: int) -> dict[str, Any] | None:
        """Return the report of a ticket, None when it was never given or is long gone."""
        with self._lock:
            job = self._jobs.get(ticket)
            return None if job is None else job.report()

    def _around_get_flags(
        self, original: Callable[..., Any], queue: Any, *args: Any, **kw: Any
    ) -> Any:
        if queue is self._queue:
            self._run_waiting()
        return original(queue, *args, **kw)

    def _around_get(self, original: Callable[..., Any], queue: Any, *args: Any, **kw: Any) -> Any:
        if queue is self._queue:
            self._finish()
            if self._waiting:  # asked for while the worker was not listening
                args, kw = (), {"timeout": 0}
        return original(queue, *args, **kw)

    def nudge(self) -> None:
        """Wake the worker if a job waits: a flag set just before it goes to sleep wakes nobody."""
        if self._waiting:
            with self._queue.mutex:
                self._queue.not_empty.notify()

    def _run_waiting(self) -> None:
        with self._lock:
            jobs, self._waiting = self._waiting, []
        jobs.sort(key=lambda job: job.kind == "free")  # the worker's own doing, after all these
        for job in jobs:
            job.state = "running"
            self._unfinished.append(job)
            with _told_in(job):
                if len(self._unfinished) > 1:  # what the one before has freed is not this one's
                    self._settle()
                job.before = self._measure()
                job.details.update(job.action() or {})

    def _finish(self) -> None:
        if not self._unfinished:
            return
        jobs, self._unfinished = self._unfinished, []
        after: dict[str, int] | None = None
        with _told_in(*jobs):
            self._settle()
            after = self._measure()
        for job in reversed(jobs):
            job.after = after
            job.freed = _given_back(job.before, after)
            after = after if job.before is None else job.before
        for job in jobs:
            _pass_on(job, self.finishing)
            job.state = "failed" if job.error else "done"
            _pass_on(job, self.finished)


def _pass_on(job: Job, listeners: list[Callable[[Job], None]]) -> None:
    for listener in listeners:
        try:
            listener(job)
        except Exception:  # what was done is done, whoever cannot be told of it
            log.exception("DisTorch: the report of %s could not be passed on", job.kind)


def _given_back(before: dict[str, int] | None, after: dict[str, int] | None) -> dict[str, int]:
    if before is None or after is None:
        return {}
    freed: dict[str, int] = _load.core().freed_bytes(before, after)
    freed.pop("cpu", None)  # the machine's: others take and give of it too
    return freed


@contextlib.contextmanager
def _told_in(*jobs: Job) -> Iterator[None]:
    """What fails goes into the reports: an exception would end ComfyUI's worker for good."""
    try:
        yield
    except Exception as error:
        log.exception("DisTorch: %s failed", ", ".join(job.kind for job in jobs))
        for job in jobs:
            job.error = job.error or f"{type(error).__name__}: {error}"
