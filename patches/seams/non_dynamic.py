# SPDX-License-Identifier: Apache-2.0
"""Inside our loader's call ComfyUI builds ordinary patchers, also where DynamicVRAM is on.

Reason: DynamicVRAM streams every weight through ranges of one device and has no place for a block
on another. ComfyUI's loaders read `comfy.model_patcher.CoreModelPatcher` at call time and
can build either kind; only models that are loaded inside the block are concerned.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import comfy.model_patcher


class DynamicVRAMError(RuntimeError):
    """A model came out dynamic, so its blocks cannot be placed."""


@contextlib.contextmanager
def non_dynamic(*, but: Sequence[str] = ()) -> Iterator[None]:
    """Loaders called in the block make `ModelPatcher`s; what was there before comes back.

    `but`: classes of `comfy.sd` ("CLIP", "VAE") whose models are not to be placed: they come out as
    the core makes them.
    """
    module = comfy.model_patcher
    before = getattr(module, "CoreModelPatcher", None)
    if before is None:  # ComfyUI without DynamicVRAM
        yield
        return
    with contextlib.ExitStack() as stack:
        for name in but:
            stack.enter_context(_made_with(name, before))
        stack.enter_context(_core_patcher(module.ModelPatcher))
        yield


@contextlib.contextmanager
def _core_patcher(cls: type) -> Iterator[None]:
    module = comfy.model_patcher
    before = module.CoreModelPatcher
    module.CoreModelPatcher = cls
    try:
        yield
    finally:
        module.CoreModelPatcher = before


@contextlib.contextmanager
def _made_with(name: str, patcher: type) -> Iterator[None]:
    """While a `comfy.sd` class is being made, the core's patcher is this one."""
    import comfy.sd

    made = getattr(comfy.sd, name)

    @functools.wraps(made)
    def make(*args: Any, **kwargs: Any) -> Any:
        with _core_patcher(patcher):
            return made(*args, **kwargs)

    setattr(comfy.sd, name, make)
    try:
        yield
    finally:
        setattr(comfy.sd, name, made)


def require_non_dynamic(patcher: Any) -> None:
    """Raises DynamicVRAMError if ComfyUI's DynamicVRAM manages this model."""
    is_dynamic = getattr(patcher, "is_dynamic", None)
    if is_dynamic is not None and is_dynamic():
        raise DynamicVRAMError(
            "DisTorch cannot place the blocks of this model: ComfyUI loaded it for DynamicVRAM and "
            "offers no way around that here. Start ComfyUI with --disable-dynamic-vram, or use the "
            "core's own loader for this model."
        )
