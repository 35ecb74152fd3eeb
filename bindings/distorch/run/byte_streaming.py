# SPDX-License-Identifier: Apache-2.0
"""The core streams on CUDA and HIP: `distorch/execution/byte_streamer.h`. One call a group before it computes, one after.

The core owns the slots and what it copies from until its last copy is done, also when a model just dies.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from distorch._load import core
from distorch.run.cuda import CudaDevice
from distorch.run.pinning import HostPinner
from distorch.run.streaming import Streamer, StreamGroup
from distorch.slabs import borders


class ByteStreamer(Streamer):
    """See the module and `Streamer`."""

    def __init__(
        self,
        groups: Sequence[StreamGroup],
        compute: torch.device,
        slots: int,
        pinner: HostPinner,
        cuda: CudaDevice,
    ) -> None:
        """Make slots, streams and events; pin what lies on the host.

        Raises:
            torch.OutOfMemoryError: the compute device has no room for the slots.
            RuntimeError: CUDA refuses; the message says what and what to do.
        """
        super().__init__(groups, compute, slots)
        parts: list[list[tuple[int, int, int, int, Any]]] = []
        owner = list(self.buffers)
        for group in self.groups:
            parts.append([])
            for run in group.runs:
                device = run.slab.device
                pinned = None
                if device.type == "cpu":
                    pinned = pinner.pin(run.slab, borders(run.slab, group.stored))
                else:
                    cuda.open_to(device)
                address = run.slab.data_ptr() + run.begin
                parts[-1].append((address, cuda.number(device), run.at, run.size, pinned))
                owner.append(run.slab)
        addresses = [buffer.data_ptr() for buffer in self.buffers]
        try:
            core_streamer = core().ByteStreamer(
                cuda.router, cuda.index, addresses, parts, owner, cuda.stream()
            )
        except MemoryError as error:
            raise torch.OutOfMemoryError(str(error)) from error
        self._core: Any = core_streamer
        self.trouble = core_streamer.trouble
        self.begin_step = core_streamer.begin_step
        self.reset, self.in_slots = core_streamer.reset, core_streamer.in_slots
        # Not by methods of this class: each would take longer than what it calls.
        self.enter, self.leave, self.stream = core_streamer.enter, core_streamer.leave, cuda.stream

    @property
    def counters(self) -> dict[str, int]:
        """See Streamer."""
        return dict(self._core.counters)

    @property
    def bytes_copied(self) -> int:
        """See Streamer."""
        return int(self._core.bytes_copied)

    def close(self) -> None:
        """See Streamer."""
        self._core.close()
        super().close()
