# SPDX-License-Identifier: Apache-2.0
"""Tells pages that show it what changed, and the sampler what torch's allocators hold: once a second."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

from distorch.memory.sampler import Sampler

from .facts import differs
from .watchers import Watchers

log = logging.getLogger("DisTorch")

UPDATE_SECONDS = 1.0
# Smaller differences of a device are not worth a message to the browser.
UPDATE_BYTES = 1024 * 1024
PAUSE_SECONDS = 30.0  # after an error


class Updates:
    """A thread that sends "distorch.update", "distorch.sample" and "distorch.run" to pages with the tab open.

    One whose tab is closed hears of its badges only: an update when models or a GPU's percentage changed.
    """

    def __init__(
        self,
        watchers: Watchers,
        sampler: Sampler,
        state: Callable[[], dict[str, Any]],
        nudge: Callable[[], None],
        look: Callable[[], None],
    ) -> None:
        """`state`: models, devices and placements; `nudge`: called each second as well, `look` while a tab is open."""
        self._watchers, self._sampler, self._state = watchers, sampler, state
        self._nudge, self._look = nudge, look
        self._sent: dict[str, Any] = {}
        self._badges: tuple[Any, ...] = ()
        self._shown: dict[str, Any] = {}
        self._runs: dict[str, dict[str, Any]] = {}  # to be told, by prompt
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin."""
        thread = threading.Thread(target=self._run, name="distorch-view", daemon=True)
        thread.start()  # may fail: then there is none
        self._thread = thread

    def stop(self) -> None:
        """End it."""
        self._stop.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join()

    def wake(self) -> None:
        """Look now rather than within a second."""
        self._wake.set()

    def _run(self) -> None:
        while not self._stop.is_set():
            self._wake.wait(UPDATE_SECONDS)
            self._wake.clear()
            if self._stop.is_set():
                return
            try:
                self._nudge()
                self._sampler.push()
                self.push_sample()
                self.push_update()
                self.push_runs()
                if self._watchers.of("tab"):
                    self._look()
            except Exception:
                log.exception("DisTorch: the memory view could not be updated")
                self._stop.wait(PAUSE_SECONDS)

    def push_sample(self) -> bool:
        """Send the newest sample if it differs from the last one sent; returns whether it did."""
        sample = self._sampler.last() if self._watchers.of("tab") else None
        if sample is None or not _moved(self._shown, sample["devices"]):
            return False
        self._shown = sample["devices"]
        return bool(self._watchers.tell("tab", "distorch.sample", sample))

    def push_update(self) -> bool:
        """Send what changed to the pages that show it; returns whether anything was sent."""
        tabs, badges = self._watchers.of("tab"), self._watchers.of("badges")
        if not tabs and not badges:
            return False
        state, told = self._state(), 0
        if tabs and differs(self._sent, state, UPDATE_BYTES):
            told += self._watchers.tell("tab", "distorch.update", news(self._sent, state))
            self._sent = state
        if badges and (shown := _badges(state)) != self._badges:
            self._badges = shown
            part = {"models": state["models"], "devices": state["devices"]}
            told += self._watchers.tell("badges", "distorch.update", part)
        return told > 0

    def note_run(self, run: dict[str, Any]) -> None:
        """Remember what a run has needed so far, for the next look; one that has ended is told at once.

        Not told from here: a prompt of many quick nodes would send all of them again at each one's end.
        """
        with self._lock:
            self._runs[run["prompt"]] = run
        if run["status"] != "running":
            self.wake()

    def push_runs(self) -> int:
        """Send the runs that have gone on since the last look; returns how many."""
        with self._lock:
            runs, self._runs = self._runs, {}
        told = [self._watchers.tell("tab", "distorch.run", run) for run in runs.values()]
        return sum(1 for pages in told if pages)


def news(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Return the parts of the state `new` that differ from `old`; a page has the others.

    Of placements all are told, but with `blocks` only where these differ: a step's time changes
    every second, a thousand blocks do not.
    """
    found = {name: part for name, part in new.items() if old.get(name) != part}
    if "placements" in found:
        blocks = {p["key"]: p["blocks"] for p in old.get("placements", ())}
        found["placements"] = [
            {k: v for k, v in p.items() if k != "blocks" or blocks.get(p["key"]) != v}
            for p in found["placements"]
        ]
    return found


def _badges(state: dict[str, Any]) -> tuple[Any, ...]:
    """What the badges and their lists show: whole percents, and models with their sizes."""
    return (
        [
            (d["device"], round(100 * (d["total"] - d["free"]) / max(1, d["total"])))
            for d in state["devices"]
            if d["device"] != "cpu"
        ],
        [(model["id"], model["name"], model["bytes"]) for model in state["models"]],
    )


def _moved(old: dict[str, Any], new: dict[str, Any]) -> bool:
    if old.keys() != new.keys():
        return True
    return any(
        abs(new[device][key] - old[device][key]) >= UPDATE_BYTES * (1 if device != "cpu" else 64)
        for device in new
        for key in ("used", "peak")
    )
