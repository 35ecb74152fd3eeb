# SPDX-License-Identifier: Apache-2.0
"""Patches of weights: LoRA (low rank, also for convolutions) and full differences.

    weight' = round(float32(weight) + sum(strength * alpha / rank * up @ down) + sum(strength * diff))

Sums are taken in float32 on the device of the weight and rounded once to the weight's type
(`distorch/placement/patch_math.h`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from distorch._load import load_operators


class PatchError(ValueError):
    """A patch does not fit its parameter; the message names it with both shapes."""


@dataclass(frozen=True)
class LoraPatch:
    """A low-rank patch.

    Attributes:
        down: factor A, [rank, in, kernel…].
        up: factor B, [out, rank, 1…].
        alpha: the scale is alpha / rank; None means 1.
        strength: the user's factor; any finite number.
        mid: middle factor [rank, rank, kernel…] of a convolution in CP form.
    """

    down: torch.Tensor
    up: torch.Tensor
    alpha: float | None = None
    strength: float = 1.0
    mid: torch.Tensor | None = None

    @property
    def scale(self) -> float:
        """strength * alpha / rank."""
        return self.strength * (1.0 if self.alpha is None else self.alpha / self.down.shape[0])

    @property
    def nbytes(self) -> int:
        """Bytes of the factors."""
        return self.down.nbytes + self.up.nbytes + (0 if self.mid is None else self.mid.nbytes)

    def check(self, name: str, weight: torch.Tensor) -> None:
        """Raise PatchError when this patch does not fit `weight`."""
        shapes = f"up {tuple(self.up.shape)}, down {tuple(self.down.shape)}"
        if self.mid is not None:
            shapes += f", mid {tuple(self.mid.shape)}"
        rank = self.down.shape[0] if self.down.dim() >= 2 else -1
        fits = (
            rank > 0
            and self.up.dim() >= 2
            and self.up.numel() == self.up.shape[0] * rank
            and weight.dim() >= 1
            and self.up.shape[0] == weight.shape[0]
        )
        if fits and self.mid is None:
            fits = self.up.shape[0] * (self.down.numel() // rank) == weight.numel()
        elif fits and self.mid is not None:
            middle = self.mid
            fits = middle.dim() >= 2 and tuple(middle.shape[:2]) == (rank, rank)
            kernel = middle.numel() // (rank * rank) if fits else 0
            fits = (
                fits and self.up.shape[0] * (self.down.numel() // rank) * kernel == weight.numel()
            )
        if not fits:
            raise PatchError(
                f"{name}: a LoRA with {shapes} does not fit a weight {tuple(weight.shape)}"
            )


@dataclass(frozen=True)
class DiffPatch:
    """A full difference with as many elements as the weight."""

    diff: torch.Tensor
    strength: float = 1.0

    @property
    def scale(self) -> float:
        """The user's strength."""
        return self.strength

    @property
    def nbytes(self) -> int:
        """Bytes of the difference."""
        return self.diff.nbytes

    def check(self, name: str, weight: torch.Tensor) -> None:
        """Raise PatchError when this patch does not fit `weight`."""
        if self.diff.numel() != weight.numel():
            raise PatchError(
                f"{name}: a difference {tuple(self.diff.shape)} does not fit a weight {tuple(weight.shape)}"
            )


Patch = LoraPatch | DiffPatch
# qualified parameter name -> its patches, applied together
Patches = Mapping[str, Sequence[Patch]]


def check_patches(patches: Patches, weights: Mapping[str, torch.Tensor]) -> None:
    """Raise PatchError for the first patch that names no weight, does not fit, or patches no floating type."""
    for name, items in patches.items():
        weight = weights.get(name)
        if weight is None:
            raise PatchError(f"{name}: the model has no such parameter")
        # What a class of torch's wrapper kind computes with is a copy of what it holds.
        made_of_parts = hasattr(weight, "__tensor_flatten__")
        if made_of_parts or not weight.is_floating_point():
            kind = type(weight).__name__ if made_of_parts else weight.dtype
            raise PatchError(f"{name}: a weight of type {kind} cannot be patched")
        for item in items:
            item.check(name, weight)


def apply_patches(weight: torch.Tensor, patches: Iterable[Patch]) -> int:
    """Patch `weight` in place on its own device; returns the bytes of factors brought there.

    The weight must be contiguous and the caller's own copy: on an error it is undefined.
    """
    operators = load_operators()
    moved = 0

    def here(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal moved
        if tensor.device != weight.device:
            moved += tensor.nbytes
        return tensor.detach().to(weight.device).to(torch.float32).contiguous()

    ups, rights, diffs = [], [], []
    for patch in patches:
        if isinstance(patch, DiffPatch):
            diffs.append(here(patch.diff) * patch.scale)
            continue
        down = here(patch.down)
        ups.append(here(patch.up).reshape(patch.up.shape[0], -1) * patch.scale)
        if patch.mid is None:
            rights.append(down.reshape(down.shape[0], -1))
            continue
        mid = here(patch.mid)
        elements = (down.numel() // mid.shape[1]) * (mid.numel() // mid.shape[0] // mid.shape[1])
        right = weight.new_empty((mid.shape[0], elements), dtype=torch.float32)
        raise_problem(operators.right_factor(down, mid, right), weight)
        rights.append(right)
    empty = weight.new_empty((0, 0), dtype=torch.float32)
    up = torch.cat(ups, 1) if len(ups) > 1 else (ups or [empty])[0]
    right = torch.cat(rights) if len(rights) > 1 else (rights or [empty])[0]
    terms = 2 + bool(ups) + len(diffs)
    scratch = weight.new_empty((terms, _piece_elements(weight, terms)), dtype=torch.float32)
    raise_problem(operators.patch_weight(weight, scratch, up, right, diffs), weight)
    return moved


_ERRORS: dict[str, type[Exception]] = {"ValueError": ValueError, "MemoryError": MemoryError}


def raise_problem(problem: str, weight: torch.Tensor) -> None:
    """Raise what an operator says went wrong ("" for nothing): see `bindings/ops/boxed.h`."""
    if not problem:
        return
    kind, _, text = problem.partition(": ")
    raise _ERRORS.get(kind, RuntimeError)(
        f"patching a weight {tuple(weight.shape)} on {weight.device} failed: {text}"
    )


# Beyond this, larger pieces make the matrix products no faster.
_LARGEST_PIECE = 16 << 20


def _piece_elements(weight: torch.Tensor, terms: int) -> int:
    """Return how many elements to work on at a time: all terms together take a third of the weight, or a row each."""
    row = max(1, weight.numel() // (weight.shape[0] if weight.dim() and weight.shape[0] else 1))
    piece = min(weight.nbytes // (3 * terms), _LARGEST_PIECE) // 4
    return max(row, piece - piece % row)
