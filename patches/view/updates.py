# SPDX-License-Identifier: Apache-2.0
"""Tells open pages what changed, and the sampler what torch's allocators hold: once a second."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

from distorch.memory.sampler import Sampler

from .facts import differs

log = logging.getLogger("DisTorch")

UPDATE_SECONDS = 1.0
# Smaller differences of a device are not worth a message to the browser.
UPDATE_BYTES = 1024 * 1024
PAUSE_SECONDS = 30.0  # after an error


class Updates:
    """A thread that sends "distorch.update", "distorch.sample" and "distorch.run"."""

    def __init__(
        self,
        server: Any,
        sampler: Sampler,
        state: Callable[[], dict[str, Any]],
        nudge: Callable[[], None],
    ) -> None:
        """`state`: models, devices and placements; `nudge`: called each second as well."""
        self._server, self._sampler, self._state, self._nudge = server, sampler, state, nudge
        self._sent: dict[str, Any] = {}
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
            except Exception:
                log.exception("DisTorch: the memory view could not be updated")
                self._stop.wait(PAUSE_SECONDS)

    def push_sample(self) -> bool:
        """Send the newest sample if it differs from the last one sent; returns whether it did."""
        sample = self._sampler.last() if self._server.sockets else None
        if sample is None or not _moved(self._shown, sample["devices"]):
            return False
        self._shown = sample["devices"]
        self._server.send_sync("distorch.sample", sample)
        return True

    def push_update(self) -> bool:
        """Send the state to every open page if it changed; returns whether it did."""
        if not self._server.sockets:
            return False
        state = self._state()
        if not differs(self._sent, state, UPDATE_BYTES):
            return False
        update = news(self._sent, state)
        self._sent = state
        self._server.send_sync("distorch.update", update)
        return True

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
        if not self._server.sockets:
            return 0
        for run in runs.values():
            self._server.send_sync("distorch.run", run)
        return len(runs)


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


def _moved(old: dict[str, Any], new: dict[str, Any]) -> bool:
    if old.keys() != new.keys():
        return True
    return any(
        abs(new[device][key] - old[device][key]) >= UPDATE_BYTES * (1 if device != "cpu" else 64)
        for device in new
        for key in ("used", "peak")
    )
