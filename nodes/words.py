# SPDX-License-Identifier: Apache-2.0
"""What is said of our nodes: a tooltip for each widget of ours, a description for each family, words to find them by.

The texts are those of the page (`web/texts.json`, English first): one table for both. The last of the search aliases
names the family, by which the page finds the description in its own language.
"""

from __future__ import annotations

import functools
import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

#: What people type who look for such nodes.
ALIASES = (
    *("load diffusion model", "vram", "offload", "block swap", "free memory", "multigpu"),
    *("low vram", "distorch", "multi gpu"),
)
_PART = re.compile(r"^(unet|clip|vae)_(?=.*(device|vram|allocations))")
#: Names of widgets that are ours in our own nodes only; a core's or another pack's loader may have one of that name.
_OWN_NODES = ("plan", "unload")
_OWN_WIDGETS = ("file", "part", "memory", "compare_with", "unload", "let_go", "value", "model")
_FAMILIES = {
    **{"DisTorchPlan": "plan", "DisTorchUnload": "unload", "UNetLoaderLP": "lp"},
    **{"DisTorchDevice": "select", "DeviceSelectorMultiGPU": "select"},
}


@functools.cache
def _texts() -> dict[str, list[str]]:
    path = pathlib.Path(__file__).resolve().parent.parent / "web" / "texts.json"
    texts: dict[str, list[str]] = json.loads(path.read_text(encoding="utf-8"))
    return texts


def tooltip(widget: str) -> str:
    """What a widget of ours says when the pointer rests on it; "" for one of the core's."""
    return _texts().get(f"widget.{_PART.sub('', widget)}", [""])[0]


def family(node_id: str) -> str:
    """Which description a node has."""
    if node_id in _FAMILIES:
        return _FAMILIES[node_id]
    if node_id.startswith("CheckpointLoaderAdvanced"):
        return "checkpoint"
    if "DisTorch2" in node_id:
        return "placement"
    return "legacy" if "DisTorch" in node_id else "device"


def explain(classes: Mapping[str, type]) -> None:
    """Give each class its words; what a class says of itself stays."""
    for node_id, cls in classes.items():
        if "_distorch_inputs" in vars(cls):  # made before
            continue
        name = family(node_id)
        said: Any = cls
        if not getattr(cls, "DESCRIPTION", ""):
            said.DESCRIPTION = _texts()[f"family.{name}"][0]
        said.SEARCH_ALIASES = [*ALIASES, f"distorch {name}"]
        said._distorch_inputs = cls.INPUT_TYPES  # type: ignore[attr-defined]
        said.INPUT_TYPES = classmethod(_explained)


def _explained(cls: Any) -> dict[str, Any]:
    """The class's inputs, with tooltips on those that have none."""
    inputs: dict[str, Any] = cls._distorch_inputs()
    own = cls.SEARCH_ALIASES[-1].removeprefix("distorch ") in _OWN_NODES
    for part in ("required", "optional"):
        for name, spec in inputs.get(part, {}).items():
            if name in _OWN_WIDGETS and not own:
                continue
            text = tooltip(name)
            if text and isinstance(spec, tuple):
                options = dict(spec[1]) if len(spec) > 1 else {}
                if not options.get("tooltip"):
                    inputs[part][name] = (spec[0], {**options, "tooltip": text})
    return inputs
