# SPDX-License-Identifier: Apache-2.0
"""Nodes with the signatures of another pack's, that note on what devices they were called and give texts.

Copied into the folder of each stand-in pack. Like older releases of WanVideoWrapper, the module asks for its devices when
it is imported and keeps them; what ComfyUI answers inside a call is noted beside them.
"""

from __future__ import annotations

import json
import pathlib
from typing import Any

import comfy.model_management as mm
import folder_paths
import torch

from . import signatures

device = mm.get_torch_device()
offload_device = mm.unet_offload_device()

#: One entry a call: node, inputs, and every answer to "which device".
SEEN: list[dict[str, Any]] = []
#: Nodes that fail.
FAIL: set[str] = set()


def note(node: str, inputs: dict[str, Any]) -> None:
    SEEN.append(
        {
            "node": node,
            "inputs": {k: repr(v) for k, v in inputs.items()},
            "asked": str(mm.get_torch_device()),
            "asked_offload": str(mm.unet_offload_device()),
            "kept": str(device),
            "kept_offload": str(offload_device),
            "current": torch.sim.current_device(),
        }
    )
    if node in FAIL:
        raise RuntimeError(f"{node} was told to fail")


def _folders(kind: Any) -> list[str]:
    return kind[1:].split("+") if str(kind).startswith("@") else []


def _know(inputs: dict[str, Any]) -> None:
    """Folders that ComfyUI does not have, as packs add them."""
    for folder in (folder for kind, _ in inputs.values() for folder in _folders(kind)):
        if folder not in folder_paths.folder_names_and_paths:
            place, ending = (
                ("diffusion_models", ".gguf") if folder == "unet_gguf" else (folder, ".safetensors")
            )
            path = pathlib.Path(folder_paths.models_dir) / place
            folder_paths.folder_names_and_paths[folder] = ([str(path)], {ending})


def _shown(inputs: dict[str, Any]) -> dict[str, Any]:
    return {
        name: (
            [file for f in _folders(kind) for file in folder_paths.get_filename_list(f)]
            if _folders(kind)
            else kind,
            json.loads(json.dumps(more)),
        )
        for name, (kind, more) in inputs.items()
    }


def node_class(name: str, outputs: dict[str, str], required: dict, optional: dict) -> type:
    _know(required)

    class Noting:
        CATEGORY, FUNCTION = "stand-in", "work"
        RETURN_TYPES, RETURN_NAMES = tuple(outputs.values()), tuple(outputs)

        @classmethod
        def INPUT_TYPES(cls) -> dict[str, Any]:
            return {"required": _shown(required), "optional": _shown(optional)}

        def work(self, **inputs: Any) -> tuple[str, ...]:
            unknown = set(inputs) - {*required, *optional}
            assert not unknown, f"{name} knows no {unknown}"
            note(name, inputs)
            return tuple(f"{output} of {name}" for output in outputs)

    Noting.__name__ = name
    return Noting


def classes(pack: str) -> dict[str, type]:
    return {name: node_class(name, *row) for name, row in signatures.nodes_of(pack).items()}
