# SPDX-License-Identifier: Apache-2.0
"""A custom node as many packs have one: `torch.load` of a whole module, kept by the node itself."""

import folder_paths
import torch

KEPT = {}


class TorchLoadUpscaler:
    """Loads `upscale_models/<name>` to the second device and keeps it."""

    CATEGORY, FUNCTION, RETURN_TYPES, OUTPUT_NODE = "distorch test", "load", (), True

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802 (ComfyUI sets the name)
        return {"required": {"name_of_file": ("STRING", {"default": "up.pt"})}}

    def load(self, name_of_file):
        path = folder_paths.get_full_path_or_raise("upscale_models", name_of_file)
        KEPT[name_of_file] = torch.load(path, weights_only=False).to("sim:1")
        return {"ui": {"loaded": [name_of_file]}}


NODE_CLASS_MAPPINGS = {"TorchLoadUpscaler": TorchLoadUpscaler}
