# SPDX-License-Identifier: Apache-2.0
"""Another pack's idea of the devices, for the time of one call.

Reason: a pack may ask ComfyUI for its device when it is imported and keep the answer as `device` or `offload_device` of
its modules; changing what ComfyUI answers then does not reach it. A pack that asks inside its calls is reached by
`devices.chosen`. Both are restored whatever the call does, also in modules that were imported during it.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

import comfy.model_management as mm
import torch

from . import current_device, devices

DEVICE, OFFLOAD = "device", "offload_device"


@contextlib.contextmanager
def on_devices(
    package: str, compute: str, offload: str | None = None, *, computes: str = ""
) -> Iterator[None]:
    """The pack computes on `compute`, whichever way it asks; with `offload`, that is where its models wait.

    Args:
        package: the name of its root module.
        compute: a device that is here.
        offload: the same; None leaves the question to the core.
        computes: the one module that `offload` is told to; "": all of them.
    """
    device, away = torch.device(compute), None if offload is None else torch.device(offload)
    choice = devices.Choice(model=device, offload=None if computes else away)
    known = {id(module) for module in modules_of(package)}
    with contextlib.ExitStack() as stack:
        stack.callback(_tell_new_ones, package, known)
        for module in modules_of(package):
            stack.enter_context(_set(module, {DEVICE: device}))
            if away is not None and computes in ("", module.__name__):
                stack.enter_context(_set(module, {OFFLOAD: away}))
        stack.enter_context(devices.chosen(choice))
        stack.enter_context(current_device.current(device))
        yield


def modules_of(package: str) -> list[ModuleType]:
    """The modules of a pack that are loaded."""
    found = list(sys.modules.items())
    return [m for n, m in found if m is not None and n.partition(".")[0] == package]


def package_of(node: Any) -> str:
    """The root module of the pack that a node's class comes from."""
    return str(node.__module__).partition(".")[0]


@contextlib.contextmanager
def _set(module: ModuleType, wanted: Mapping[str, torch.device]) -> Iterator[None]:
    """Gives these devices to those of a module's globals that are devices."""
    own = module.__dict__
    before = {name: own[name] for name in wanted if isinstance(own.get(name), torch.device)}
    own.update({name: wanted[name] for name in before})
    try:
        yield
    finally:
        own.update(before)


def _tell_new_ones(package: str, known: set[int]) -> None:
    """Modules that asked for the device during the call have kept the answer: they get the usual one."""
    for module in modules_of(package):
        if id(module) in known:
            continue
        for name, ask in ((DEVICE, mm.get_torch_device), (OFFLOAD, mm.unet_offload_device)):
            if isinstance(module.__dict__.get(name), torch.device):
                module.__dict__[name] = ask()
