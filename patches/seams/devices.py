# SPDX-License-Identifier: Apache-2.0
"""The user's choice of device, answered by ComfyUI's device functions inside our loader's call only.

Reason: ComfyUI's loaders ask `get_torch_device()`, `text_encoder_device()` and
`unet_offload_device()` instead of taking a device. Outside a call, in other threads, and for
/system_stats the core's own answer stands: the choice is a context variable.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import comfy.model_management as mm
import torch

from distorch.devices import device_names, name_of

from .seam import FunctionSeam


@dataclasses.dataclass(frozen=True)
class Choice:
    """Devices to answer with; None leaves a question to the core."""

    model: torch.device | None = None
    text_encoder: torch.device | None = None
    offload: torch.device | None = None


_choice: contextvars.ContextVar[Choice | None] = contextvars.ContextVar("distorch", default=None)


@contextlib.contextmanager
def chosen(choice: Choice) -> Iterator[None]:
    """Answers with `choice` inside the block, in this thread; an exception ends it as well."""
    token = _choice.set(choice)
    try:
        yield
    finally:
        _choice.reset(token)


def _answer(part: str) -> Callable[..., Any]:
    def around(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        choice = _choice.get()
        device = getattr(choice, part) if choice is not None else None
        return original(*args, **kwargs) if device is None else device

    return around


SEAMS = (
    FunctionSeam(mm, "get_torch_device", _answer("model"), "where a model computes"),
    FunctionSeam(mm, "text_encoder_device", _answer("text_encoder"), "where an encoder computes"),
    FunctionSeam(mm, "unet_offload_device", _answer("offload"), "host copies stay on the host"),
)


def install() -> None:
    """Wraps the three functions."""
    for seam in SEAMS:
        seam.install()


def uninstall() -> None:
    """Puts the core's functions back."""
    for seam in SEAMS:
        seam.uninstall()


def names() -> list[str]:
    """Every device that can store blocks, "cpu" first, then those of ComfyUI's own kind, as "cuda:0"."""
    own = computing()
    return [*own, *(name for name in device_names() if name not in own)]


def is_own(name: str) -> bool:
    """Whether ComfyUI manages the memory of a device: others hold nothing but what we bring there."""
    return name in computing()


def computing() -> list[str]:
    """The devices that ComfyUI can compute on, "cpu" first."""
    if hasattr(mm, "get_all_torch_devices"):
        found = mm.get_all_torch_devices()
    else:
        found = _of_the_kind(mm.get_torch_device())
    accelerators = {name_of(device) for device in found if device.type != "cpu"}
    return ["cpu", *sorted(accelerators, key=_by_index)]


def first_of(there: list[str]) -> str:
    """The first accelerator of `computing()`, which ComfyUI computes on by itself; "cpu" where there is none."""
    return there[1] if len(there) > 1 else there[0]


def _of_the_kind(current: torch.device) -> list[torch.device]:
    """ComfyUI before 0.25 knows its current device only: all of that kind."""
    count = getattr(getattr(torch, current.type, None), "device_count", None)
    if current.index is None or count is None:
        return [current]
    return [torch.device(current.type, i) for i in range(count())]


def _by_index(name: str) -> tuple[str, int]:
    kind, _, index = name.partition(":")
    return kind, int(index or 0)
