# SPDX-License-Identifier: Apache-2.0
"""Loads a checkpoint's parts onto devices of their own, with one reading of the file.

The core builds model and text encoder together and takes no device for the VAE: it is built
from the same tensors by the core's own `VAE` class, as the core's loader does.
"""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

import comfy.sd
import comfy.utils
import folder_paths
import torch

from ..seams import devices, expected, lifecycle
from ..seams.non_dynamic import non_dynamic
from .adopt import adopt
from .request import Request


@dataclasses.dataclass(frozen=True)
class Parts:
    """Where each part computes."""

    model: str
    clip: str
    vae: str


def load(
    name: str, parts: Parts, *, model: Request | None = None, clip: Request | None = None
) -> tuple[Any, Any, Any]:
    """Model, text encoder and VAE of a checkpoint; those with a request are placed, where ComfyUI allows it."""
    if not expected.can_place():
        model = clip = None
    placing = model is not None
    asked = clip.identity if clip is not None else None
    settings = {"name": name, **dataclasses.asdict(parts), "clip_placement": asked}
    if model is not None:
        kept = lifecycle.kept_outputs(model, model.node, settings)
        if kept is not None:
            return kept
        lifecycle.tell(lifecycle.before_load, model, model.node, settings)
    choice = devices.Choice(
        model=torch.device(parts.model),
        text_encoder=torch.device(parts.clip),
        offload=torch.device("cpu") if placing else None,
    )
    path = folder_paths.get_full_path_or_raise("checkpoints", name)
    others = ["VAE"] if clip is not None else ["VAE", "CLIP"]
    ordinary = non_dynamic(but=others) if placing else contextlib.nullcontext()
    with devices.chosen(choice), ordinary:
        outputs = _load_parts(path, torch.device(parts.vae))
    if model is not None:
        adopt(outputs[0], model)
    if clip is not None and outputs[1] is not None:
        adopt(outputs[1], clip)
    if model is not None:
        lifecycle.tell(lifecycle.loaded, model, model.node, settings, outputs)
    return outputs


def _load_parts(path: str, vae_device: torch.device) -> tuple[Any, Any, Any]:
    """The core's checkpoint loader; its VAE is made while the VAE's device is the chosen one."""
    made = comfy.sd.VAE

    def on_its_device(*args: Any, **kwargs: Any) -> Any:
        kwargs["device"] = vae_device
        return made(*args, **kwargs)

    comfy.sd.VAE = on_its_device
    try:
        outputs = comfy.sd.load_checkpoint_guess_config(
            path,
            output_vae=True,
            output_clip=True,
            embedding_directory=folder_paths.get_folder_paths("embeddings"),
        )
    finally:
        comfy.sd.VAE = made
    return outputs[:3]
