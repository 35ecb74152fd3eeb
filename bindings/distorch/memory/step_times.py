# SPDX-License-Identifier: Apache-2.0
"""How long one pass through a model takes, from the progress that its sampler reports.

    steps = StepTimes()
    steps.passed(model)      # before each pass, by whoever runs it
    steps.progress(1, 20)    # after each step of the sampler
    steps.seconds(id(model))

A step of a sampler may take several passes (a second-order sampler, a negative prompt that did not fit into the
batch); predictions are made for one, so that is what is measured. The time until the first report is not counted:
it holds the loading of the model. A step in which several models ran is nobody's.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

_MOST_MODELS = 1000  # that ran since a sampler reported anything


@dataclass
class _Series:
    model: weakref.ref[object]
    run: int
    seconds: float = 0.0
    passes: int = 0


class StepTimes:
    """The time of a pass of each model, over its last run. Holds no model alive. Thread safe."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter, kept: int = 100) -> None:
        """`clock` in seconds; the newest `kept` models are remembered."""
        self._clock, self._kept = clock, kept
        self._series: OrderedDict[int, _Series] = OrderedDict()
        self._passes: dict[int, tuple[weakref.ref[object], int]] = {}
        self._run = 0  # samplings, counted
        self._last = (0, 0, 0.0)  # value, total, time of the last report
        self._lock = threading.Lock()

    def passed(self, model: object) -> None:
        """`model` runs once, as part of the step that is reported next."""
        with self._lock:
            reference, passes = self._passes.get(id(model), (weakref.ref(model), 0))
            if reference() is not model:  # it lives where another one did
                reference, passes = weakref.ref(model), 0
            self._passes[id(model)] = (reference, passes + 1)
            if len(self._passes) > _MOST_MODELS:
                self._passes.clear()

    def progress(self, value: int, total: int) -> None:
        """`value` of `total` steps are done."""
        now = self._clock()
        with self._lock:
            before, total_before, at = self._last
            self._last = (value, total, now)
            passes, self._passes = self._passes, {}
            if value <= before or total != total_before:
                self._run += 1
            elif len(passes) == 1:
                ((key, (model, count)),) = passes.items()
                self._add(key, model, now - at, count)

    def _add(self, key: int, model: weakref.ref[object], seconds: float, passes: int) -> None:
        series = self._series.pop(key, None)
        if series is None or series.run != self._run or series.model() is not model():
            series = _Series(model, self._run)
        series.seconds += seconds
        series.passes += passes
        self._series[key] = series
        while len(self._series) > self._kept:
            self._series.popitem(last=False)

    def seconds(self, key: int) -> float | None:
        """Return the average seconds of a pass of the model with this id(); None where not known."""
        with self._lock:
            series = self._series.get(key)
            if series is None or series.model() is None:
                return None
            return series.seconds / series.passes
