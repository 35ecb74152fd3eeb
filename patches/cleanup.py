# SPDX-License-Identifier: Apache-2.0
"""Freeing on request, the host's memory watched, and memory in one line, by the names users of ComfyUI-MultiGPU know.

`force_full_system_cleanup` does what the Manager's "Free model and node cache" does: it sets both flags of the prompt
queue; the worker acts on them between prompts.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from distorch import devices, hostmemory, snapshots

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


def _queue() -> Any | None:
    try:
        from server import PromptServer
    except ImportError:
        return None
    instance = getattr(PromptServer, "instance", None)
    return getattr(instance, "prompt_queue", None)


def _running(queue: Any) -> bool:
    return bool(getattr(queue, "currently_running", None))


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
    total = hostmemory.total_bytes()
    if total == 0:
        return False
    used = 1 - hostmemory.available_bytes() / total
    queue = _queue()
    if used <= (current_threshold() if threshold is None else threshold):
        return False
    if queue is None or _running(queue):
        return False
    _raised_to, _raised_at = min(0.99, used + cpu_hysteresis), time.monotonic()
    return trigger_executor_cache_reset(f"{used:.0%} of the host's memory are in use")


def force_full_system_cleanup(
    reason: str = "manual", force: bool = True
) -> dict[str, dict[str, int]]:
    """Free models and node caches as the Manager does.

    Returns for each device the bytes in use when it was asked; what it gave back is in the report of
    `GET /distorch/report`, or in a second call: the worker acts between prompts, not within this call.
    """
    before = {
        i.device: {"used": i.total - i.free, "total": i.total} for i in devices.list_devices()
    }
    queue = _queue()
    if queue is not None:
        log.info("full cleanup: %s", reason)
        queue.set_flag("unload_models", True)
        queue.set_flag("free_memory", True)
        if force:  # the worker may have gone to sleep between its look at the flags and now
            with queue.mutex:
                queue.not_empty.notify()
    return before


def comfyui_memory_load(tag: str) -> str:
    """Return the memory now in one line."""
    return snapshots.snapshot_line(tag)


def multigpu_memory_log(identifier: str, tag: str) -> str | None:
    """Record a snapshot while recording is on; "print_summary" as the identifier prints the series."""
    if identifier == "print_summary":
        summary = _series.summary()
        log.info("%s", summary)
        return summary
    snapshot = _series.record(identifier, tag)
    if snapshot is None:
        return None
    log.info("%s", snapshot.stamped())
    return snapshot.line()


def record_memory(on: bool) -> None:
    """Switch the recording of snapshots on or off; off costs nothing."""
    if on and not _series.enabled:
        _series.start()
    elif not on:
        _series.stop()


def _mgpu_mm_log(message: str, *args: Any) -> None:
    log.info("[memory] " + message, *args)


log.mgpu_mm_log = _mgpu_mm_log  # type: ignore[attr-defined]
