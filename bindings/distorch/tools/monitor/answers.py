# SPDX-License-Identifier: Apache-2.0
"""Reads what servers answer. Nothing in an answer is trusted: what cannot be used raises AnswerError with the reason.

/system_stats has had several forms; each device may be told in bytes (`vram_total`, `vram_free`, `vram_used`), in MB
(`total_mem_mb`, `free_mem_mb`, `used_mem_mb`), or in both, with any one of the three missing. Bytes win over MB.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from distorch.printable import printable
from distorch.tools.monitor.sample import DeviceSample, ModelSample, NodeRun, PromptRun, Queue

_MB = 2**20
_LARGEST = 2**53  # of JSON's integers
_MAX_DEVICES = 256
_DEVICE = re.compile(r"[a-z][a-z0-9_]{0,31}(:\d{1,4})?", re.ASCII)
_DEVICE_IN_NAME = re.compile(r"^([a-z]+:\d{1,4})\b *(.*?)(?: : \w+)?$", re.DOTALL)


class AnswerError(ValueError):
    """An answer that cannot be used; the message says why."""


def number(value: object) -> float | None:
    """Return a JSON number that is finite and not negative, or None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return float(value) if 0 <= value < _LARGEST else None


def size(value: object) -> int | None:
    """Return a number of bytes, or None."""
    found = number(value)
    return None if found is None else int(found)


def text(value: object, most: int = 200) -> str:
    """Return a text that is printable, cut at `most` of them; "" for what is none."""
    if not isinstance(value, str):
        return ""
    whole = value[:most].encode("utf-8", "replace").decode()  # JSON may hold half a character
    return printable(whole, " ").replace("\n", " ")


def mapping(value: object) -> Mapping[str, Any]:
    """Return an object of JSON; empty for what is none."""
    return value if isinstance(value, dict) else {}


def items(value: object, most: int = 10_000) -> list[Any]:
    """Return a list of JSON, its first `most` items; empty for what is none."""
    return value[:most] if isinstance(value, list) else []


def sizes(value: object) -> dict[str, int]:
    """Return a map from devices to bytes, without what is neither."""
    found = {k: size(v) for k, v in mapping(value).items() if _DEVICE.fullmatch(k)}
    return {k: v for k, v in found.items() if v is not None}


def system_stats(answer: object) -> tuple[DeviceSample, ...]:
    """Return the devices of /system_stats, in its order. Raises AnswerError when there is none that can be used."""
    devices: dict[str, DeviceSample] = {}
    for position, entry in enumerate(items(mapping(answer).get("devices"), _MAX_DEVICES)):
        memory = _memory(mapping(entry))
        if memory is None:
            continue
        device, name = _identity(mapping(entry), position)
        used, free, total = memory
        allocated, reserved = _of_torch(mapping(entry), total)
        devices.setdefault(
            device,
            DeviceSample(
                device, used, free, total, name=name, allocated=allocated, reserved=reserved
            ),
        )
    if not devices:
        raise AnswerError("no device with its memory in the answer")
    return tuple(devices.values())


def _memory(entry: Mapping[str, Any]) -> tuple[int, int, int] | None:
    """Return (used, free, total) from any two of the three; a total that is not told is 0 only when it must be."""

    def one(in_bytes: str, in_megabytes: str) -> int | None:
        found = size(entry.get(in_bytes))
        if found is not None:
            return found
        megabytes = number(entry.get(in_megabytes))
        return None if megabytes is None else size(megabytes * _MB)

    used = one("vram_used", "used_mem_mb")
    free = one("vram_free", "free_mem_mb")
    total = one("vram_total", "total_mem_mb")
    if total is not None and free is not None:
        return (max(0, total - free) if used is None else used), free, total
    if used is None:
        return None
    if total is not None:
        return used, max(0, total - used), total
    return used, free or 0, used + free if free is not None else 0


def _of_torch(entry: Mapping[str, Any], total: int) -> tuple[int | None, int | None]:
    """Return (allocated, reserved) of torch's allocator. Of a device without one ComfyUI tells the whole memory."""
    reserved, idle = size(entry.get("torch_vram_total")), size(entry.get("torch_vram_free"))
    if reserved is None or reserved >= total:
        return None, None
    return (None if idle is None else max(0, reserved - idle)), reserved


