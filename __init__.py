# SPDX-License-Identifier: Apache-2.0
"""ComfyUI's entry. Outside of ComfyUI (pytest, a plain import) nothing is imported here."""

import logging
import pathlib
import sys

NODE_CLASS_MAPPINGS: dict[str, type] = {}
NODE_DISPLAY_NAME_MAPPINGS: dict[str, str] = {}
WEB_DIRECTORY = "./web"

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY"]


def _remedy(error: ImportError) -> str:
    """What to do when the package that this folder needs is not there, or is of another state of it."""
    folder = pathlib.Path(__file__).parent
    found = "the package distorch is not installed"
    if error.name != "distorch":
        found = f"the installed package distorch is not of the same state as this folder ({error})"
    return (
        f"DisTorch: {found}. In a terminal: "
        f'"{sys.executable}" -m pip install --no-build-isolation "{folder}" and start ComfyUI again '
        "(a C++20 compiler and libabsl-dev are needed: docs/comfyui.md)"
    )


if "folder_paths" in sys.modules and __package__:
    try:
        from .nodes import mappings

        NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS = mappings()
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "distorch":
            raise
        raise ImportError(_remedy(error), name=error.name) from error
    logging.getLogger("DisTorch").info("DisTorch: %d nodes", len(NODE_CLASS_MAPPINGS))
