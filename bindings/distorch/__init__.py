# SPDX-License-Identifier: Apache-2.0
"""DisTorch places the blocks of a model on several devices, runs it from there and gives the memory back as asked.

Names are loaded on first use, so that `import distorch` costs a few milliseconds and needs no torch.
"""

from __future__ import annotations

import importlib
from typing import Any

# public name -> module that holds it
_EXPORTS: dict[str, str] = {
    "AllocationError": "distorch.allocation",
    "DiffPatch": "distorch.patching",
    "LoraPatch": "distorch.patching",
    "PlacedModel": "distorch.placed",
    "PlanError": "distorch.allocation",
    "StreamedExecutor": "distorch.run",
    "__version__": "distorch._version",
    "inventory": "distorch.model_blocks",
    "list_devices": "distorch.devices",
    "make_plan": "distorch.allocation",
    "parse": "distorch.allocation",
    "place": "distorch.placing",
    "place_string": "distorch.placing",
    "placements": "distorch.memory.placements",
    "registry": "distorch.eject",
}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    module = _EXPORTS.get(name)
    if module is None:
        raise AttributeError(f"module 'distorch' has no attribute {name!r}")
    return getattr(importlib.import_module(module), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