def _identity(entry: Mapping[str, Any], position: int) -> tuple[str, str]:
    """Return (device, vendor's name). ComfyUI's name is "cuda:0 NVIDIA … : cudaMallocAsync"."""
    name = text(entry.get("name"))
    in_name = _DEVICE_IN_NAME.match(name)
    vendor = in_name.group(2) if in_name else name
    kind, index = entry.get("type"), entry.get("index")
    if isinstance(kind, str) and _DEVICE.fullmatch(kind):
        if kind in ("cpu", "mps"):
            return kind, "" if vendor == kind else vendor
        at = int(index) if isinstance(index, int) and 0 <= index < _MAX_DEVICES else None
        return f"{kind}:{position if at is None else at}", vendor
    # The forms without a type are those of NVIDIA's cards.
    return (in_name.group(1) if in_name else f"cuda:{position}"), vendor


def history_devices(sample: Mapping[str, Any]) -> tuple[DeviceSample, ...]:
    """Return the devices of one sample of /distorch/history, accelerators first."""
    devices = []
    for device, entry in list(mapping(sample.get("devices")).items())[:_MAX_DEVICES]:
        fields = mapping(entry)
        used, total = size(fields.get("used")), size(fields.get("total"))
        if used is None or not _DEVICE.fullmatch(device):
            continue
        peak = size(fields.get("peak"))
        devices.append(
            DeviceSample(
                device,
                used,
                max(0, (total or 0) - used),
                total or 0,
                None if peak is None else max(peak, used),
                allocated=size(fields.get("allocated")),
                reserved=size(fields.get("reserved")),
            )
        )
    return tuple(sorted(devices, key=lambda d: d.device == "cpu"))


def history_samples(answer: object) -> list[tuple[float, tuple[DeviceSample, ...]]]:
    """Return (the server's time, devices) of each sample that can be used, oldest first."""
    found = []
    for entry in items(mapping(answer).get("samples"), 1_000_000):
        time, devices = number(mapping(entry).get("time")), history_devices(mapping(entry))
        if time is not None and devices:
            found.append((time, devices))
    return sorted(found, key=lambda sample: sample[0])


def runs(answer: object) -> tuple[PromptRun, ...]:
    """Return the prompts of /distorch/history; what is no prompt is left out."""
    found = []
    for entry in map(mapping, items(mapping(answer).get("runs"))):
        started = number(entry.get("started"))
        if started is None or not isinstance(entry.get("prompt"), str):
            continue
        found.append(
            PromptRun(
                text(entry["prompt"]),
                started,
                number(entry.get("ended")),
                text(entry.get("status")) or "running",
                sizes(entry.get("peak")),
                tuple(_nodes(items(entry.get("nodes")))),
            )
        )
    return tuple(sorted(found, key=lambda run: run.started))


def _nodes(entries: Iterable[Any]) -> Iterable[NodeRun]:
    for entry in map(mapping, entries):
        started = number(entry.get("started"))
        if started is None:
            continue
        yield NodeRun(
            text(entry.get("node")) or "?",
            text(entry.get("kind")) or "?",
            started,
            number(entry.get("ended")),
            sizes(entry.get("peak")),
            models(entry.get("loaded")),
        )


def models(entries: object) -> tuple[ModelSample, ...]:
    """Return the models of a list, largest first; what is no model is left out."""
    found = []
    for entry in map(mapping, items(entries)):
        name = text(entry.get("name"))
        if name:
            held = sizes(entry.get("bytes"))
            found.append(ModelSample(name, text(entry.get("type")), held))
    return tuple(sorted(found, key=lambda model: (-model.total, model.name)))


def queue(answer: object) -> Queue:
    """Return ComfyUI's /queue: entries are [number, prompt id, graph, …]."""
    running = items(mapping(answer).get("queue_running"))
    pending = len(items(mapping(answer).get("queue_pending"), 1_000_000))
    first = running[0] if running else None
    if not isinstance(first, list) or len(first) < 3 or not isinstance(first[1], str):
        return Queue(pending=pending)
    return Queue(text(first[1]), len(mapping(first[2])), pending)
