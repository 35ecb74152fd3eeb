# SPDX-License-Identifier: Apache-2.0
"""How long a step of a sampler takes, from the progress it reports."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass
class _Series:
    total: int
    first: tuple[int, float]
    last: tuple[int, float]


class StepTimes:
    """The step time of each key (a placed model), measured over its last run. Thread safe.

    The time until the first report is not counted: it holds the loading of the model.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter, kept: int = 100) -> None:
        """`clock` in seconds; the newest `kept` keys are remembered."""
        self._clock, self._kept = clock, kept
        self._series: dict[int, _Series] = {}
        self._lock = threading.Lock()

    def progress(self, key: int, value: int, total: int) -> None:
        """`value` of `total` steps are done with the model `key`."""
        now = (value, self._clock())
        with self._lock:
            series = self._series.pop(key, None)
            if series is None or value <= series.last[0] or total != series.total:
                series = _Series(total, now, now)  # a new run
            series.last = now
            self._series[key] = series
            while len(self._series) > self._kept:
                del self._series[next(iter(self._series))]

    def seconds(self, key: int) -> float | None:
        """Return the average seconds a step; None before two reports."""
        with self._lock:
            series = self._series.get(key)
            if series is None or series.last[0] <= series.first[0]:
                return None
            steps = series.last[0] - series.first[0]
            return (series.last[1] - series.first[1]) / steps
