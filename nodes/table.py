# SPDX-License-Identifier: Apache-2.0
"""Every node id of the pack, as a table: ComfyUI-MultiGPU's 26, up to 49 for other packs, and our own."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import Any

from . import (
    checkpoint,
    device,
    low_precision,
    other_packs,
    others,
    plan,
    selector,
    unload,
    wrapped,
)

log = logging.getLogger("DisTorch")

# The core's node → its family in both forms.
CORE: dict[str, wrapped.Family] = {
    "UNETLoader": wrapped.MODEL,
    "VAELoader": wrapped.MODEL,
    "CLIPLoader": wrapped.CLIP,
    "DualCLIPLoader": wrapped.CLIP,
    "TripleCLIPLoader": wrapped.CLIP_WITHOUT_DEVICE,
    "QuadrupleCLIPLoader": wrapped.CLIP_WITHOUT_DEVICE,
    "CLIPVisionLoader": wrapped.CLIP_WITHOUT_DEVICE,
    "CheckpointLoaderSimple": wrapped.MODEL,
    "ControlNetLoader": wrapped.MODEL,
    "DiffusersLoader": wrapped.MODEL,
    "DiffControlNetLoader": wrapped.MODEL,
}

# The GGUF pack's node → its family; its text encoder nodes have no device of their own.
GGUF: dict[str, wrapped.Family] = {
    "UnetLoaderGGUF": wrapped.MODEL,
    "UnetLoaderGGUFAdvanced": wrapped.MODEL,
    "CLIPLoaderGGUF": wrapped.CLIP_WITHOUT_DEVICE,
    "DualCLIPLoaderGGUF": wrapped.CLIP_WITHOUT_DEVICE,
    "TripleCLIPLoaderGGUF": wrapped.CLIP_WITHOUT_DEVICE,
    "QuadrupleCLIPLoaderGGUF": wrapped.CLIP_WITHOUT_DEVICE,
}

# Ids that ComfyUI-MultiGPU has not.
OWN: dict[str, type] = {
    "DisTorchPlan": plan.DisTorchPlan,
    "DisTorchUnload": unload.DisTorchUnload,
    "DisTorchDevice": device.DisTorchDevice,
}


def node_classes(known: Mapping[str, type], folders: Collection[str]) -> dict[str, type]:
    """The pack's nodes.

    Args:
        known: the nodes that ComfyUI has loaded so far; packs load in any order.
        folders: names of the custom node folders.
    """
    if has_folder(folders, "ComfyUI-MultiGPU"):
        log.warning(
            "ComfyUI-MultiGPU is installed too: its nodes keep their names, and DisTorch registers "
            "none of them. Remove it to have its workflows run by DisTorch."
        )
        return dict(OWN)
    made: dict[str, type] = {
        **OWN,
        "DeviceSelectorMultiGPU": selector.DeviceSelectorMultiGPU,
        "UNetLoaderLP": low_precision.UNetLoaderLP,
        "CheckpointLoaderAdvancedMultiGPU": checkpoint.CheckpointLoaderAdvancedMultiGPU,
        "CheckpointLoaderAdvancedDisTorch2MultiGPU": (
            checkpoint.CheckpointLoaderAdvancedDisTorch2MultiGPU
        ),
    }
    for name, family in CORE.items():
        if name in known:
            made.update(_both(known[name], name, family))
        else:
            log.warning("ComfyUI has no node %s here: its two forms are left out", name)
    if _is_there("ComfyUI-GGUF", GGUF, known, folders):
        for name, family in GGUF.items():
            made.update(_of_gguf(name, family))
    for pack, rows in other_packs.PACKS.items():
        if _is_there(pack, rows, known, folders):
            made.update(
                {f"{name}MultiGPU": others.on_a_device(name, row) for name, row in rows.items()}
            )
    return made


def _is_there(
    pack: str, names: Collection[str], known: Mapping[str, type], folders: Collection[str]
) -> bool:
    """Whether a pack is loaded, or may be later; what then turns out to be missing is dropped when the server starts."""
    return any(name in known for name in names) or has_folder(folders, pack)


def _of_gguf(name: str, family: wrapped.Family) -> dict[str, type]:
    node = wrapped.Later(name, "CLIP" if family.text_encoder else "MODEL")
    legacy = f"{name}DisTorchMultiGPU"
    made = {**_both(node, name, family), legacy: wrapped.legacy(node, legacy, family)}
    for cls in made.values():
        cls.NEEDS = name  # type: ignore[attr-defined]
    return made


def _both(node: Any, name: str, family: wrapped.Family) -> dict[str, type]:
    plain, placed = f"{name}MultiGPU", f"{name}DisTorch2MultiGPU"
    return {
        plain: wrapped.multigpu(node, plain, family),
        placed: wrapped.distorch2(node, placed, family),
    }


def has_folder(folders: Collection[str], pack: str) -> bool:
    """Whether a pack is among the folders, however its name is written there."""
    return _plain(pack) in {_plain(folder) for folder in folders}


def _plain(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum()).removesuffix("main")
