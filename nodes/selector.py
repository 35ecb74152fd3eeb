# SPDX-License-Identifier: Apache-2.0
"""A device as a value, for nodes with a device input."""

from __future__ import annotations

from typing import Any

from ..patches.placing.request import available
from .wrapped import AnyDevice, device_input


class DeviceSelectorMultiGPU(AnyDevice):
    """Gives the chosen device, or the first accelerator where it is missing."""

    CATEGORY = "multigpu"
    FUNCTION = "select_device"
    RETURN_TYPES = ("MULTIGPUDEVICE",)
    RETURN_NAMES = ("device",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"device": device_input()}}

    def select_device(self, device: str) -> tuple[str]:
        return (available(device),)
