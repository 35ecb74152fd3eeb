# SPDX-License-Identifier: Apache-2.0
"""CUDA's own entry points for a compute device, and HIP's, which torch calls CUDA too."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from distorch import transfer


class CudaDevice:
    """A device and what the core needs to work on it.

    Attributes:
        router: the core's copies between its devices; it brings the entry points.
        index: its number.
        stream: returns the handle of the stream on which torch queues kernels now; called twice a group.
    """

    def __init__(self, router: Any, index: int) -> None:
        self.router, self.index = router, index
        self.stream: Callable[[], int] = functools.partial(
            torch._C._cuda_getCurrentRawStream, index
        )
        self._opened: set[torch.device] = set()

    def number(self, device: torch.device) -> int:
        """Return a device's number, -1 for the host."""
        return -1 if device.type == "cpu" else int(device.index or 0)

    def open_to(self, donor: torch.device) -> None:
        """Let torch copy once each way, which opens its allocator's memory to the other device.

        Enabling peer access does not reach memory of `cudaMallocAsync`'s pools and of expandable segments.
        """
        if donor in self._opened:
            return
        here = torch.device(donor.type, self.index)
        one, other = torch.zeros(1, device=here), torch.zeros(1, device=donor)
        one.copy_(other)
        other.copy_(one)
        self._opened.add(donor)


def stream_of(device: torch.device) -> tuple[int, int]:
    """Return a CUDA device's number and the handle of the stream on which torch queues kernels there now."""
    index = int(device.index or 0)
    return index, int(torch._C._cuda_getCurrentRawStream(index))


@functools.cache
def cuda_device(device: torch.device) -> CudaDevice | None:
    """Return a device's entry points; None where it is not CUDA's, or they are not to be found."""
    if device.type != "cuda":
        return None
    router = transfer._router()
    return None if router is None else CudaDevice(router, int(device.index or 0))
