# SPDX-License-Identifier: Apache-2.0
"""As the releases of late 2025: devices are asked for once, weights come in the sampler, by three functions of a module."""

from __future__ import annotations

from typing import Any

import comfy.model_management as mm
import torch

from . import sampling

device = mm.get_torch_device()
offload_device = mm.unet_offload_device()


def load_weights(
    transformer: Any,
    sd: dict[str, torch.Tensor],
    transformer_load_device: torch.device | None = None,
    block_swap_args: dict[str, Any] | None = None,
) -> None:
    first = len(transformer.blocks) - (block_swap_args or {}).get("blocks_to_swap", 0)
    for name, _ in list(transformer.named_parameters()):
        parts = name.split(".")
        swapped = parts[0] == "blocks" and int(parts[1]) >= first
        where = offload_device if swapped else transformer_load_device
        module = transformer.get_submodule(".".join(parts[:-1]))
        module._parameters[parts[-1]] = torch.nn.Parameter(sd[name].to(where), False)


def init_blockswap(transformer: Any, block_swap_args: dict[str, Any] | None, _model: Any) -> None:
    if block_swap_args is None:
        transformer.to(device)
    else:
        transformer.blocks_to_swap = block_swap_args["blocks_to_swap"]


def offload_transformer(transformer: Any) -> None:
    transformer.to(offload_device)


class WanVideoModelLoader(sampling.Loader):
    def devices(self) -> tuple[torch.device, torch.device]:
        return device, offload_device

    def loaded(self, inner: Any, weights: dict[str, torch.Tensor], _where: torch.device) -> None:
        inner.weights = weights


class WanVideoSampler(sampling.Sampler):
    def devices(self) -> tuple[torch.device, torch.device]:
        return device, offload_device

    def before(self, inner: Any, swap: dict[str, Any] | None) -> None:
        load_weights(inner.diffusion_model, inner.weights, device, swap)
        init_blockswap(inner.diffusion_model, swap, inner)

    def after(self, transformer: Any) -> None:
        offload_transformer(transformer)


NODE_CLASS_MAPPINGS = {
    "WanVideoBlockSwap": sampling.BlockSwap,
    "WanVideoModelLoader": WanVideoModelLoader,
    "WanVideoSampler": WanVideoSampler,
}
