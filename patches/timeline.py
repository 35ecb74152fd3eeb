# SPDX-License-Identifier: Apache-2.0
"""What each device held over the last hour, one sample a second, and the state as metrics.

It samples from inside the process between the browser's updates; a spike shorter than a second
is not seen here.
"""

from __future__ import annotations

import collections
import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any

KEPT_SAMPLES = 3600

_PARTS = ("models", "tensors", "unused", "other", "free")


class Timeline:
    """The samples, oldest dropped first. Thread safe."""

    def __init__(self) -> None:
        self._samples: collections.deque[dict[str, Any]] = collections.deque(maxlen=KEPT_SAMPLES)
        self._lock = threading.Lock()

    def add(self, views: Iterable[Mapping[str, Any]], now: float | None = None) -> None:
        """Take a sample of `scan.device_view()`; `now` in seconds since 1970."""
        devices = {
            view["device"]: {"used": view["total"] - view["free"], "total": view["total"]}
            for view in views
        }
        with self._lock:
            self._samples.append({"time": time.time() if now is None else now, "devices": devices})

    def history(self, seconds: int, now: float | None = None) -> dict[str, Any]:
        """Return the samples of the last `seconds`, oldest first."""
        start = (time.time() if now is None else now) - seconds
        with self._lock:
            return {"seconds": seconds, "samples": [s for s in self._samples if s["time"] >= start]}


def metrics(views: Iterable[Mapping[str, Any]], models: Iterable[Mapping[str, Any]]) -> str:
    """Return the state in Prometheus' text form."""
    lines = [
        "# HELP distorch_device_bytes What a device's memory holds; the parts add up to its size.",
        "# TYPE distorch_device_bytes gauge",
    ]
    for view in views:
        lines += [
            f'distorch_device_bytes{{device="{view["device"]}",part="{part}"}} {view[part]}'
            for part in _PARTS
        ]
    lines += [
        "# HELP distorch_model_bytes A model's part on a device.",
        "# TYPE distorch_model_bytes gauge",
    ]
    for model in models:
        labels = f'id="{model["id"]}",name="{_escape(model["name"])}",type="{model["type"]}"'
        lines += [
            f'distorch_model_bytes{{{labels},device="{device}"}} {size}'
            for device, size in model["bytes"].items()
        ]
    return "\n".join(lines) + "\n"


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
