# SPDX-License-Identifier: Apache-2.0
"""Sampling runs with the model's device as the current one.

Reason: ComfyUI orders its copies of weights against the stream of the *current* device, whatever
device the copy is for. For a model on cuda:1 that is the wrong stream as long as cuda:0 is current.
This is a sampler wrapper on our patchers (ComfyUI's own extension point), not a patched function.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import comfy.patcher_extension
import torch

KEY = "distorch_current_device"


@contextlib.contextmanager
def current(device: torch.device) -> Iterator[None]:
    """Makes a device the current one of its kind; the one before comes back, also after an error."""
    module = getattr(torch, device.type, None)
    if device.index is None or not hasattr(module, "set_device"):
        yield
        return
    before = module.current_device()
    module.set_device(device.index)
    try:
        yield
    finally:
        module.set_device(before)


def around_sampling(executor: Any, *args: Any, **kwargs: Any) -> Any:
    """OUTER_SAMPLE wrapper; knows its patcher from the guider that calls it, so it keeps none alive."""
    with current(executor.class_obj.model_patcher.load_device):
        return executor(*args, **kwargs)


def attach(patcher: Any) -> None:
    """Adds the wrapper to a patcher, once; clones inherit it."""
    kind = comfy.patcher_extension.WrappersMP.OUTER_SAMPLE
    if not patcher.get_wrappers(kind, KEY):
        patcher.add_wrapper_with_key(kind, KEY, around_sampling)
