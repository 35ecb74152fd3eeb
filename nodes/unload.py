# SPDX-License-Identifier: Apache-2.0
"""Unloads models in the middle of a workflow; what comes in goes out."""

from __future__ import annotations

from typing import Any

from ..patches.ejecting import unload_now
from .wrapped import ANY, switch


class DisTorchUnload:
    """Runs when `value` is ready and before whatever takes `value` from here."""

    CATEGORY = "multigpu/distorch_2"
    FUNCTION = "unload"
    RETURN_TYPES = (ANY, "STRING")
    RETURN_NAMES = ("value", "freed")
    TITLE = "DisTorch Unload"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "value": (ANY, {}),
                "unload": (list(unload_now.CHOICES), {"default": unload_now.CHOICES[0]}),
            },
            "optional": {"model": (ANY, {}), "let_go": switch(False)},
            "hidden": {"node_id": "UNIQUE_ID"},
        }

    @classmethod
    def IS_CHANGED(cls, unload: str = "", node_id: str = "", **_inputs: Any) -> int:
        return unload_now.memory.token(node_id, unload)

    def unload(
        self, value: Any, unload: str, model: Any = None, let_go: bool = False, node_id: str = ""
    ) -> dict[str, Any]:
        about = value if model is None else model
        report = unload_now.text(unload_now.run(unload, about, let_go, node_id))
        return {"ui": {"text": [report]}, "result": (value, report)}
