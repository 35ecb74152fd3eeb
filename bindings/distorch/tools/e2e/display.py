# SPDX-License-Identifier: Apache-2.0
"""What is shown while scenes run: plain lines anywhere, bars that move in a terminal where `rich` is installed."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Mapping
from typing import Any, Protocol, TextIO

from distorch.tools.e2e.events import NodeRun, Tracker
from distorch.tools.e2e.memory import MemoryWatch
from distorch.tools.e2e.results import RunResult, SceneResult
from distorch.tools.e2e.workflow import Scene
from distorch.tools.monitor.bars import DeviceBars, Row

MB = 2**20
_SPARSE = 10.0  # seconds between two lines about one node


class Display(Protocol):
    """Told what happens, in the event loop; must not block."""

    def begins(self, result: RunResult, scenes: int, memory: MemoryWatch) -> None: ...
    def scene_begins(self, scene: Scene) -> None: ...
    def changed(self, tracker: Tracker) -> None: ...
    def scene_ends(self, found: SceneResult, first: Mapping[str, int]) -> None: ...
    def ends(self) -> None: ...


class Writer(Protocol):
    """What lines go to: a text file, or a `Speaker`."""

    def write(self, words: str, /) -> object: ...
    def flush(self) -> object: ...


class Plain:
    """Lines: one when a node begins, one when it ended, one now and then in between."""

    def __init__(self, out: Writer, *, memory: bool = False, quiet: bool = False) -> None:
        """`memory` adds what the devices hold to each line; `quiet` leaves out the nodes."""
        self._out, self._with_memory, self._quiet = out, memory, quiet
        self._scenes = 0
        self._watch: MemoryWatch | None = None
        self._told = 0  # nodes whose begin was told
        self._ended = 0
        self._next = 0.0

    def begins(self, result: RunResult, scenes: int, memory: MemoryWatch) -> None:
        """Name the server."""
        self._scenes, self._watch = scenes, memory
        version = f" {result.comfyui}" if result.comfyui else ""
        self._line(f"ComfyUI{version} at {result.url}: {scenes} scene{'s' if scenes != 1 else ''}")

    def scene_begins(self, scene: Scene) -> None:
        """Begin a block of lines."""
        self._told = self._ended = 0
        self._line(f"[{scene.number}/{self._scenes}] {scene.name}")

    def changed(self, tracker: Tracker) -> None:
        """Tell what is new."""
        if self._quiet:
            return
        runs, total = tracker.runs, len(tracker.nodes)
        for run in runs[self._ended :]:
            if run.seconds is not None:
                self._line(f"  {'done':>9}  {label(run)}  {run.seconds:.1f} s{self._memory()}")
                self._ended += 1
        if len(runs) > self._told:
            self._told, self._next = len(runs), time.monotonic() + _SPARSE
            done = len(tracker.cached) + len(runs)
            self._line(f"  {f'{min(done, total)}/{total}':>9}  {label(runs[-1])}")
        now = tracker.current
        if now is not None and now.most and time.monotonic() >= self._next:
            self._next = time.monotonic() + _SPARSE
            share = 100 * now.value / now.most
            self._line(
                f"  {share:8.0f}%  {label(now)}  {now.value:g} of {now.most:g}{self._memory()}"
            )

    def scene_ends(self, found: SceneResult, first: Mapping[str, int]) -> None:
        """Tell how it ended."""
        for line in scene_lines(found, first):
            self._line(f"  {line}")

    def ends(self) -> None:
        """Nothing is open."""

    def _memory(self) -> str:
        latest = self._watch.keeper.latest if self._with_memory and self._watch else None
        return (
            "" if latest is None else "  |  " + levels({d.device: d.used for d in latest.devices})
        )

    def _line(self, text: str) -> None:
        with contextlib.suppress(OSError):  # the reader of a pipe went away: the run goes on
            self._out.write(text + "\n")
            self._out.flush()


class Rich:
    """A bar for the scenes, one for the nodes of this scene, one for the node that runs, and the devices' memory."""

    def __init__(self, out: TextIO, *, memory: bool = False) -> None:
        """Raises ImportError when `rich` is not installed. `memory` adds a line for each device."""
        from rich.console import Console, Group
        from rich.live import Live
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self._console = Console(file=out, highlight=False)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(30),
            TextColumn("{task.fields[count]}", markup=False),
            TimeElapsedColumn(),
            console=self._console,
        )
        self._group: Any = Group
        self._with_memory = memory
        self._watch: MemoryWatch | None = None
        self._live = Live(
            console=self._console, get_renderable=self._render, refresh_per_second=4, transient=True
        )
        self._ended = 0
        self._node: NodeRun | None = None
        self._peaks: dict[str, int] = {}

    def begins(self, result: RunResult, scenes: int, memory: MemoryWatch) -> None:
        """Open the live region."""
        self._watch = memory
        version = f" {result.comfyui}" if result.comfyui else ""
        self._scenes = scenes
        self._print(f"ComfyUI{version} at {result.url}")
        self._all = self._progress.add_task("scenes", total=scenes, count=f"0/{scenes}")
        self._scene = self._progress.add_task("", visible=False, count="")
        self._step = self._progress.add_task("", visible=False, count="")
        self._live.start()

    def scene_begins(self, scene: Scene) -> None:
        """Reset the two lower bars."""
        self._ended, self._node = 0, None
        total = len(scene.workflow.nodes)
        self._print(f"[{scene.number}] {scene.name}")
        self._progress.reset(
            self._scene, total=total, description=scene.name, visible=True, count=f"0/{total} nodes"
        )
        self._progress.update(self._step, visible=False)

    def changed(self, tracker: Tracker) -> None:
        """Move the bars; a node that ended becomes a line above them."""
        total = len(tracker.nodes)
        for run in tracker.runs[self._ended :]:
            if run.seconds is not None:
                self._print(f"  {run.seconds:8.1f} s  {label(run)}")
                self._ended += 1
        done = min(len(tracker.cached) + self._ended, total)
        self._progress.update(self._scene, completed=done, count=f"{done}/{total} nodes")
        now = tracker.current
        if now is None:
            self._progress.update(self._step, visible=False)
            return
        if now is not self._node:
            self._node = now
            self._progress.reset(
                self._step, total=None, description=label(now), visible=True, count=""
            )
        if now.most:
            count = f"{now.value:g}/{now.most:g}"
            self._progress.update(self._step, total=now.most, completed=now.value, count=count)

    def scene_ends(self, found: SceneResult, first: Mapping[str, int]) -> None:
        """Leave the scene's lines above."""
        for line in scene_lines(found, first):
            self._print(f"  {line}", "green" if found.good and found.figures_hold else "red")
        self._progress.update(self._step, visible=False)
        self._progress.advance(self._all)
        self._progress.update(self._all, count=f"{found.number}/{self._scenes}")

    def ends(self) -> None:
        """Take the live region away."""
        if self._live.is_started:
            self._live.stop()

    def _print(self, text: str, style: str | None = None) -> None:
        self._console.print(text, style=style, markup=False)

    def _render(self) -> Any:
        latest = self._watch.keeper.latest if self._with_memory and self._watch else None
        if latest is None:
            return self._progress
        for d in latest.devices:
            self._peaks[d.device] = max(d.highest, self._peaks.get(d.device, 0))
        rows = [Row(d.device, d.used, d.total, self._peaks[d.device]) for d in latest.devices]
        return self._group(self._progress, DeviceBars(rows))


