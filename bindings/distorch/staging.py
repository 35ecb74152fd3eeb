# SPDX-License-Identifier: Apache-2.0
"""The new tensors of a load, made before the first one of the model is replaced, and how far that has come."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from distorch.devices import name_of
from distorch.model_blocks import ModelBlock, TensorKey, TensorRef, tensor_key
from distorch.parts import moved, rebuilt, tensor_bytes
from distorch.patching import Patch, apply_patches
from distorch.placed import PlacedModel


@dataclass(frozen=True)
class Progress:
    """How far a load has come; bytes and blocks done and in all, seconds since it began."""

    done_blocks: int
    blocks: int
    done_bytes: int
    bytes: int
    seconds: float

    def __str__(self) -> str:
        rate = self.done_bytes / self.seconds / 2**30 if self.seconds > 0 else 0.0
        return (
            f"placing block {self.done_blocks}/{self.blocks}, "
            f"{self.done_bytes / 2**20:.0f} of {self.bytes / 2**20:.0f} MB, {rate:.2f} GB/s"
        )


# The patches of a tensor, which may have several names.
TensorPatches = Mapping[TensorKey, Sequence[Patch]]

ProgressCallback = Callable[[Progress], None]


class StderrProgress:
    """Writes a line to standard error, but only for loads that take more than a second."""

    def __init__(self) -> None:
        self._next = 1.0

    def __call__(self, progress: Progress) -> None:
        """Show `progress` at most once a second, and the end of what was begun."""
        last = progress.done_blocks == progress.blocks
        if progress.seconds < self._next and not (last and self._next > 1.0):
            return
        self._next = progress.seconds + 1.0
        sys.stderr.write(f"distorch: {progress}\n")


class Stage:
    """New tensors of one load, made but not yet part of the model."""

    def __init__(self, placed: PlacedModel, progress: ProgressCallback | None) -> None:
        self.placed = placed
        self.tensors: list[tuple[TensorRef, torch.Tensor]] = []
        self._copies: dict[TensorKey, torch.Tensor] = {}
        self._progress = progress
        self._begin = time.monotonic()
        self._bytes = 0

    def _count(self, source: torch.Tensor, target: str) -> None:
        self.placed.transfers[name_of(source.device), target] += tensor_bytes(source)

    def _move(self, source: torch.Tensor, target: str) -> torch.Tensor:
        if name_of(source.device) == target:
            return source
        self._count(source, target)
        return moved(source, target)

    def _patched(self, source: torch.Tensor, patches: Iterable[Patch], target: str) -> torch.Tensor:
        compute = self.placed.compute
        if name_of(source.device) == compute:
            work = source.detach().clone(memory_format=torch.contiguous_format)
        else:
            work = source.detach().to(
                self.placed.compute_device, memory_format=torch.contiguous_format
            )
            self._count(source, compute)
        self.placed.factor_bytes += apply_patches(work, patches)
        return self._move(work, target)

    def block(self, block: ModelBlock, target: str, patches: TensorPatches) -> None:
        """Make the tensors of one block on `target`. What is one tensor under several names stays one."""
        for ref in block.tensors:
            source = self.placed.original(ref)
            key = tensor_key(source)
            wanted = patches.get(key, ())
            if key in self._copies:
                self.tensors.append((ref, self._copies[key]))
                continue
            if not wanted and name_of(source.device) == target:
                if ref.get() is not source:  # was patched before, is not any more
                    self.tensors.append((ref, source))
                continue
            tensor = (
                rebuilt(source, [self._patched(source, wanted, target)])
                if wanted
                else self._move(source, target)
            )
            self._copies[key] = tensor
            self.tensors.append((ref, tensor))

    def report(self, done: int, total: int, size: int, total_bytes: int) -> None:
        """Tell the caller how far the load is."""
        self._bytes += size
        if self._progress:
            seconds = time.monotonic() - self._begin
            self._progress(Progress(done, total, self._bytes, total_bytes, seconds))
