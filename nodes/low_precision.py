# SPDX-License-Identifier: Apache-2.0
"""UNETLoader whose patched weights are kept as small as the file has them when they lie in system memory."""

from __future__ import annotations

from typing import Any

import folder_paths
import nodes

from ..patches.placing import loading
from ..patches.placing.request import Request, available, spec_for
from .wrapped import switch


class UNetLoaderLP:
    """Keeps the model on the compute device; LoRA-patched blocks of an fp8 file that must wait on the host are fp8 again.

    All other weights are stored as without it.
    """

    CATEGORY = "loaders"
    FUNCTION = "load_unet"
    RETURN_TYPES = ("MODEL",)
    TITLE = "UNet Loader (LP)"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {"unet_name": (folder_paths.get_filename_list("diffusion_models"),)},
            "optional": {"keep_loaded": switch(True)},
        }

    def load_unet(self, unet_name: str, keep_loaded: bool = True) -> tuple[Any, ...]:
        compute = available(None)
        request = Request(
            compute=compute,
            spec=spec_for(compute, "", 0.0, []),
            node="UNetLoaderLP",
            file=unet_name,
            keep_loaded=keep_loaded,
            high_precision_loras=False,
        )
        inputs = {"unet_name": unet_name, "weight_dtype": "default"}
        return loading.load(nodes.UNETLoader, "UNetLoaderLP", request, inputs, text_encoder=False)
