# SPDX-License-Identifier: Apache-2.0
"""Brings the weights of layer groups to the compute device, ahead of their use, in one copy a slab.

Staging slots on the compute device take turns. A copy runs on a stream of its own, after the compute that used the slot
before and before the compute that needs it (`distorch/execution/stream_scheduler.h`). Each source has its stream, so
that the bandwidths of several links add up. Nothing is copied back.

CUDA and HIP are served by the core (`distorch.run.byte_streaming`), other accelerators by streams of torch
(`distorch.run.torch_streaming`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from distorch.parts import rebuilt
from distorch.slabs import Run, layout, runs, views


def slots_for(sources: Collection[Any]) -> int:
    """Return how many staging slots the links of these sources can make use of at once, beside the compute."""
    return max(1, len(sources)) + 1


@dataclass
class StreamGroup:
    """What is streamed of one layer group: its packed tensors, and what moves them."""

    name: str
    stored: list[torch.Tensor]
    views: list[list[torch.Tensor]] = field(default_factory=list)  # by slot
    runs: list[Run] = field(default_factory=list)
    bytes: int = 0  # what bringing the group moves

    def __post_init__(self) -> None:
        """Find out what lies together."""
        self.runs, self.bytes = runs(self.stored)


class Streamer:
    """Slots of one model's streamed groups. One thread at a time.

    A backend gives `enter(index, stream, swap)`, called before a group computes: True once the tensors of its slot hang in
    the model, False with nothing changed where somebody has replaced a stored tensor; `leave(index, stream, swap)`, called
    after it has queued its kernels; `stream()`, the stream on which it queues them, as a handle of the core's; `begin_step()`;
    `in_slots()`, the groups that the slots hold; and `reset()`, after an error or when the stored tensors were written. `swap`
    is the group's `TensorSwap` of the core.

    Attributes:
        groups: what is streamed, in the order of the model.
        slot_bytes: bytes of one slot: the largest group.
        buffers: the slots.
        trouble: why not everything comes as fast as it could; "" when it does.
    """

    enter: Callable[[int, int, Any], bool]
    leave: Callable[[int, int, Any], None]
    stream: Callable[[], int]
    begin_step: Callable[[], None]
    in_slots: Callable[[], list[int]]
    reset: Callable[[], None]

    def __init__(self, groups: Sequence[StreamGroup], compute: torch.device, slots: int) -> None:
        """Make the slots. Raises torch.OutOfMemoryError when the compute device has no room for them."""
        self.groups = list(groups)
        self.compute = compute
        self.trouble = ""
        self.slot_bytes = max(group.bytes for group in self.groups)
        self.buffers: list[torch.Tensor] = []
        with torch.inference_mode(False), torch.no_grad():
            for _ in range(min(slots, len(self.groups))):
                self.buffers.append(slot_memory(self.slot_bytes, compute))
            for group in self.groups:
                offsets = layout(group.stored)[0]
                for buffer in self.buffers:
                    group.views.append(
                        [
                            rebuilt(tensor, views(buffer, places, tensor))
                            for tensor, places in zip(group.stored, offsets, strict=True)
                        ]
                    )

    @property
    def counters(self) -> dict[str, int]:
        """Copies started, of them ahead of use and on demand, and those overwritten unread."""
        raise NotImplementedError

    @property
    def bytes_copied(self) -> int:
        """Bytes copied to the compute device since it was made."""
        raise NotImplementedError

    def close(self) -> None:
        """Give the slots back, behind the last copy. Nothing may compute from them any more."""
        self.buffers.clear()
        for group in self.groups:
            group.views.clear()


def slot_memory(size: int, device: torch.device) -> torch.Tensor:
    """Return uninitialised bytes of a device."""
    return torch.empty(size, dtype=torch.uint8, device=device)
