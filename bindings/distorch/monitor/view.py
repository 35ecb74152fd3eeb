# SPDX-License-Identifier: Apache-2.0
"""What the terminal shows: a live view with rich, or a plain line for each sample."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from distorch.monitor.lines import Chosen, clock, megabytes
from distorch.monitor.recorder import ClockJump, Event, Mark
from distorch.monitor.sample import DeviceSample, Gap, NodeRun, PromptRun, Sample
from distorch.monitor.sinks import Point, Series, Timeline

_GB = 2**30
_BARS = "▁▂▃▄▅▆▇█"
_TOP_MODELS = 8
_BAR = 30  # characters


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
        node = found.node
        words.append(f"prompt {found.run.prompt[:8]}")
        words += [f"{node.kind} (node {node.node})"] * (node is not None) if node else []
        count = f"{found.done} of {found.nodes} nodes" if found.nodes else f"{found.done} nodes"
        words.append(f"{count} in {found.seconds:.0f} s")
    elif found.busy:
        words.append(f"a prompt of {found.nodes} nodes is running")
    if found.pending:
        words.append(f"{found.pending} waiting")
    return ", ".join(words)


def sparkline(points: list[Point], full: int, width: int = 40) -> str:
    """Return the last points as a row of blocks; a blank is a gap."""
    if full <= 0:
        return ""
    shown = []
    for p in points[-width:]:
        if p.used is None:
            shown.append(" ")
            continue
        level = int(max(p.used, p.peak or 0) / full * len(_BARS))
        shown.append(_BARS[min(max(level, 0), len(_BARS) - 1)])
    return "".join(shown)


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

    def _bars(self, sample: Sample, peaks: dict[str, int], stale: bool) -> Any:
        from rich.table import Table

        series = {s.device: s for s in self._timeline.series()}
        table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
        for d in self._devices.of(sample):
            peak = peaks.get(d.device, d.used)
            full = d.total or peak or 1
            sizes = (
                f"{d.used / _GB:.1f} / {d.total / _GB:.1f} GB"
                if d.total
                else f"{d.used / _GB:.1f} GB"
            )
            table.add_row(
                d.device,
                _bar(d.used / full, peak / full, stale),
                sizes,
                f"peak {peak / _GB:.1f}",
                sparkline(series.get(d.device, Series("", 1)).points, full),
            )
        return table

    def _work(self, sample: Sample) -> list[Any]:
        from rich.text import Text

        found = progress(sample)
        words = progress_text(found)
        if not words:
            return []
        text = Text(words)
        if found.run is not None and found.nodes:
            filled = round(found.done / found.nodes * _BAR)
            text.append("\n" + "━" * filled, style="cyan")
            text.append("━" * (_BAR - filled), style="grey50")
        return [text]

    def _models(self, sample: Sample) -> list[Any]:
        from rich.table import Table
        from rich.text import Text

        shown = [m for m in sample.models if m.total][:_TOP_MODELS]
        if not shown:
            return []
        table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
        for model in shown:
            where = "  ".join(
                f"{device} {size / _GB:.2f}" for device, size in model.bytes.items() if size
            )
            table.add_row(
                Text(model.name), Text(model.type), f"{model.total / _GB:.2f} GB", Text(where)
            )
        return [table]


def _bar(used: float, peak: float, stale: bool) -> Any:
    from rich.text import Text

    filled = round(min(max(used, 0.0), 1.0) * _BAR)
    mark = min(max(round(min(max(peak, 0.0), 1.0) * _BAR) - 1, 0), _BAR - 1)
    colour = "grey50" if stale else "red" if used > 0.95 else "yellow" if used > 0.85 else "green"
    text = Text("█" * filled, style=colour)
    text.append("░" * (_BAR - filled), style="grey50")
    if mark >= filled:  # the largest so far
        text = Text.assemble(text[:mark], ("|", "bold red"), text[mark + 1 :])
    return text


def _dim(note: str) -> Any:
    from rich.text import Text

    return Text(note, style="dim")
