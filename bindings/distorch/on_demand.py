# SPDX-License-Identifier: Apache-2.0
"""Brings the tensors of a module to the compute device on demand: when it is called, for as long as it runs.

Which module brings which tensors: every one its own; and what code reads below it without calling what holds it: what
cannot be called (a `ParameterList`), what some modules of torch do not call (the projection of `MultiheadAttention`), and
inside of layer groups the tensors of its children, whose weights a state-space model or a gathered expert reads directly.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from distorch.model_blocks import TensorRef, modules_of
from distorch.parts import moved, tensor_bytes, version

# Modules that read the weights of their children without calling them.
_READS_CHILDREN: tuple[type[nn.Module], ...] = (nn.MultiheadAttention, nn.TransformerEncoderLayer)

# Of hooks; torch's own are 0 and more. Its `register_forward_hook` makes a handle with weak references for each hook, which
# took a quarter of all the time of placing.
_KEYS = itertools.count(-1, -1)


class OnDemandCopies:
    """Copies of stored weights on the compute device, module by module. One thread at a time.

    Attributes:
        compute_device: where the model runs.
        bytes: copied there so far.
    """

    def __init__(
        self,
        model: nn.Module,
        compute_device: torch.device,
        owners: Iterable[nn.Module],
        groups: Iterable[nn.Module] = (),
    ) -> None:
        """`owners`: the modules that own tensors, with no hooks but their own; `groups`: the layer groups."""
        self.compute_device = compute_device
        self.bytes = 0
        self._model = model
        # Outside of groups a parent may be the whole model, which is not to hold its children's weights all the time.
        self._inside = {m for group in groups for m in modules_of(group)}
        self._modules: dict[nn.Module, OnDemandModule] = {}
        self._before = {m: list(m._forward_pre_hooks) for m in owners if m._forward_pre_hooks}

    def set(self, away: Mapping[nn.Module, Sequence[TensorRef]]) -> None:
        """Bring these tensors, by the module that owns them, from now on, and no others.

        Hooks that are there and stay are not touched: torch may be walking them.
        """
        wanted = readers(self._model, away, self._inside) if away else {}
        for module in [m for m, known in self._modules.items() if wanted.get(m) != known.refs]:
            known = self._modules.pop(module)
            known.recover()
            known.remove()
        for module, refs in wanted.items():
            if module not in self._modules:
                self._modules[module] = OnDemandModule(
                    self, refs, module, self._before.get(module, ())
                )

    def recover(self) -> None:
        """Put the stored tensors back where a module's end was never reached."""
        for module in self._modules.values():
            module.recover()

    def bring(self, stored: torch.Tensor) -> torch.Tensor:
        """Return a copy of a stored tensor on the compute device, with its attributes."""
        recorded = torch.is_grad_enabled()
        # No tensor of inference mode: what is made of one, as its transpose, asks for no gradient.
        with torch.inference_mode(False), torch.no_grad():
            here = moved(stored, self.compute_device)
            if recorded and here.requires_grad:
                here.requires_grad_(False)  # the gradient of a copy helps nobody
        self.bytes += tensor_bytes(here)
        return here


