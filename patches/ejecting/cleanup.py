# SPDX-License-Identifier: Apache-2.0
"""Freeing on request, the host's memory watched, and memory in one line, by the names users of ComfyUI-MultiGPU know.

`force_full_system_cleanup` does what the Manager's "Free model and node cache" does: it sets both flags of the prompt
queue; the worker acts on them between prompts. `old_names.py` gives these functions under their old modules' names.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from typing import Any

from distorch import _load, devices, hostmemory
from distorch.memory import snapshots

from ..seams import between_prompts

log = logging.getLogger("DisTorch")

#: Share of the host's memory in use above which the executor's caches are reset (0 to 1).
cpu_threshold = 0.85
#: After a reset the threshold lies this much above what was in use then, and comes back down within the time below:
#: otherwise a machine that is simply full would reset its caches after every node.
cpu_hysteresis = 0.05
_DECAY_SECONDS = 120.0

_raised_to = 0.0
_raised_at = 0.0

_series = snapshots.SnapshotSeries()
_series.start()


def _queue() -> Any | None:
    try:
        from server import PromptServer
    except ImportError:
        return None
    instance = getattr(PromptServer, "instance", None)
    return getattr(instance, "prompt_queue", None)


def prompt_runs() -> bool:
    """Whether a prompt is being executed now."""
    return bool(getattr(_queue(), "currently_running", None))


def trigger_executor_cache_reset(reason: str = "policy", force: bool = False) -> bool:
    """Ask the worker to reset the executor's caches after the current prompt; says whether it could be asked."""
    queue = _queue()
    if queue is None:
        return False
    log.info("the executor's caches are to be reset: %s", reason)
    queue.set_flag("free_memory", True)
    if force:
        queue.set_flag("unload_models", True)
    return True


def current_threshold(now: float | None = None) -> float:
    """Return the share of host memory above which caches are reset now: raised after a reset, then decaying."""
    age = (time.monotonic() if now is None else now) - _raised_at
    left = max(0.0, 1.0 - age / _DECAY_SECONDS)
    return max(cpu_threshold, cpu_threshold + (_raised_to - cpu_threshold) * left)


def check_cpu_memory_threshold(threshold: float | None = None) -> bool:
    """Ask for a reset of the executor's caches when the host is too full and no prompt runs; says whether it did."""
    global _raised_to, _raised_at
    total, available = hostmemory.total_and_available()
    if total == 0:
        return False
    used = 1 - available / total
    queue = _queue()
    if used <= (current_threshold() if threshold is None else threshold):
        return False
    if queue is None or prompt_runs():
        return False
    _raised_to, _raised_at = min(0.99, used + cpu_hysteresis), time.monotonic()
    return trigger_executor_cache_reset(f"{used:.0%} of the host's memory are in use")


class CleanupReport(dict[str, dict[str, int]]):
    """Bytes a device: "used" and "total" when it was asked, and what it then gave back as "freed".

    `done` is False while the worker has not acted yet; every "freed" is then 0. `kept`: the models that stay.
    """

    done = False
    kept: tuple[str, ...] = ()

    def __str__(self) -> str:
        if not self.done:
            return "models and caches are freed when the running prompt has ended"
        freed = {device: row["freed"] for device, row in self.items() if row["freed"]}
        parts = [f"{device}: {size} bytes given back" for device, size in freed.items()]
        text = ", ".join(parts) or "no device gave anything back"
        return f"{text}; kept: {', '.join(self.kept)}" if self.kept else text


def force_full_system_cleanup(
    reason: str = "manual", force: bool = True, timeout: float = 30.0
) -> CleanupReport:
    """Free models and node caches as the Manager does, and report what each device gave back.

    The worker acts between prompts. This waits for it, `timeout` seconds at most, unless it cannot: from within a
    prompt, from a server's event loop, or with `force` off it only asks. With `force` off during a prompt it does not
    even ask: the report is what is in use.
    """
    report = CleanupReport(_used())
    queue = _queue()
    if queue is None or (prompt_runs() and not force):
        return report
    log.info("full cleanup: %s", reason)
    with queue.mutex:  # so that the worker sees all of it at once
        queue.set_flag("unload_models", True)
        queue.set_flag("free_memory", True)
        job = _job_after_it(queue)
        queue.not_empty.notify()
    if job is None or not force or prompt_runs() or _in_event_loop():
        return report
    deadline = time.monotonic() + timeout
    while job.state not in ("done", "failed"):
        if time.monotonic() > deadline:
            return report
        time.sleep(0.02)
        with queue.mutex:  # a flag that was set while the worker went to sleep woke nobody
            queue.not_empty.notify()
    used, after = ({d: row["used"] for d, row in rows.items()} for rows in (report, _used()))
    for device, freed in _load.core().freed_bytes(used, {**used, **after}).items():
        report[device]["freed"] = freed
    report.done = True
    report.kept = tuple(row["name"] for row in job.details.get("kept", ()))
    log.info("full cleanup: %s", report)
    return report


def _used() -> dict[str, dict[str, int]]:
    infos = devices.list_devices()
    return {
        i.device: {"used": i.used, "total": i.total, "freed": 0}
        for i in infos
        if i.used is not None and i.total is not None
    }


def _job_after_it(queue: Any) -> Any | None:
    """A job that the worker finishes when it has acted on its flags; None where nobody works between prompts."""
    jobs = between_prompts.installed.get(id(queue))
    return None if jobs is None else jobs.post("free", lambda: None)


def _in_event_loop() -> bool:
    """Nodes and routes run in one: waiting there would keep everything waiting."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def comfyui_memory_load(tag: str) -> str:
    """Return the memory now in one line."""
    return snapshots.snapshot_line(tag)


def multigpu_memory_log(identifier: str, tag: str) -> str:
    """Record a snapshot and return its line; "print_summary" as the identifier prints the series (the last thousand)."""
    if identifier == "print_summary":
        summary = _series.summary()
        log.info("%s", summary)
        return summary
    snapshot = _series.record(identifier, tag)
    assert snapshot is not None, "the series is on from the start"
    log.info("%s", snapshot.stamped())
    return snapshot.line()


def _mgpu_mm_log(message: str, *args: Any) -> None:
    log.info("[memory] " + message, *args)


#: Level of `logger.focus`, between INFO and WARNING.
FOCUS = logging.INFO + 5

logging.addLevelName(FOCUS, "FOCUS")
for _logger in (log, logging.getLogger("MultiGPU")):
    _logger.mgpu_mm_log = _mgpu_mm_log  # type: ignore[attr-defined]
    _logger.focus = functools.partial(_logger.log, FOCUS)  # type: ignore[attr-defined]
