# SPDX-License-Identifier: Apache-2.0
"""ComfyUI's entry. Outside of ComfyUI (pytest, a plain import) nothing is imported here."""

import logging
import sys

NODE_CLASS_MAPPINGS: dict[str, type] = {}
NODE_DISPLAY_NAME_MAPPINGS: dict[str, str] = {}
WEB_DIRECTORY = "./web"

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY"]

if "folder_paths" in sys.modules and __package__:
    from . import install
    from .nodes import mappings, missing

    why = install.shortcoming()
    try:
        if not why:
            NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS = mappings()
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "distorch":
            raise
        why = install.broken(error)
    if why:
        NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS = missing.mappings(why)
        logging.getLogger("DisTorch").error("%s", why)
    else:
        logging.getLogger("DisTorch").info("DisTorch: %d nodes", len(NODE_CLASS_MAPPINGS))
