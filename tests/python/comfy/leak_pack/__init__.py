# SPDX-License-Identifier: Apache-2.0
"""A custom node for tests only that keeps a tensor on a device each time it runs, as a careless pack does."""

from __future__ import annotations

import torch

KEPT: list[torch.Tensor] = []


class AnyType(str):
    """Equal to every type name."""

    __slots__ = ()

    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = str.__hash__


class Leak:
    """`value` passes through; `megabytes` stay on `device` for good."""

    CATEGORY, FUNCTION, RETURN_TYPES = "distorch test", "leak", (AnyType("*"),)

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        required = {
            "value": (AnyType("*"), {}),
            "device": ("STRING", {"default": "sim:1"}),
            "megabytes": ("FLOAT", {"default": 4.0}),
        }
        return {"required": required}

    def leak(self, value: object, device: str, megabytes: float):
        KEPT.append(torch.zeros(int(megabytes * 2**20), dtype=torch.uint8, device=device))
        return (value,)


NODE_CLASS_MAPPINGS = {"DistorchTestLeak": Leak}
