# SPDX-License-Identifier: Apache-2.0
"""Copies pageable host memory to a device through two small pinned buffers, on a thread of its own.

A copy from pageable memory would keep the host waiting until the driver has staged it; here the thread that computes
goes on, and the staging of one part overlaps the transfer of the part before.
"""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import torch

BUFFER_BYTES = 32 * 2**20

_Jobs = queue.SimpleQueue[tuple[Callable[[], None], Future[None]] | None]


class BounceCopier:
    """Two pinned buffers and a thread, made when first needed. Queue from one thread.

    Raises torch.OutOfMemoryError or RuntimeError from `__init__` when the buffers cannot be pinned.
    """

    def __init__(
        self,
        device: torch.device,
        stream: Any,
        make_event: Callable[[], Any],
        buffer_bytes: int | None = None,
        make_buffer: Callable[[int], torch.Tensor] | None = None,
    ) -> None:
        make = make_buffer or _pinned
        self._device, self._stream = device, stream
        with torch.inference_mode(False):  # written to from the thread, whose mode is its own
            self._buffers = [make(buffer_bytes or BUFFER_BYTES) for _ in range(2)]
        self._free = [make_event() for _ in range(2)]
        self._used = [False, False]
        self._turn = 0
        self._jobs: _Jobs = queue.SimpleQueue()
        # The thread knows the queue only, so that a copier nobody holds ends it.
        self._thread = threading.Thread(
            target=_work, args=(self._jobs,), name="distorch-bounce", daemon=True
        )
        self._thread.start()
        weakref.finalize(self, self._jobs.put, None)

    def submit(self, job: Callable[[], None]) -> Future[None]:
        """Run `job` on the thread, behind those queued before; it calls `copy` and records events."""
        done: Future[None] = Future()
        self._jobs.put((job, done))
        return done

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """Queue the copy of bytes on the stream; on return `source` has been read."""
        size = self._buffers[0].nbytes
        for begin in range(0, source.nbytes, size):
            part = source[begin : begin + size]
            index, self._turn = self._turn, 1 - self._turn
            if self._used[index]:
                self._free[index].synchronize()
            staged = self._buffers[index][: part.nbytes]
            staged.copy_(part)
            target[begin : begin + part.nbytes].copy_(staged, non_blocking=True)
            self._free[index].record(self._stream)
            self._used[index] = True

    def close(self) -> None:
        """End the thread behind what is queued."""
        self._jobs.put(None)
        self._thread.join()


def _work(jobs: _Jobs) -> None:
    while True:
        item = jobs.get()
        if item is None:
            return
        job, done = item
        try:
            with torch.inference_mode(False), torch.no_grad():
                job()
        except BaseException as error:  # handed to whoever waits for the copy
            done.set_exception(error)
        else:
            done.set_result(None)
        del item, job, done  # nothing of the model is held while idle


def _pinned(size: int) -> torch.Tensor:
    return torch.empty(size, dtype=torch.uint8, pin_memory=True)
