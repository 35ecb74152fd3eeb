# SPDX-License-Identifier: Apache-2.0
"""ComfyUI's entry. Outside of ComfyUI (pytest, a plain import) nothing is imported here."""

import logging
import sys

NODE_CLASS_MAPPINGS: dict[str, type] = {}
NODE_DISPLAY_NAME_MAPPINGS: dict[str, str] = {}
WEB_DIRECTORY = "./web"

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY"]

if "folder_paths" in sys.modules and __package__:
    from .nodes import mappings

    NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS = mappings()
    logging.getLogger("DisTorch").info("DisTorch: %d nodes", len(NODE_CLASS_MAPPINGS))
