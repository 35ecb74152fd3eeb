# SPDX-License-Identifier: Apache-2.0
"""As the releases of early 2025: devices are asked for in each call, weights are there when the model is loaded."""

from __future__ import annotations

from typing import Any

import comfy.model_management as mm
import torch

from . import sampling


class WanVideoModelLoader(sampling.Loader):
    def devices(self) -> tuple[torch.device, torch.device]:
        return mm.get_torch_device(), mm.unet_offload_device()

    def loaded(self, inner: Any, weights: dict[str, torch.Tensor], where: torch.device) -> None:
        inner.diffusion_model.load_state_dict(weights, assign=True)
        inner.diffusion_model.to(where).requires_grad_(False)


class WanVideoSampler(sampling.Sampler):
    devices = WanVideoModelLoader.devices

    def before(self, inner: Any, swap: dict[str, Any] | None) -> None:
        transformer, here = inner.diffusion_model, self.devices()[0]
        if swap is None:
            transformer.to(here)
            return
        transformer.blocks_to_swap = swap["blocks_to_swap"]
        for child in (transformer.patch_embedding, transformer.head):
            child.to(here)
        for i, block in enumerate(transformer.blocks):
            swapped = i >= len(transformer.blocks) - swap["blocks_to_swap"]
            block.to(transformer.offload_device if swapped else here)

    def after(self, transformer: Any) -> None:
        transformer.to(self.devices()[1])


NODE_CLASS_MAPPINGS = {
    "WanVideoBlockSwap": sampling.BlockSwap,
    "WanVideoModelLoader": WanVideoModelLoader,
    "WanVideoSampler": WanVideoSampler,
}
