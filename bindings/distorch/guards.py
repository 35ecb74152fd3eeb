# SPDX-License-Identifier: Apache-2.0
"""What may not be done to a model while it is placed, and says so instead of spoiling it.

Its tensors lie on several devices, some of them together in slabs, and others stand in for them while it runs. To move
or convert it, to copy or pickle it as a whole, or to hang other tensors into it, would mix the two.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Iterable
from typing import Any, NoReturn

import torch
from torch import nn


class PlacementError(RuntimeError):
    """A block is not where the plan says, or a placed model is asked for what it cannot do; the message says which."""


# Methods by which torch's `.to()`, `.half()`, …, copy and pickle go about a module; looked up on the object first.
_CLOSED = ("_apply", "__deepcopy__", "__reduce_ex__")


class _Refusal:
    """Stands for those methods in a module of a placed model, and tells by that that it is one."""

    def __init__(self, model: str) -> None:
        self._model = model

    def __call__(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        raise PlacementError(
            f"{self._model} is placed: its weights cannot be moved, converted, copied or pickled under it. "
            "Call unload() first"
        )


def check_free(blocks: Iterable[tuple[str, nn.Module]]) -> None:
    """Raise PlacementError if one of these blocks belongs to a model that is placed: two would undo each other."""
    for name, module in blocks:
        if isinstance(module.__dict__.get("__deepcopy__"), _Refusal):
            raise PlacementError(f"block {name} is placed already: unload that model first")


def close(model: nn.Module, modules: Iterable[nn.Module]) -> None:
    """Let a model and its modules, those that own tensors, refuse to be moved, converted, copied, pickled, placed again."""
    refuse = _Refusal(type(model).__name__)

    def convert(
        reference: weakref.ref[nn.Module], change: Any, *_args: Any, **_kwargs: Any
    ) -> nn.Module:
        # A model's own code may bring a layer to the type that it has: that changes nothing.
        module = reference()
        assert module is not None, "somebody calls it"
        if not all(change(t) is t for t in (*module.parameters(), *module.buffers())):
            refuse()
        return module

    for module in (model, *modules):
        state = module.__dict__
        state["__deepcopy__"] = state["__reduce_ex__"] = refuse
        state["_apply"] = functools.partial(convert, weakref.ref(module))


def open_again(model: nn.Module, modules: Iterable[nn.Module]) -> None:
    """Undo `close`."""
    for module in (model, *modules):
        for method in _CLOSED:
            module.__dict__.pop(method, None)


def name_added(error: BaseException | None, model: nn.Module, known: Iterable[nn.Module]) -> None:
    """Complete the message of an error between devices where modules were hung into `model` after it was placed.

    An adapter, say: nothing has placed its weights. `known`: the modules that own the placed tensors.
    """
    if not isinstance(error, RuntimeError) or "device" not in str(error):
        return
    names = {module: name for name, module in model.named_modules()}
    for module in known:
        names.pop(module, None)
    added = {n: t for m, n in names.items() for t in m.parameters(recurse=False)}
    if not added:
        return
    name, tensor = next(iter(added.items()))
    others = f" (and {len(added) - 1} more)" if len(added) > 1 else ""
    error.args = (
        f"{error}. {name}{others} was added after {type(model).__name__} was placed, and lies on {tensor.device}: "
        "call unload(), add it, and place the model again",
    )


def refuse_assigned(
    module: nn.Module, _state: Any, _prefix: str, metadata: dict[str, Any], *_: Any
) -> None:
    """Hook of `load_state_dict`: weights may be written, but not replaced by others on other devices."""
    if metadata.get("assign_to_params_buffers"):
        raise PlacementError(
            f"{type(module).__name__} is placed: load_state_dict(assign=True) would hang tensors into it that lie "
            "elsewhere. Leave assign out, or call unload() first"
        )


def out_of_slabs(_module: nn.Module, state: dict[str, Any], _prefix: str, _metadata: Any) -> None:
    """Hook of `state_dict`: a tensor in a slab is given out with memory of its own, to be saved without the slab."""
    for name, tensor in state.items():
        own = type(tensor) is not torch.Tensor or tensor.layout is not torch.strided
        if not own and tensor.untyped_storage().nbytes() > tensor.nbytes:
            state[name] = tensor.clone()
