# SPDX-License-Identifier: Apache-2.0
"""A tensor that stays on the donor that computed it until something elsewhere needs it.

To the model's code it is a tensor of the compute device with the right shape and type. The next group on the same donor
takes the data where they are; any other operation brings them to the compute device first, once. Nothing in the model
has to know where its groups run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _pytree as pytree


class TravellingTensor(torch.Tensor):  # type: ignore[misc]
    """See the module. Made by `travelling`; for inference, no gradients."""

    _away: torch.Tensor | None
    _home: torch.Tensor | None
    _compute: torch.device
    _arrived: Callable[[int], None]

    # Only the dispatcher's calls are of interest; attributes such as `device` and `shape` are the wrapper's own.
    __torch_function__ = torch._C._disabled_torch_function_impl

    def home(self) -> torch.Tensor:
        """Return the data on the compute device; the first call copies them there."""
        if self._home is None:
            assert self._away is not None
            with (
                torch.inference_mode(False),
                torch.no_grad(),
            ):  # so that its views are views of this tensor
                self._home = self._away.to(self._compute)
            self._arrived(self._home.nbytes)
            self._away = None  # what is written from now on is written at home
        return self._home

    @property
    def written(self) -> bool:
        """Whether somebody wrote into it, or into a view of it."""
        return self._version != 0

    def on(self, device: torch.device) -> torch.Tensor | None:
        """Return the data if they are on `device` and nowhere else."""
        away = self._away
        return away if away is not None and away.device == device else None

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operator on the compute device's data."""
        kwargs = kwargs or {}
        args, kwargs = pytree.tree_map_only(
            TravellingTensor, lambda tensor: tensor.home(), (args, kwargs)
        )
        return func(*args, **kwargs)


def travelling(
    away: torch.Tensor, compute: torch.device, arrived: Callable[[int], None]
) -> TravellingTensor:
    """Wrap a donor's tensor. `arrived(bytes)` is called when the data come to the compute device."""
    shape = torch.empty_like(away, device="meta")  # the strides that `.to` will give
    with torch.inference_mode(False):  # it counts what is written
        tensor: TravellingTensor = torch.Tensor._make_wrapper_subclass(
            TravellingTensor,
            shape.size(),
            strides=shape.stride(),
            storage_offset=0,
            dtype=away.dtype,
            layout=away.layout,
            device=compute,
            requires_grad=False,
        )
    tensor._away, tensor._home = away, None
    tensor._compute, tensor._arrived = compute, arrived
    return tensor


def resolve(tensor: torch.Tensor, _path: str = "") -> torch.Tensor:
    """Return an ordinary tensor: the data at home for a travelling one, all others as they are."""
    return tensor.home() if type(tensor) is TravellingTensor else tensor
