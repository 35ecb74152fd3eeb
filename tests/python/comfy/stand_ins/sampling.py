# SPDX-License-Identifier: Apache-2.0
"""The loader and the sampler of the stand-in for WanVideoWrapper; how they move weights is their release's."""

from __future__ import annotations

from typing import Any

import comfy.model_management as mm
import comfy.model_patcher
import comfy.utils
import folder_paths
import torch

from . import noting, signatures
from .transformer import Transformer

_NODES = signatures.nodes_of("ComfyUI-WanVideoWrapper")

#: For each step of a sampling: bytes of the transformer's weights by device, and what it remembers.
STEPS: list[dict[str, Any]] = []


class WanVideoModel(torch.nn.Module):
    def __init__(self, transformer: Transformer) -> None:
        super().__init__()
        self.diffusion_model = transformer
        self.device = transformer.offload_device
        self.weights: dict[str, torch.Tensor] | None = None


class Loader(noting.node_class("WanVideoModelLoader", *_NODES["WanVideoModelLoader"])):
    FUNCTION = "loadmodel"

    def loadmodel(
        self,
        model: str,
        load_device: str,
        block_swap_args: dict[str, Any] | None = None,
        extra_model: Any = None,
        **inputs: Any,
    ) -> tuple[Any]:
        noting.note("WanVideoModelLoader", {"model": model, "extra_model": extra_model, **inputs})
        mm.unload_all_models()
        device, offload = self.devices()
        with torch.device("meta"):
            transformer = Transformer(device, offload)
        weights = comfy.utils.load_torch_file(folder_paths.get_full_path("diffusion_models", model))
        inner = WanVideoModel(transformer)
        self.loaded(inner, weights, device if load_device == "main_device" else offload)
        patcher = comfy.model_patcher.ModelPatcher(inner, device, offload)
        patcher.model_options["transformer_options"] = {"block_swap_args": block_swap_args}
        return (patcher,)


class Sampler(noting.node_class("WanVideoSampler", *_NODES["WanVideoSampler"])):
    FUNCTION = "process"

    def process(
        self,
        model: Any,
        image_embeds: Any,
        steps: int,
        seed: int,
        force_offload: bool,
        **inputs: Any,
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        noting.note("WanVideoSampler", inputs)
        device, _ = self.devices()
        inner, transformer = model.model, model.model.diffusion_model
        swap = model.model_options["transformer_options"]["block_swap_args"]
        mm.unload_all_models()
        self.before(inner, swap)
        x = torch.randn((1, 32, 16), generator=torch.Generator().manual_seed(seed)).to(device)
        for step in range(steps):
            x = x - 0.1 * transformer(x, {"strength": 0.5, "step": torch.tensor(step)})
            STEPS.append(_look(transformer))
            if "WanVideoSampler in its loop" in noting.FAIL:
                raise RuntimeError("WanVideoSampler was told to fail in its loop")
        if force_offload:
            self.after(transformer)
        return {"samples": x.cpu()}, {"samples": x.cpu()}


class BlockSwap(noting.node_class("WanVideoBlockSwap", *_NODES["WanVideoBlockSwap"])):
    FUNCTION = "setargs"

    def setargs(self, **settings: Any) -> tuple[dict[str, Any]]:
        noting.note("WanVideoBlockSwap", settings)
        return (settings,)


def _look(transformer: Transformer) -> dict[str, Any]:
    sizes: dict[str, int] = {}
    for tensor in transformer.parameters():
        sizes[str(tensor.device)] = sizes.get(str(tensor.device), 0) + tensor.nbytes
    names = ("main_device", "offload_device", "cache_device")
    return {"bytes": sizes, **{name: str(getattr(transformer, name)) for name in names}}