class OnDemandModule:
    """Brings tensors to the compute device while a module runs, and puts the stored ones back afterwards."""

    __slots__ = ("_copies", "_depth", "_here", "_key", "_module", "refs")  # there may be thousands

    def __init__(
        self,
        copies: OnDemandCopies,
        refs: Sequence[TensorRef],
        module: nn.Module,
        hooks_before: Sequence[int] = (),
    ) -> None:
        """`hooks_before` are the keys of the module's own forward pre-hooks: they come after ours.

        Those of `weight_norm` compute with the weights. An engine's, which are added later, stay ahead of it.
        """
        self._copies = copies
        self.refs = refs
        self._depth = 0
        self._here: list[tuple[TensorRef, Any, Any, int]] = []
        self._module, self._key = module, next(_KEYS)
        module._forward_pre_hooks[self._key] = self._begin
        module._forward_hooks[self._key] = self._end
        module._forward_hooks_always_called[self._key] = True
        for key in hooks_before:
            if key in module._forward_pre_hooks:
                module._forward_pre_hooks.move_to_end(key)

    def _begin(self, _module: nn.Module, _args: Any) -> None:
        self._depth += 1
        if self._depth > 1:
            return  # the module calls itself: its weights are here already
        try:
            for ref in self.refs:
                stored = ref.get()
                if stored.device == self._copies.compute_device:
                    continue
                here = self._copies.bring(stored)
                self._here.append((ref, stored, here, version(here)))
                ref.table[ref.name] = here
            self._refresh()
        except BaseException:
            self._depth -= 1
            self._return()
            raise

    def _end(self, _module: nn.Module, _args: Any, _output: Any) -> None:
        if self._depth == 0:
            return  # `_begin` failed and has cleaned up
        self._depth -= 1
        if self._depth == 0:
            self._return()

    def _return(self) -> None:
        while self._here:
            ref, stored, here, before = self._here.pop()
            if ref.table.get(ref.name) is not here:
                continue  # the module has put something else there
            if ref.kind == "buffer" and was_written(ref.module, here, before):
                with torch.no_grad():
                    stored.copy_(here)
            ref.table[ref.name] = stored
        self._refresh()

    def recover(self) -> None:
        """Put the stored tensors back where the module's end was never reached."""
        if self._depth:
            self._depth = 0
            self._return()

    def _refresh(self) -> None:
        for module in {ref.module for ref in self.refs}:
            refresh_flat_weights(module)

    def remove(self) -> None:
        """Take the hooks off the module."""
        module = self._module
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            hooks.pop(self._key, None)
        module._forward_hooks_always_called.pop(self._key, None)


def was_written(module: nn.Module, buffer: torch.Tensor, before: int) -> bool:
    """Return whether a buffer may have changed since its version (-1: not known) was `before`.

    Some kernels write running statistics without counting it as a version: those are taken for changed in training.
    """
    return module.training or (before >= 0 and buffer._version != before)


def refresh_flat_weights(module: nn.Module) -> None:
    """Recurrent modules keep a list of their weights beside the table: make it name those of the table."""
    if isinstance(module, nn.RNNBase):
        module._flat_weights = [getattr(module, name) for name in module._flat_weights_names]


def readers(
    model: nn.Module,
    refs: Mapping[nn.Module, Sequence[TensorRef]],
    inside: Collection[nn.Module] = (),
) -> dict[nn.Module, Sequence[TensorRef]]:
    """Return which module of `model` reads which of these tensors, given by the module that owns them.

    `inside`: the modules of layer groups.
    """
    reading: dict[nn.Module, Sequence[TensorRef]] = {
        module: own for module, own in refs.items() if _can_be_called(module)
    }
    for module in modules_of(model):
        if not module._modules:
            continue
        if isinstance(module, _READS_CHILDREN):
            below = [child for child in modules_of(module) if child is not module]
        elif _can_be_called(module):
            below = _held(module)
            if module in inside:
                below += [c for c in module._modules.values() if c is not None and c not in below]
        else:
            continue
        read = [ref for child in below for ref in refs.get(child, ())]
        if read:
            reading[module] = [*reading.get(module, ()), *read]
    return reading


def _can_be_called(module: nn.Module) -> bool:
    return type(module).forward is not nn.Module.forward or "forward" in module.__dict__


def _held(module: nn.Module) -> list[nn.Module]:
    """Return the modules below that cannot be called, and have none that can between them and `module`."""
    found: list[nn.Module] = []
    stack = list(module._modules.values())
    while stack:
        child = stack.pop()
        if child is None or child in found or _can_be_called(child):
            continue
        found.append(child)
        stack.extend(child._modules.values())
    return found
