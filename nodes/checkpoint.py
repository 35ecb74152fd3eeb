# SPDX-License-Identifier: Apache-2.0
"""Checkpoints with a device, or a placement, for each of their parts. The file is read once."""

from __future__ import annotations

from typing import Any

import folder_paths

from ..patches.placing import checkpoints
from ..patches.placing.request import Request, available, spec_for
from .wrapped import AnyDevice, device_input, execution_mode, gigabytes, switch, text


class CheckpointLoaderAdvancedMultiGPU(AnyDevice):
    """Model, text encoder and VAE each on a device of its own."""

    CATEGORY = "multigpu"
    FUNCTION = "load_checkpoint"
    RETURN_TYPES = ("MODEL", "CLIP", "VAE")
    TITLE = "Checkpoint Loader Advanced (MultiGPU)"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "ckpt_name": (folder_paths.get_filename_list("checkpoints"),),
                "unet_device": device_input(),
                "clip_device": device_input(),
                "vae_device": device_input(),
            }
        }

    def load_checkpoint(
        self, ckpt_name: str, unet_device: str, clip_device: str, vae_device: str
    ) -> tuple[Any, ...]:
        parts = checkpoints.Parts(
            available(unet_device), available(clip_device), available(vae_device)
        )
        return checkpoints.load(ckpt_name, parts)


class CheckpointLoaderAdvancedDisTorch2MultiGPU(AnyDevice):
    """A placement for the model and for the text encoder, a device for the VAE."""

    CATEGORY = "multigpu/distorch_2"
    FUNCTION = "load_checkpoint"
    RETURN_TYPES = ("MODEL", "CLIP", "VAE")
    TITLE = "Checkpoint Loader Advanced (DisTorch2)"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "ckpt_name": (folder_paths.get_filename_list("checkpoints"),),
                "unet_compute_device": device_input(),
                "unet_virtual_vram_gb": gigabytes(4.0),
                "unet_donor_device": device_input("cpu"),
                "clip_compute_device": device_input("cpu"),
                "clip_virtual_vram_gb": gigabytes(2.0),
                "clip_donor_device": device_input("cpu"),
                "vae_device": device_input(),
            },
            "optional": {
                "unet_expert_mode_allocations": text(),
                "clip_expert_mode_allocations": text(),
                "high_precision_loras": switch(True),
                "eject_models": switch(True),
                "keep_loaded": switch(True),
                "execution_mode": execution_mode(),
            },
        }

    def load_checkpoint(
        self,
        ckpt_name: str,
        unet_compute_device: str,
        unet_virtual_vram_gb: float,
        unet_donor_device: str,
        clip_compute_device: str,
        clip_virtual_vram_gb: float,
        clip_donor_device: str,
        vae_device: str,
        unet_expert_mode_allocations: str = "",
        clip_expert_mode_allocations: str = "",
        high_precision_loras: bool = True,
        eject_models: bool = True,
        keep_loaded: bool = True,
        execution_mode: str = "auto",
    ) -> tuple[Any, ...]:
        def request(compute: str, expert: str, gb: float, donor: str) -> Request:
            return Request(
                compute=compute,
                spec=spec_for(compute, expert, gb, [available(donor, default="cpu")]),
                node="CheckpointLoaderAdvancedDisTorch2MultiGPU",
                file=ckpt_name,
                keep_loaded=keep_loaded,
                eject_models=eject_models,
                high_precision_loras=high_precision_loras,
                execution_mode=execution_mode,
            )

        unet = request(
            available(unet_compute_device),
            unet_expert_mode_allocations,
            unet_virtual_vram_gb,
            unet_donor_device,
        )
        clip = request(
            available(clip_compute_device),
            clip_expert_mode_allocations,
            clip_virtual_vram_gb,
            clip_donor_device,
        )
        parts = checkpoints.Parts(unet.compute, clip.compute, available(vae_device))
        return checkpoints.load(ckpt_name, parts, model=unet, clip=clip)
