# SPDX-License-Identifier: Apache-2.0
"""What the terminal shows: a live view with rich, or a plain line for each sample."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from distorch.tools.monitor.bars import BAR, DeviceBars, Row, amount
from distorch.tools.monitor.lines import Chosen, clock, megabytes
from distorch.tools.monitor.recorder import ClockJump, Event, Mark
from distorch.tools.monitor.sample import DeviceSample, Gap, ModelSample, NodeRun, PromptRun, Sample
from distorch.tools.monitor.sinks import Timeline

_TOP_MODELS = 8


@dataclass(frozen=True)
class Progress:
    """What the server works on: the prompt, its node, nodes done of all (0: unknown), seconds, prompts that wait."""

    run: PromptRun | None
    node: NodeRun | None
    done: int
    nodes: int
    seconds: float
    pending: int
    busy: bool


def progress(sample: Sample) -> Progress:
    """Return what a sample tells of the server's work."""
    run = next((r for r in reversed(sample.runs) if r.ended is None), None)
    queue = sample.queue
    pending = queue.pending if queue else 0
    nodes = queue.nodes if queue and (run is None or queue.prompt == run.prompt) else 0
    if run is None:
        return Progress(None, None, 0, nodes, 0.0, pending, bool(queue and queue.prompt))
    done = len({n.node for n in run.nodes if n.ended is not None})
    seconds = max(0.0, sample.time - run.started)
    return Progress(run, run.running_node, min(done, nodes or done), nodes, seconds, pending, True)


def progress_text(found: Progress) -> str:
    """Return it in a few words; "" when nothing is going on."""
    words = []
    if found.run is not None:
        words.append(f"prompt {found.run.prompt[:8]}")
        if found.node is not None:
            words.append(f"{found.node.kind} (node {found.node.node})")
        count = f"{found.done} of {found.nodes} nodes" if found.nodes else f"{found.done} nodes"
        words.append(f"{count} in {found.seconds:.0f} s")
    elif found.busy:
        words.append(f"a prompt of {found.nodes} nodes is running")
    if found.pending:
        words.append(f"{found.pending} waiting")
    return ", ".join(words)


class PlainView:
    """A line for each sample; of a row of gaps only the first, and the return."""

    def __init__(self, say: Callable[[str], None], devices: Chosen) -> None:
        self._say, self._devices = say, devices
        self._down_since: float | None = None
        self._reason = ""

    def take(self, event: Event) -> None:
        """Say what the event is."""
        if isinstance(event, Gap):
            if self._down_since is None or event.reason != self._reason:
                self._say(f"{clock(event.time)} no answer ({event.reason})")
            self._down_since = self._down_since or event.time
            self._reason = event.reason
        elif isinstance(event, Mark):
            self._say(f"{clock(event.time)} --- {event.label}")
        elif isinstance(event, ClockJump):
            self._say(f"{clock(event.time)} the clock was set by {event.seconds:+.1f} s")
        else:
            back = ""
            if self._down_since is not None:
                back = f"back after {max(0.0, event.time - self._down_since):.0f} s, "
            self._down_since, self._reason = None, ""
            self._say(f"{clock(event.time)} {back}{self._sample(event)}")

    def close(self) -> None:
        """Nothing to let go."""

    def _sample(self, sample: Sample) -> str:
        parts = [_device_text(d) for d in self._devices.of(sample)]
        working = progress_text(progress(sample))
        return "  ".join([sample.source, *parts, *([f"[{working}]"] if working else [])])


def _device_text(d: DeviceSample) -> str:
    total = f"/{megabytes(d.total)}" if d.total else ""
    share = f" {100 * d.used / d.total:.0f}%" if d.total else ""
    peak = f" peak {megabytes(d.highest)}" if d.peak is not None and d.highest > d.used else ""
    return f"{d.device} {megabytes(d.used)}{total} MB{share}{peak}"


