# SPDX-License-Identifier: Apache-2.0
"""Brings the inputs of a placed model to its compute device; what the model writes into them comes back."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import nn

from distorch import guards
from distorch.nested import Exchange, map_tensors


class ModelInputs:
    """Hooks at the outermost module. One thread at a time."""

    def __init__(
        self,
        model: nn.Module,
        compute: torch.device,
        owners: Collection[nn.Module],
        before: Callable[[], None],
    ) -> None:
        """`before()` is called when a forward pass begins; `owners` hold what is placed."""
        self._model, self._compute, self._before = model, compute, before
        self._owners = owners
        self._exchange = Exchange()
        self._handles: list[Any] = []

    @property
    def attached(self) -> bool:
        """Whether the hooks are on."""
        return bool(self._handles)

    def attach(self) -> None:
        """Put the hooks on."""
        model = self._model
        self._handles = [
            model.register_forward_pre_hook(self._begin, prepend=True, with_kwargs=True),
            model.register_forward_hook(self._end, always_call=True),
            model.register_load_state_dict_pre_hook(guards.refuse_assigned),
            model.register_state_dict_post_hook(guards.out_of_slabs),
        ]

    def detach(self) -> None:
        """Take the hooks off."""
        self.give_back()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def give_back(self) -> None:
        """The arguments of a call that did not come to its end hold the caller's tensors again."""
        self._exchange.give_back()

    def _arrive(self, tensor: torch.Tensor, _path: str) -> torch.Tensor:
        if tensor.device == self._compute:
            return tensor
        if torch.is_grad_enabled() and tensor.requires_grad:
            return tensor.to(self._compute)
        with torch.inference_mode(False), torch.no_grad():
            there = tensor.detach().to(self._compute)
        return self._exchange.note(there, tensor)

    def _begin(self, _module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, Any]:
        self._before()
        args = map_tensors(args, self._arrive, objects=True)
        return self._exchange.inside(args, map_tensors(kwargs, self._arrive, objects=True))

    def _end(self, _module: nn.Module, _args: Any, output: Any) -> None:
        self._exchange.give_back()
        if (
            output is None
        ):  # it failed; else an error that somebody is handling would be taken for ours
            guards.name_added(sys.exc_info()[1], self._model, self._owners)
