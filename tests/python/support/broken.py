# SPDX-License-Identifier: Apache-2.0
"""A pytest plugin that breaks what the engine does on a simulated device, to see whether the tests notice.

`-p broken` with DISTORCH_BREAK: a key of BREAKS. What is taken away is the effect of a call that the engine makes, so that
no break depends on how the engine is written.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch


def _is_compute(stream: Any) -> bool:
    return stream is torch.sim.default_stream(stream.device)


def _without_waits(compute: bool) -> None:
    """Let streams of one kind (those of the model's kernels, or those of copies) wait for no event."""
    waits = torch.sim.Stream.wait_event

    def wait_event(self: Any, event: Any) -> None:
        if _is_compute(self) is not compute:
            waits(self, event)

    torch.sim.Stream.wait_event = wait_event


def _without_draining() -> None:
    torch.sim.Stream.synchronize = lambda self: None
    torch.sim.Event.query = lambda self: True


def _short_copies() -> None:
    """Leave out the end of copies that are not on the stream of the model's kernels."""
    copies = torch.Tensor.copy_

    def copy_(self: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
        if self.device.type == "sim" and not _is_compute(torch.sim.current_stream(self.device)):
            short = max(0, self.numel() - 64)
            copies(self.view(-1)[:short], source.view(-1)[:short], non_blocking)
            return self
        return copies(self, source, non_blocking)

    torch.Tensor.copy_ = copy_  # type: ignore[method-assign]


BREAKS: dict[str, Callable[[], None]] = {
    "computes before the copy is there": lambda: _without_waits(compute=True),
    "copies before the compute is done": lambda: _without_waits(compute=False),
    "frees slots under a copy": _without_draining,
    "copies too little": _short_copies,
}


def pytest_collection_finish() -> None:
    """Break it: the device module is there by now."""
    import distorch_sim

    distorch_sim.install([2**20])
    BREAKS[os.environ["DISTORCH_BREAK"]]()
