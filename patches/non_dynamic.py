# SPDX-License-Identifier: Apache-2.0
"""Inside our loader's call ComfyUI builds ordinary patchers, also where DynamicVRAM is on.

Reason: DynamicVRAM streams every weight through ranges of one device and has no place for a block
on another. ComfyUI's loaders read `comfy.model_patcher.CoreModelPatcher` at call time and
can build either kind; only models that are loaded inside the block are concerned.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import comfy.model_patcher


class DynamicVRAMError(RuntimeError):
    """A model came out dynamic, so its blocks cannot be placed."""


@contextlib.contextmanager
def non_dynamic() -> Iterator[None]:
    """Loaders called in the block make `ModelPatcher`s; what was there before comes back."""
    module = comfy.model_patcher
    before = getattr(module, "CoreModelPatcher", None)
    if before is None:  # ComfyUI without DynamicVRAM
        yield
        return
    module.CoreModelPatcher = module.ModelPatcher
    try:
        yield
    finally:
        module.CoreModelPatcher = before


def require_non_dynamic(patcher: Any) -> None:
    """Raises DynamicVRAMError if ComfyUI's DynamicVRAM manages this model."""
    is_dynamic = getattr(patcher, "is_dynamic", None)
    if is_dynamic is not None and is_dynamic():
        raise DynamicVRAMError(
            "DisTorch cannot place the blocks of this model: ComfyUI loaded it for DynamicVRAM and "
            "offers no way around that here. Start ComfyUI with --disable-dynamic-vram, or use the "
            "core's own loader for this model."
        )
