# SPDX-License-Identifier: Apache-2.0
"""A whole run: scene after scene, memory in between, an end that is always clean."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from distorch.tools.e2e import drift
from distorch.tools.e2e.client import Client, Feed, UnreachableError, wait
from distorch.tools.e2e.display import Display
from distorch.tools.e2e.events import Outcome, Status, Tracker
from distorch.tools.e2e.memory import MemoryWatch, SceneMemory
from distorch.tools.e2e.results import ALL, FRESH, PARTLY, NodeTime, RunResult, SceneResult
from distorch.tools.e2e.scene import Limits, SceneRun
from distorch.tools.e2e.workflow import Scene
from distorch.tools.monitor.sinks import Timeline

HOW_TO_CLEAR = (
    "clear the cache before each scene with --clear-cache, or vary a seed in the workflow"
)
# Without the pack: ComfyUI's worker misses a /free that comes while it collects garbage, as it does after a prompt,
# until the next one, or the next prompt.
_FREE_PAUSES = (0.0, 0.3, 0.7)


@dataclass
class Options:
    """How to run. Memory in bytes, times in seconds.

    Attributes:
        scenes: what to run, in order.
        clear_cache: /free before the first scene and after each.
        fail_fast: end the run after the first scene that does not succeed.
        allow_cached: a scene from the cache is no failure.
        settle: how long memory may take to come to rest after a scene.
        drift: bytes a scene from which on a rise is a leak.
        drift_ram: the same for "cpu"; None: RAM is not judged.
        saved: called after each scene with what there is so far.
    """

    scenes: Sequence[Scene]
    limits: Limits = field(default_factory=Limits)
    clear_cache: bool = False
    fail_fast: bool = False
    allow_cached: bool = False
    settle: float = 15.0
    drift: float = 2**20
    drift_ram: float | None = None
    saved: Callable[[RunResult], None] = lambda _: None


class Run:
    """One run. `result` is filled as it goes, and is valid whenever the run ends."""

    def __init__(
        self, client: Client, memory: MemoryWatch, options: Options, display: Display
    ) -> None:
        """`client` and `memory` are entered by `run`."""
        self._client, self._memory, self._options, self._display = client, memory, options, display
        self._feed = Feed()
        self._epoch = 0
        self._drops = 0  # of the websocket, when the last scene began
        self.result = RunResult(client.url, allow_cached=options.allow_cached)

    async def run(self) -> None:
        """Run all scenes. When cancelled: takes the prompt off the server, ends every thread and task, then raises."""
        self.result.started = time.time()
        try:
            async with self._client:
                if await self._begins():
                    with self._memory:
                        await self._scenes()
        finally:
            self._finish()

    async def _begins(self) -> bool:
        try:
            self.result.comfyui = await self._client.version()
        except UnreachableError as error:
            self.result.message = f"no ComfyUI answers at {self._client.url}: {error}. Start it, or name another address with --url"
            self.result.unreachable = True
            return False
        self._display.begins(self.result, len(self._options.scenes), self._memory)
        return True

    async def _scenes(self) -> None:
        listening = asyncio.create_task(self._client.listen(self._feed))
        try:
            # Without a websocket the queue is asked instead.
            await wait(self._feed.first, self._options.limits.catch_up)
            if self._options.clear_cache:
                await self._clear()
            for scene in self._options.scenes:
                if not await self._ready():
                    return
                stuck = await self._scene(scene)
                self._sum_up()
                self._options.saved(self.result)
                last = self.result.scenes[-1]
                if stuck:
                    self.result.message = (
                        "the run ended early: the server does not react to the interruption"
                    )
                    return
                if self._options.fail_fast and not last.good:
                    self.result.message = f"the run ended after scene {scene.number}: --fail-fast"
                    return
            self.result.complete = True
        finally:
            listening.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await listening

    async def _ready(self) -> bool:
        """Wait for a server that is away; notice that it was restarted."""
        end = time.monotonic() + self._options.limits.reconnect
        while True:
            try:
                await self._client.version()
                await self._notice_restart()
                return True
            except UnreachableError as error:
                if time.monotonic() >= end:
                    self.result.message = f"the server is gone: {error}"
                    self.result.unreachable = True
                    return False
            await asyncio.sleep(self._options.limits.look_alone)

    async def _notice_restart(self) -> None:
        """A server that does not know the scene before any more has begun anew, and its memory with it."""
        last = self.result.scenes[-1] if self.result.scenes else None
        if self._feed.drops > self._drops and last is not None and last.prompt_id:
            self._epoch += await self._client.finished(last.prompt_id) is None
        self._drops = self._feed.drops

    async def _scene(self, scene: Scene) -> bool:
        """Run one scene and keep its result; return whether the server is stuck in it."""
        workflow = scene.workflow
        found = SceneResult(scene.number, scene.name, str(workflow.path), Outcome(Status.STOPPED))
        found.queued, found.nodes, found.epoch = time.time(), len(workflow.nodes), self._epoch
        self.result.scenes.append(found)
        self._display.scene_begins(scene)
        run = SceneRun(self._client, self._feed, scene, self._options.limits, self._display.changed)
        await self._memory.scene_begins(scene.name, run.tracker.prompt_id)
        drops, connected = self._feed.drops, self._feed.connected
        try:
            found.outcome = await run.run()
        finally:
            self._note_end(found, run)
        if self._options.clear_cache and not run.stuck:
            await self._clear()
        settle = 0.0 if found.outcome.status is Status.LOST else self._options.settle
        memory = await self._memory.scene_ended(found.prompt_id, found.ended, settle)
        found.samples, found.peak, found.rest = memory.samples, memory.peak, memory.rest
        found.rested = time.time()
        heard_all = connected and self._feed.connected and self._feed.drops == drops
        self._look_at_cache(found, run.tracker, memory, heard_all)
        self._display.scene_ends(found, self.result.baseline)
        return run.stuck

    def _note_end(self, found: SceneResult, run: SceneRun) -> None:
        """Keep what is known when the server is through with a scene, or this program is."""
        tracker = run.tracker
        begun = run.queued if tracker.started is None else tracker.started
        found.ended, found.seconds = time.time(), time.monotonic() - begun
        found.prompt_id = tracker.prompt_id
        found.ran = [
            NodeTime(r.node.id, r.node.kind, r.node.title, r.seconds) for r in tracker.runs
        ]
        if found.outcome.status is Status.REFUSED:
            found.prompt_id = ""
        if found.good and run.ignored:
            words = f"ComfyUI ignored a part of the workflow: {run.ignored}"
            found.outcome = Outcome(Status.REFUSED, words)
        if (
            found.outcome.status is Status.LOST
        ):  # what is measured now is another life of the server
            self._epoch += 1
            found.epoch = self._epoch
        if run.others:
            words = "prompts of others were in the queue"
            found.notes.append(f"{words} ({run.others}): the memory figures are theirs too")

    def _look_at_cache(
        self, found: SceneResult, tracker: Tracker, memory: SceneMemory, heard_all: bool
    ) -> None:
        """Say how much of the scene came from the cache, and whether its figures mean anything."""
        found.cached_nodes = sorted(tracker.cached)
        if not found.good:
            return
        nothing_ran = len(tracker.cached) >= found.nodes or (heard_all and not tracker.runs)
        found.cache = ALL if nothing_ran else PARTLY if tracker.cached else FRESH
        # A model that was there before works without memory rising: a sampler tells its steps.
        worked = not heard_all or any(run.most for run in tracker.runs)
        idle = memory.sure and not (memory.loaded or memory.rose or worked)
        if found.cache == ALL:
            found.figures_hold = False
            found.notes.append(
                f"everything came from ComfyUI's cache and no node ran, so the memory figures mean nothing: {HOW_TO_CLEAR}"
            )
        elif found.cache == PARTLY and idle:
            found.figures_hold = False
            found.notes.append(
                f"{len(tracker.cached)} of {found.nodes} nodes came from ComfyUI's cache and no model was loaded or used, "
                f"so the memory figures mean nothing: {HOW_TO_CLEAR}"
            )
        if self._options.clear_cache and found.cache != FRESH:
            found.notes.append(
                "ComfyUI was asked to clear its cache and still had results of nodes"
            )

    async def _clear(self) -> None:
        """Have the cache cleared; a server that does not answer shows in the next scene."""
        with contextlib.suppress(UnreachableError):
            if await self._client.free_with_pack(self._options.limits.interrupt):
                return
        for pause in _FREE_PAUSES:
            await asyncio.sleep(pause)
            with contextlib.suppress(UnreachableError):
                await self._client.free()

    def _sum_up(self) -> None:
        """Bring statistics and drift up to the last scene."""
        self.result.statistics = self._memory.statistics.result()
        epochs = [s.epoch for s in self.result.scenes if s.worked]
        longest = max(set(epochs), key=epochs.count, default=0)
        counted = [s for s in self.result.scenes if s.worked and s.epoch == longest]
        self.result.drift = []
        for device in dict.fromkeys(d for s in counted for d in s.rest):
            least = self._options.drift_ram if device == "cpu" else self._options.drift
            rests = [(i, s.rest[device]) for i, s in enumerate(counted, 1) if device in s.rest]
            if least is not None:
                self.result.drift.append(drift.judge(device, rests, least))

    @property
    def losses(self) -> str:
        """Which samples are not in the log, and why; "" when all are."""
        return self._memory.losses

    @property
    def timeline(self) -> Timeline:
        """The samples of each device, for a plot."""
        return self._memory.timeline

    def _finish(self) -> None:
        for scene in self._options.scenes[len(self.result.scenes) :]:
            self.result.scenes.append(
                SceneResult(
                    scene.number, scene.name, str(scene.workflow.path), Outcome(Status.NOT_RUN)
                )
            )
        self.result.ended = time.time()
        self._sum_up()
        self._display.ends()
