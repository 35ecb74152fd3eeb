# SPDX-License-Identifier: Apache-2.0
"""One workflow queued once and followed to its end, whatever happens to the websocket, the server or this program."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from distorch.tools.e2e.client import Client, Feed, RefusedError, UnreachableError
from distorch.tools.e2e.events import Outcome, Status, Tracker
from distorch.tools.e2e.workflow import Scene


@dataclass(frozen=True)
class Limits:
    """Seconds.

    Attributes:
        scene: how long the server may work on one scene; it may wait in the queue as long again.
        reconnect: how long the server may stay away.
        interrupt: how long an interrupted node may take to notice, or the pack to free.
        look: how often the queue is asked while the websocket stands (a message may be lost).
        look_alone: the same while it does not.
        catch_up: how long the websocket may be behind at the end of a prompt, and at the start of the run.
    """

    scene: float = 3600.0
    reconnect: float = 60.0
    interrupt: float = 60.0
    look: float = 5.0
    look_alone: float = 0.5
    catch_up: float = 1.0


class SceneRun:
    """Runs one scene: `run` once, then `tracker` has its nodes and `ignored` what ComfyUI left out."""

    def __init__(
        self,
        client: Client,
        feed: Feed,
        scene: Scene,
        limits: Limits,
        changed: Callable[[Tracker], None],
    ) -> None:
        """`changed` is called after each change of what is known, in the event loop."""
        self._client, self._feed, self._limits, self._changed = client, feed, limits, changed
        self._scene = scene
        self._silent_since: float | None = None
        self.tracker = Tracker(str(uuid.uuid4()), scene.workflow.nodes)
        self.queued = time.monotonic()
        self.ignored = ""
        self.others = 0  # prompts of others that were seen in the queue
        self.stuck = False  # it still runs on the server, which does not react

    async def run(self) -> Outcome:
        """Return how it ended. When cancelled, takes the prompt off the server first."""
        self.queued = time.monotonic()
        try:
            self.tracker.prompt_id, self.ignored = await self._client.queue(
                self._scene.workflow.prompt, self.tracker.prompt_id
            )
            return await self._follow()
        except RefusedError as error:
            return Outcome(Status.REFUSED, str(error), error.node)
        except UnreachableError as error:
            return Outcome(Status.LOST, f"it could not be queued: {error}")
        except asyncio.CancelledError:
            with contextlib.suppress(UnreachableError, asyncio.TimeoutError):
                await asyncio.wait_for(self._client.abandon(self.tracker.prompt_id), 5)
            raise

    @property
    def _deadline(self) -> float:
        start = self.queued if self.tracker.started is None else self.tracker.started
        return start + self._limits.scene

    async def _follow(self) -> Outcome:
        next_look = time.monotonic() + self._limits.look_alone
        while time.monotonic() < self._deadline:
            wait = min(next_look, self._deadline) - time.monotonic()
            came, message = await self._feed.get(wait)
            now = time.monotonic()
            if message is not None and self.tracker.feed(message, now):
                self._changed(self.tracker)
            reconnected = came and message is None
            if self.tracker.ended or reconnected or now >= next_look:
                outcome = await self._look()
                if outcome is not None:
                    return outcome
                alone = self.tracker.ended or not self._feed.connected
                next_look = time.monotonic() + (
                    self._limits.look_alone if alone else self._limits.look
                )
        # This program may have been stopped meanwhile (Ctrl-Z, a paused terminal), and the server not.
        return await self._look() or await self._time_out()

    async def _look(self) -> Outcome | None:
        """Ask the server how the prompt stands; None: it goes on, or nobody answers for now."""
        now = time.monotonic()
        prompt = self.tracker.prompt_id
        try:
            place = await self._client.place(prompt)
            entry = None if place else await self._client.finished(prompt)
        except UnreachableError as error:
            self._silent_since = now if self._silent_since is None else self._silent_since
            silent = time.monotonic() - self._silent_since
            if silent < self._limits.reconnect:
                return None
            return Outcome(Status.LOST, f"no usable answer for {silent:.0f} s: {error}")
        self._silent_since = None
        self.others = max(self.others, self._client.others)
        if place == "running":
            self.tracker.begin(now)
        if place:
            return None
        await self._catch_up()
        if entry is not None:
            return self.tracker.read_history(entry, time.monotonic())
        if self.tracker.outcome is not None:  # somebody cleared the history
            return self.tracker.outcome
        return Outcome(
            Status.LOST,
            "the server knows nothing of the prompt any more: it was restarted, or its queue was cleared",
        )

    async def _catch_up(self) -> None:
        """Take the messages that were sent before the prompt ended: HTTP may overtake the websocket."""
        until = time.monotonic() + self._limits.catch_up
        while self._feed.connected and not self.tracker.ended and time.monotonic() < until:
            _, message = await self._feed.get(until - time.monotonic())
            if message is not None and self.tracker.feed(message, time.monotonic()):
                self._changed(self.tracker)

    async def _time_out(self) -> Outcome:
        """Interrupt the prompt and wait until the server is through with it, so that its memory comes back."""
        node = self.tracker.current
        doing = (
            f"node {node.node.id} ({node.node.title}) was running"
            if node
            else "it was running"
            if self.tracker.started is not None
            else "it was still waiting in the queue"
        )
        words = f"not done within {self._limits.scene:g} s: {doing}"
        shown = node.node.id if node else None
        until = time.monotonic() + self._limits.interrupt
        try:
            await self._client.abandon(self.tracker.prompt_id)
            while await self._client.place(self.tracker.prompt_id):
                if time.monotonic() > until:
                    self.stuck = True
                    words += f"; interrupted, but it goes on after {self._limits.interrupt:g} s"
                    break
                await asyncio.sleep(0.1)
            entry = await self._client.finished(self.tracker.prompt_id)
            if entry is not None:
                self.tracker.read_history(entry, time.monotonic())
        except UnreachableError as error:
            words += f"; it could not be interrupted: {error}"
        return Outcome(Status.TIMEOUT, words, shown)
