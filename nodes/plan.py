# SPDX-License-Identifier: Apache-2.0
"""Shows what would go where, without loading the model."""

from __future__ import annotations

from typing import Any

from ..patches.placing import preview
from ..patches.placing.request import available, spec_for
from .wrapped import AnyDevice, device_input, gigabytes, text

ALL, NOW = "all of each device", "what is free now"


class DisTorchPlan(AnyDevice):
    """Reads no weights, in any of the usual formats; the loader's widgets mean here what they mean there."""

    CATEGORY = "multigpu/distorch_2"
    FUNCTION = "plan"
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("plan",)
    OUTPUT_NODE = True
    TITLE = "DisTorch Plan"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "file": (preview.files(),),
                "compute_device": device_input(),
                "virtual_vram_gb": gigabytes(4.0),
                "donor_device": device_input("cpu"),
                "expert_mode_allocations": text(),
            },
            "optional": {
                "part": (list(preview.PARTS), {"default": "model"}),
                "memory": ([ALL, NOW], {"default": ALL}),
                "compare_with": text(),
            },
        }

    @classmethod
    def IS_CHANGED(cls, **_inputs: Any) -> float:
        """Files, devices and free memory change without an input doing so; a look costs milliseconds."""
        return float("nan")

    def plan(
        self,
        file: str,
        compute_device: str,
        virtual_vram_gb: float,
        donor_device: str,
        expert_mode_allocations: str,
        part: str = "model",
        memory: str = ALL,
        compare_with: str = "",
    ) -> dict[str, Any]:
        compute = available(compute_device)
        donors = [available(donor_device, default="cpu")]
        specs = [spec_for(compute, expert_mode_allocations, virtual_vram_gb, donors)]
        if compare_with.strip():
            specs.append(spec_for(compute, compare_with, 0.0, donors))
        views, shown = preview.describe(file, part, specs, compute, free_now=memory == NOW)
        plans = [view.as_json() for view in views]
        return {"ui": {"text": [shown], "plans": plans}, "result": (shown,)}
