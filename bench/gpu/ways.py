# SPDX-License-Identifier: Apache-2.0
"""The ways to run a model whose blocks do not all fit: ours, and those it is compared with, behind one interface.

    with WAYS["streamed"](model, "cuda:0", away) as way:
        model(*inputs)

`away` names the blocks whose weights stay on the host; everything else is on the device. Each way is entered with the
model on the host and leaves it there; with `back=False` what was brought to the device is not copied back, for a model
that is dropped then (`borrowed`). The rivals are written as straightforward users of their libraries write them, not
tuned.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

Way = Callable[..., AbstractContextManager[Any]]


class NotForThisError(Exception):
    """This way cannot run this case; the message says why."""


def borrowed(model: nn.Module) -> nn.Module:
    """Return a copy of a model on the same weights: what a way does to it leaves the model alone."""
    shared: dict[int, Any] = {id(p): nn.Parameter(p.data, False) for p in model.parameters()}
    shared |= {id(b): b for b in model.buffers()}
    return copy.deepcopy(model, shared)


def spread(names: Sequence[str], share: float) -> list[str]:
    """Return `share` of the names, evenly spaced, at least one unless `share` is 0."""
    count = max(1, round(share * len(names))) if share > 0 else 0
    return [names[i * len(names) // count] for i in range(count)]


def group_bytes(model: nn.Module, names: Sequence[str]) -> int:
    """Return the bytes of the weights of these modules."""
    return sum(p.nbytes for name in names for p in model.get_submodule(name).parameters())


@contextlib.contextmanager
def resident(
    model: nn.Module, device: str, away: Sequence[str], back: bool = True
) -> Iterator[None]:
    """Everything on the device: the compute time C."""
    del away
    model.to(device)
    try:
        yield
    finally:
        if back:
            model.to("cpu")


@contextlib.contextmanager
def streamed(
    model: nn.Module, device: str, away: Sequence[str], back: bool = True
) -> Iterator[Any]:
    """DisTorch: whole blocks ahead of their use, nothing copied back."""
    del back
    from distorch.model_blocks import inventory
    from distorch.placing import place
    from distorch.run import StreamedExecutor

    chosen = set(away)
    placement = {
        block.name: "cpu" if block.group in chosen else device for block in inventory(model).blocks
    }
    placed = place(model, SimpleNamespace(placement=placement), compute=device)
    executor = None
    try:
        executor = StreamedExecutor(placed, modes={"cpu": "stream"})
        yield executor
    finally:
        del executor
        placed.unload()


class _PerLeaf:
    """Copies each leaf's weights when it runs and drops them afterwards: pageable, one copy a tensor, no prefetch."""

    def __init__(self, model: nn.Module, device: str, away: Sequence[str]) -> None:
        self.device = device
        self.handles: list[Any] = []
        for name in away:
            for module in model.get_submodule(name).modules():
                if module._parameters:
                    self._attach(module)

    def _attach(self, module: nn.Module) -> None:
        kept = {k: p for k, p in module._parameters.items() if p is not None}

        def before(*_: Any) -> None:
            for key, parameter in kept.items():
                module._parameters[key] = nn.Parameter(parameter.to(self.device), False)

        def after(*_: Any) -> None:
            module._parameters.update(kept)

        self.handles.append(module.register_forward_pre_hook(before))
        self.handles.append(module.register_forward_hook(after, always_call=True))

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()


@contextlib.contextmanager
def per_leaf(
    model: nn.Module, device: str, away: Sequence[str], back: bool = True
) -> Iterator[None]:
    """The predecessor's way: load every leaf onto the device, `.to('cpu')` what is away, copy each leaf in each step,
    move everything back at the end.
    """
    for name, module in model.named_modules():
        inside = any(name == block or name.startswith(block + ".") for block in away)
        for key, parameter in list(module._parameters.items()):
            if parameter is not None and (back or not inside):
                there = parameter.to(device)
                module._parameters[key] = nn.Parameter(there.cpu() if inside else there, False)
    hooks = _PerLeaf(model, device, away)
    try:
        yield
    finally:
        hooks.remove()
        if back:
            model.to("cpu")


@contextlib.contextmanager
def accelerated(
    model: nn.Module, device: str, away: Sequence[str], back: bool = True
) -> Iterator[None]:
    """accelerate's `cpu_offload` on each block that is away: a hook a module, one copy a tensor."""
    from accelerate import cpu_offload
    from accelerate.hooks import remove_hook_from_submodules

    chosen = set(away)
    for name, module in model.named_modules():
        inside = any(name == block or name.startswith(block + ".") for block in chosen)
        if not inside and not any(block.startswith(name + ".") for block in chosen) and name:
            module.to(device)
    try:
        for name in away:
            cpu_offload(model.get_submodule(name), execution_device=torch.device(device))
        yield
    finally:
        for name in away:
            remove_hook_from_submodules(model.get_submodule(name))
        if back:
            model.to("cpu")
        gc.collect()


@contextlib.contextmanager
def grouped(
    model: nn.Module, device: str, away: Sequence[str], back: bool = True
) -> Iterator[None]:
    """diffusers' group offloading with a stream of its own: whole blocks from pinned memory, the next one ahead."""
    del back
    lists = {name.rpartition(".")[0] for name in away}
    if {f"{name}.{i}" for name in lists for i in range(len(model.get_submodule(name)))} != set(away):  # type: ignore[arg-type]  # fmt: skip
        raise NotForThisError("it offloads every block or none")
    try:
        from diffusers.hooks import apply_group_offloading
    except ImportError as error:
        raise NotForThisError(f"diffusers is not here: {error}") from error
    # It replaces parameters' data, which torch allows between the host and its own kinds of devices only.
    if not torch._has_compatible_shallow_copy_type(torch.empty(0), torch.empty(0, device=device)):
        raise NotForThisError("it cannot bring a parameter to a device of this kind")
    apply_group_offloading(
        model,
        onload_device=torch.device(device),
        offload_device=torch.device("cpu"),
        offload_type="block_level",
        num_blocks_per_group=1,
        non_blocking=True,
        use_stream=True,
    )
    yield


@contextlib.contextmanager
def comfy_cast(
    model: nn.Module, device: str, away: Sequence[str], back: bool = True
) -> Iterator[None]:
    """ComfyUI's own: each layer casts its weights to the input's device when it runs (its checkout is on sys.path)."""
    if not any(name == "comfy.ops" or name.startswith("comfy.ops.") for name in sys.modules):
        raise NotForThisError("no checkout of ComfyUI was given (--comfy)")
    import comfy.ops

    casting = {nn.Linear: comfy.ops.disable_weight_init.Linear}
    inside = {id(m) for name in away for m in model.get_submodule(name).modules()}
    for module in model.modules():
        kind = casting.get(type(module))
        if id(module) in inside and kind is not None:
            module.__class__ = kind
            module.comfy_cast_weights = True
            continue
        for key, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[key] = nn.Parameter(parameter.to(device), False)
    try:
        yield
    finally:
        if back:
            for module in model.modules():
                module.__class__ = next((k for k, v in casting.items() if v is type(module)), type(module))  # fmt: skip
            model.to("cpu")


# The first two are ours; then those whose bytes are compared in every test run; then what only a GPU's run has.
WAYS: dict[str, Way] = {
    "resident": resident,
    "streamed": streamed,
    "per_leaf": per_leaf,
    "accelerate": accelerated,
}
MORE_WAYS: dict[str, Way] = {"diffusers": grouped, "comfy": comfy_cast}
