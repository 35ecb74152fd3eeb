# SPDX-License-Identifier: Apache-2.0
"""A model runs with its device as the current one: sampling, encoding a text, coding and decoding an image.

Reason: ComfyUI orders its copies of weights against the stream of the *current* device, whatever
device the copy is for. For a model on cuda:1 that is the wrong stream as long as cuda:0 is current.
For sampling this is a wrapper on our patchers (ComfyUI's own extension point), not a patched function. Text encoders
and VAEs have no such point; newer ComfyUI does it by itself (`cuda_device_context`), on older ones their models' methods
are called with their device current.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import comfy.model_management as mm
import comfy.patcher_extension
import torch

# What ComfyUI calls of a text encoder's and a VAE's model.
_METHODS = ("encode_token_weights", "encode", "decode")
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
    if not hasattr(mm, "cuda_device_context"):
        for name in _METHODS:
            if callable(getattr(type(patcher.model), name, None)):
                patcher.model.__dict__[name] = _guarded(patcher.model, name, patcher.load_device)


def _guarded(model: Any, name: str, device: torch.device) -> Callable[..., Any]:
    """The method of a model, which it does not keep alive, with its device as the current one."""
    reference = weakref.ref(model)

    def call(*args: Any, **kwargs: Any) -> Any:
        model = reference()
        with current(device):
            return getattr(type(model), name)(model, *args, **kwargs)

    return call
