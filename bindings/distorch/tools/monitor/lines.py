# SPDX-License-Identifier: Apache-2.0
"""Events as lines of a log. `distorch/telemetry/log_line.h` lists the forms, and reads them."""

from __future__ import annotations

import json
import time
from collections import OrderedDict
from collections.abc import Collection, Iterator
from typing import Any

from distorch.tools.monitor.recorder import Event, Mark
from distorch.tools.monitor.sample import DeviceSample, Gap, ModelSample, NodeRun, PromptRun, Sample

_MB = 2**20
_REMEMBERED = 10_000  # nodes and runs that have been written


def megabytes(size: int) -> int:
    """Return bytes in MB, rounded to the nearest."""
    return (size + _MB // 2) // _MB


def clock(moment: float) -> str:
    """Return the local time of day, HH:mm:ss."""
    return time.strftime("%H:%M:%S", time.localtime(moment))


class Chosen:
    """The devices that are recorded: all, those named, or the first, which then stays the first."""

    def __init__(self, names: Collection[str] | None = None, *, every: bool = False) -> None:
        """`names`: these; `every`: all; neither: the first device of the first sample."""
        self._names = None if names is None else frozenset(names)
        self._every = every

    def of(self, sample: Sample) -> list[DeviceSample]:
        """Return the devices of a sample that are recorded."""
        if self._every:
            return list(sample.devices)
        if self._names is None:
            self._names = frozenset({sample.devices[0].device})
        return [d for d in sample.devices if d.device in self._names]

    def absent(self, sample: Sample) -> list[str]:
        """Return the names that a sample does not have."""
        return sorted((self._names or frozenset()) - {d.device for d in sample.devices})


class Lines:
    """The seed form: `12:34:56,Used=8123MB,Free=16453MB`, or, `named`, with the device, and its peak where known."""

    header = ""

    def __init__(self, devices: Chosen, named: bool) -> None:
        self._devices, self._named = devices, named

    def __call__(self, event: Event) -> str:
        """Return the lines of an event; "" for what this form cannot tell."""
        if not isinstance(event, Sample):
            return ""
        return "".join(self._line(clock(event.time), d) for d in self._devices.of(event))

    def _line(self, when: str, d: DeviceSample) -> str:
        sizes = f"Used={megabytes(d.used)}MB,Free={megabytes(d.free)}MB"
        if not self._named:
            return f"{when},{sizes}\n"
        peak = "" if d.peak is None else f",Peak={megabytes(d.highest)}MB"
        return f"{when},{d.device},{sizes}{peak}\n"


class Csv:
    """Comma-separated values in bytes and seconds since 1970."""

    header = "time,device,used,free,total,peak,source"

    def __init__(self, devices: Chosen) -> None:
        self._devices = devices

    def __call__(self, event: Event) -> str:
        """Return the lines of an event; "" for what this form cannot tell."""
        if not isinstance(event, Sample):
            return ""
        return "".join(
            f"{event.time:.3f},{d.device},{d.used},{d.free},{d.total},"
            f"{'' if d.peak is None else d.highest},{event.source}\n"
            for d in self._devices.of(event)
        )


class JsonLines:
    """Everything: samples, gaps, marks, changes of the clock and of the models, nodes and prompts as they end."""

    header = ""

    def __init__(self, devices: Chosen) -> None:
        self._devices = devices
        self._models: dict[tuple[str, str], dict[str, int]] = {}
        self._written: OrderedDict[tuple[str, ...], None] = OrderedDict()

    def __call__(self, event: Event) -> str:
        """Return the lines of an event."""
        if isinstance(event, Sample):
            return "".join(self._sample(event))
        if isinstance(event, Gap):
            return _json({"time": event.time, "gap": event.reason})
        if isinstance(event, Mark):
            return _json({"time": event.time, "mark": event.label})
        return _json({"time": event.time, "clock": round(event.seconds, 3)})

    def _sample(self, sample: Sample) -> Iterator[str]:
        for d in self._devices.of(sample):
            yield _device(sample, d)
        yield from self._changed_models(sample)
        for run in sample.runs:
            yield from self._ended(sample.time, run)

    def _changed_models(self, sample: Sample) -> Iterator[str]:
        if sample.source != "history":
            return  # this source knows of no models, which is not to say that there are none
        now: dict[tuple[str, str], dict[str, int]] = {}
        for model in sample.models:  # two of one name count together
            held = now.setdefault((model.name, model.type), {})
            for device, size in model.bytes.items():
                held[device] = held.get(device, 0) + size
        gone: dict[tuple[str, str], dict[str, int]]
        gone = {key: {} for key in self._models if key not in now}
        for (name, kind), held in {**gone, **now}.items():
            if self._models.get((name, kind)) != held:
                yield _model(sample.time, ModelSample(name, kind, held))
        self._models = now

    def _ended(self, moment: float, run: PromptRun) -> Iterator[str]:
        for node in run.nodes:
            if node.ended is not None and self._is_new(
                "node", run.prompt, node.node, repr(node.started)
            ):
                yield _node(moment, run, node)
                for model in node.loaded:
                    yield _model(moment, model, node.node)
        if run.ended is not None and self._is_new("run", run.prompt, repr(run.started)):
            yield _json({
                "time": moment, "run": run.prompt, "status": run.status, "started": run.started,
                "ended": run.ended, "peak": dict(run.peak), "nodes": len(run.nodes),
            })  # fmt: skip

    def _is_new(self, *key: str) -> bool:
        if key in self._written:
            return False
        self._written[key] = None
        if len(self._written) > _REMEMBERED:
            self._written.popitem(last=False)
        return True


def _device(sample: Sample, d: DeviceSample) -> str:
    """The commonest line; its order of members is what the reader of statistics is fastest at."""
    more = "" if d.peak is None else f',"peak":{d.highest}'
    if d.allocated is not None:
        more += f',"allocated":{d.allocated}'
    if d.reserved is not None:
        more += f',"reserved":{d.reserved}'
    return (
        f'{{"time":{sample.time:.3f},"device":"{d.device}","used":{d.used},"free":{d.free},'
        f'"total":{d.total}{more},"source":"{sample.source}"}}\n'
    )


def _model(moment: float, model: ModelSample, node: str | None = None) -> str:
    fields = {"time": moment, "model": model.name, "type": model.type, "bytes": dict(model.bytes)}
    return _json(fields if node is None else {**fields, "loaded_by": node})


def _node(moment: float, run: PromptRun, node: NodeRun) -> str:
    return _json({
        "time": moment, "node": node.node, "kind": node.kind, "prompt": run.prompt,
        "started": node.started, "ended": node.ended, "peak": dict(node.peak),
    })  # fmt: skip


def _json(fields: dict[str, Any]) -> str:
    fields["time"] = round(fields["time"], 3)
    line = json.dumps(fields, separators=(",", ":"))
    if "\\ud" in line:  # half of a character, which is no JSON for strict readers, becomes "?"
        clean = json.dumps(fields, ensure_ascii=False).encode("utf-8", "replace")
        line = json.dumps(json.loads(clean), separators=(",", ":"))
    return line + "\n"