def make(out: TextIO, lines: Writer, *, memory: bool, quiet: bool) -> Display:
    """Return what suits `out`: bars in a terminal where `rich` is installed, else lines, which go to `lines`."""
    if out.isatty() and not quiet:
        try:
            return Rich(out, memory=memory)
        except ImportError:
            sys.stderr.write("distorch e2e: pip install rich shows moving bars here\n")
    return Plain(lines, memory=memory, quiet=quiet)


def label(run: NodeRun) -> str:
    """Name a node: "KSampler (4)", or "My title (4, KSampler)"."""
    node = run.node
    if node.title == node.kind:
        return f"{node.kind} ({node.id})"
    return f"{node.title} ({node.id}, {node.kind})"


def levels(used: Mapping[str, int]) -> str:
    """Return "cuda:0 512 MB, cuda:1 20 MB"."""
    return ", ".join(f"{device} {size / MB:.0f} MB" for device, size in used.items())


def scene_lines(found: SceneResult, first: Mapping[str, int]) -> list[str]:
    """Say how a scene ended: a line of its own for the message and for each note."""
    head = f"{found.outcome.status.value} in {found.seconds:.1f} s"
    if found.peak:
        head += f"; peak {levels(found.peak)}"
    if found.rest:
        rises = (
            f"{device} {used / MB:.0f} MB ({(used - first.get(device, used)) / MB:+.1f})"
            for device, used in found.rest.items()
        )
        head += f"; after it {', '.join(rises)}"
    lines = [head]
    if found.outcome.message:
        lines.append(found.outcome.message)
    return lines + found.notes
