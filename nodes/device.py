# SPDX-License-Identifier: Apache-2.0
"""One device for several loaders."""

from __future__ import annotations

from typing import Any

from .wrapped import ANY, AnyDevice, device_input


class DisTorchDevice(AnyDevice):
    """Gives the name as it is: each loader knows what to take where the device is missing."""

    CATEGORY = "multigpu/distorch_2"
    FUNCTION = "select"
    RETURN_TYPES = (ANY,)
    RETURN_NAMES = ("device",)
    TITLE = "DisTorch Device"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        names, options = device_input()
        return {"required": {"device": ([*names, "default"], options)}}

    def select(self, device: str) -> tuple[str]:
        return (device,)