class LiveView:
    """The state behind the live view, and its picture for rich. Thread safe."""

    def __init__(self, devices: Chosen, notes: list[str]) -> None:
        """`notes`: lines at the bottom (where the log goes)."""
        self._devices = devices
        self._timeline = Timeline(devices, capacity=120)
        self._notes = notes
        self._lock = threading.Lock()
        self._sample: Sample | None = None
        self._gap: Gap | None = None
        self._down_since = 0.0
        self._peaks: dict[str, int] = {}
        self._began = time.monotonic()
        self.samples = self.gaps = 0

    def take(self, event: Event) -> None:
        """Remember the event."""
        self._timeline.take(event)
        with self._lock:
            if isinstance(event, Sample):
                self._sample, self._gap = event, None
                self.samples += 1
                for d in self._devices.of(event):
                    self._peaks[d.device] = max(d.highest, self._peaks.get(d.device, 0))
            elif isinstance(event, Gap):
                self._down_since = event.time if self._gap is None else self._down_since
                self._gap = event
                self.gaps += 1

    def close(self) -> None:
        """Nothing to let go."""

    def __rich__(self) -> Any:
        """Return the picture of now."""
        from rich.console import Group

        with self._lock:
            sample, gap, peaks = self._sample, self._gap, dict(self._peaks)
        parts: list[Any] = [self._headline(sample, gap)]
        if sample is not None:
            parts.append(self._bars(sample, peaks, stale=gap is not None))
            parts += self._work(sample)
            parts += self._models(sample)
        parts += [_dim(note) for note in self._notes]
        return Group(*parts)

    def _headline(self, sample: Sample | None, gap: Gap | None) -> Any:
        from rich.text import Text

        ran = int(time.monotonic() - self._began)
        about = f"{ran // 3600}:{ran // 60 % 60:02d}:{ran % 60:02d}  {self.samples} samples"
        about += f", {self.gaps} gaps" if self.gaps else ""
        if gap is not None:
            down = max(0.0, time.time() - self._down_since)
            reason = "; ".join(dict.fromkeys(why for _, why in gap.reasons[:2]))
            return Text(f"{about}  no answer for {down:.0f} s: {reason}", style="bold red")
        source = f"  from {sample.source}" if sample else "  first look …"
        return Text(about + source, style="bold")

    def _bars(self, sample: Sample, peaks: dict[str, int], stale: bool) -> DeviceBars:
        points = {s.device: s.points for s in self._timeline.series()}
        rows = [
            Row(d.device, d.used, d.total, peaks.get(d.device, d.used), points.get(d.device, ()))
            for d in self._devices.of(sample)
        ]
        return DeviceBars(rows, stale)

    def _work(self, sample: Sample) -> list[Any]:
        from rich.text import Text

        found = progress(sample)
        words = progress_text(found)
        if not words:
            return []
        text = Text(words)
        if found.run is not None and found.nodes:
            filled = round(found.done / found.nodes * BAR)
            text.append("\n" + "━" * filled, style="cyan")
            text.append("━" * (BAR - filled), style="grey50")
        return [text]

    def _models(self, sample: Sample) -> list[Any]:
        shown = [m for m in sample.models if m.total][:_TOP_MODELS]
        return [_ModelLines(shown)] if shown else []


class _ModelLines:
    """A line for each model, cut at its end where the terminal is narrow: name, size, where it lies, type."""

    def __init__(self, models: list[ModelSample]) -> None:
        self._models = models

    def __rich_console__(self, _console: Any, options: Any) -> Iterator[Any]:
        from rich.text import Text

        longest = max(len(m.name) for m in self._models)
        name = min(longest, max(options.max_width * 3 // 8, 12))
        for m in self._models:
            held = "  ".join(
                f"{device} {amount(size).removesuffix(' GB')}"
                for device, size in m.bytes.items()
                if size
            )
            words = m.name if len(m.name) <= name else m.name[: name - 1] + "…"
            line = f"{words.ljust(name)}  {amount(m.total):>8}  {held}  {m.type}"
            yield Text(line.rstrip(), no_wrap=True, overflow="ellipsis")


def _dim(note: str) -> Any:
    from rich.text import Text

    return Text(note, style="dim")
