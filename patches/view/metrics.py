# SPDX-License-Identifier: Apache-2.0
"""The state of the memory and what runs needed, in Prometheus' text form.

docs/grafana-dashboard.json shows it. Sizes are bytes, times seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

# Prometheus asks every 15 s or so; a peak must not be over before it does.
PEAK_SECONDS = 60

_PARTS = ("models", "tensors", "unused", "other", "free")

Samples = list[tuple[dict[str, Any], float]]


@dataclass
class State:
    """What there is to tell. Names as in distorch.memory.recorder.Totals and docs/openapi.json."""

    devices: Iterable[Mapping[str, Any]] = ()  # scan.device_view()
    models: Iterable[Mapping[str, Any]] = ()
    samples: Iterable[Mapping[str, Any]] = ()  # of the last PEAK_SECONDS
    placements: Iterable[Mapping[str, Any]] = ()
    runs: Mapping[str, int] = field(default_factory=dict)  # by status
    last_peak: Mapping[str, int] = field(default_factory=dict)  # of the last run
    nodes: Mapping[str, int] = field(default_factory=dict)  # by kind
    node_seconds: Mapping[str, float] = field(default_factory=dict)
    loaded: Mapping[str, int] = field(default_factory=dict)  # by device
    jobs: Mapping[tuple[str, str], int] = field(default_factory=dict)  # by kind and state
    freed: Mapping[str, int] = field(default_factory=dict)  # by device
    scan_seconds: float = 0.0
    sampler_seconds: float = 0.0


def metrics(state: State) -> str:
    """Return `state` as text."""
    devices, models = list(state.devices), list(state.models)
    parts: Samples = [
        ({"device": d["device"], "part": part}, d[part]) for d in devices for part in _PARTS
    ]
    on_devices: Samples = [
        ({"id": m["id"], "name": m["name"], "type": m["type"], "device": device}, size)
        for m in models
        for device, size in m["bytes"].items()
    ]
    return "".join(
        (
            _family("device_bytes", "gauge", "What a device holds; the parts add up to it.", parts),
            *_of_samples(list(state.samples)),
            _family("model_bytes", "gauge", "A model's part on a device.", on_devices),
            *_of_steps(state.placements),
            *_of_runs(state),
            *_of_jobs(state),
            _family("scan_seconds", "gauge", "The last scan for models.", [({}, state.scan_seconds)]),
            _family("sampler_cpu_seconds_total", "counter", "Processor time of the sampling thread.",
                    [({}, state.sampler_seconds)]),
        )
    )  # fmt: skip


def _of_samples(samples: list[Mapping[str, Any]]) -> Iterable[str]:
    peaks: dict[str, int] = {}
    for sample in samples:
        for device, figures in sample["devices"].items():
            peaks[device] = max(peaks.get(device, 0), figures["peak"])
    last: Mapping[str, Mapping[str, int]] = samples[-1]["devices"] if samples else {}
    allocator: Samples = [
        ({"device": device, "kind": kind}, figures[kind])
        for device, figures in last.items()
        for kind in ("allocated", "reserved")
    ]
    yield _family("device_peak_bytes", "gauge", "The most in use on a device in the last minute.",
                  _by("device", peaks))  # fmt: skip
    yield _family(
        "allocator_bytes", "gauge", "What torch's allocator holds on a device.", allocator
    )


def _of_steps(placements: Iterable[Mapping[str, Any]]) -> Iterable[str]:
    found = list(placements)
    for kind in ("predicted", "measured"):
        values: Samples = [
            ({"model": p["name"], "key": p["key"]}, p[f"{kind}_step_ms"] / 1000)
            for p in found
            if p.get(f"{kind}_step_ms")
        ]
        yield _family(f"{kind}_step_seconds", "gauge", f"A step of a placed model, {kind}.", values)


def _of_runs(state: State) -> Iterable[str]:
    yield _family("runs_total", "counter", "Prompts that ended.", _by("status", state.runs))
    yield _family("run_peak_bytes", "gauge", "The most in use during the last prompt.",
                  _by("device", state.last_peak))  # fmt: skip
    yield _family("nodes_total", "counter", "Nodes that ran, cached ones not counted.",
                  _by("kind", state.nodes))  # fmt: skip
    yield _family("node_seconds_total", "counter", "Time in nodes.",
                  _by("kind", state.node_seconds))  # fmt: skip
    yield _family("loaded_bytes_total", "counter", "Bytes of models that nodes loaded.",
                  _by("device", state.loaded))  # fmt: skip


def _of_jobs(state: State) -> Iterable[str]:
    jobs: Samples = [
        ({"kind": kind, "state": end}, count) for (kind, end), count in state.jobs.items()
    ]
    yield _family("jobs_total", "counter", "Ejects, frees and cleared caches that were asked for.",
                  jobs)  # fmt: skip
    yield _family("freed_bytes_total", "counter", "Bytes they gave back.",
                  _by("device", state.freed))  # fmt: skip


def _by(label: str, values: Mapping[str, float]) -> Samples:
    return [({label: key}, value) for key, value in values.items()]


def _family(name: str, kind: str, text: str, samples: Samples) -> str:
    lines = [f"# HELP distorch_{name} {text}", f"# TYPE distorch_{name} {kind}"]
    for labels, value in samples:
        inner = ",".join(f'{key}="{_escape(str(label))}"' for key, label in labels.items())
        shown = f"{{{inner}}}" if inner else ""
        lines.append(f"distorch_{name}{shown} {_number(value)}")
    return "\n".join(lines) + "\n"


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else format(value, ".9g")


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
