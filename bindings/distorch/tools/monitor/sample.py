# SPDX-License-Identifier: Apache-2.0
"""What a look at the devices gives. All sizes are in bytes, all times in seconds since 1970; nothing here changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class DeviceSample:
    """One device at one moment.

    Attributes:
        device: "cuda:0", "cpu"; the index is CUDA's.
        used: total − free, of all processes.
        free: bytes that can be had.
        total: 0 when unknown.
        peak: the largest `used` since the sample before, by the allocator's own counter; at least `used`. None where
            the source cannot tell: a spike between two samples is then not seen.
        name: what the vendor calls it, or "".
        allocated: bytes in torch's tensors, where the source tells.
        reserved: bytes torch's allocator holds, `allocated` included, where the source tells.
    """

    device: str
    used: int
    free: int
    total: int
    peak: int | None = None
    name: str = ""
    allocated: int | None = None
    reserved: int | None = None

    @property
    def highest(self) -> int:
        """The peak where it is known, or what is used."""
        return self.used if self.peak is None else max(self.used, self.peak)


@dataclass(frozen=True)
class ModelSample:
    """One model in memory: its bytes by device."""

    name: str
    type: str
    bytes: Mapping[str, int]

    @property
    def total(self) -> int:
        """Its bytes on all devices."""
        return sum(self.bytes.values())


@dataclass(frozen=True)
class NodeRun:
    """One node of a prompt; `ended` is None while it runs, `loaded` names the models it loaded."""

    node: str
    kind: str
    started: float
    ended: float | None = None
    peak: Mapping[str, int] = field(default_factory=dict)
    loaded: tuple[ModelSample, ...] = ()


@dataclass(frozen=True)
class PromptRun:
    """One prompt; `status` is "running", "success", "error" or "interrupted"."""

    prompt: str
    started: float
    ended: float | None = None
    status: str = "running"
    peak: Mapping[str, int] = field(default_factory=dict)
    nodes: tuple[NodeRun, ...] = ()

    @property
    def running_node(self) -> NodeRun | None:
        """The node that runs now."""
        if self.ended is not None:
            return None
        return next((n for n in reversed(self.nodes) if n.ended is None), None)


@dataclass(frozen=True)
class Queue:
    """ComfyUI's queue: the prompt that runs with the number of its nodes (0: unknown), and how many wait."""

    prompt: str | None = None
    nodes: int = 0
    pending: int = 0


@dataclass(frozen=True)
class Sample:
    """All devices at one moment.

    Attributes:
        time: when it was taken, by this machine's clock.
        source: "history", "system_stats", "nvml" or "nvidia-smi".
        devices: accelerators first; at least one.
        models: what is in memory, largest first, where the source tells.
        runs: prompts that ran since the sample before, oldest first, where the source tells.
        queue: where the source tells.
        missed: (source, reason) of better sources that failed this time.
    """

    time: float
    source: str
    devices: tuple[DeviceSample, ...]
    models: tuple[ModelSample, ...] = ()
    runs: tuple[PromptRun, ...] = ()
    queue: Queue | None = None
    missed: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Gap:
    """No source answered: (source, reason) of each."""

    time: float
    reasons: tuple[tuple[str, str], ...]

    @property
    def reason(self) -> str:
        """All of it in one line."""
        return "; ".join(f"{source}: {why}" for source, why in self.reasons)
