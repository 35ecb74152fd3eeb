# SPDX-License-Identifier: Apache-2.0
"""Nodes for tests: inputs without a text encoder, and outputs kept bit for bit."""

from __future__ import annotations

import pathlib

import folder_paths
import torch


class AnyType(str):
    """Equal to every type name, for inputs that take anything."""

    __slots__ = ()

    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = str.__hash__


def _random(shape: list[int], seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class ProbeConditioning:
    """A random prompt embedding; `pooled` 0 leaves the pooled vector out."""

    CATEGORY, FUNCTION, RETURN_TYPES = "distorch test", "make", ("CONDITIONING",)

    @classmethod
    def INPUT_TYPES(cls):
        number = {"default": 0, "min": 0, "max": 2**31}
        return {"required": dict.fromkeys(("tokens", "width", "pooled", "seed"), ("INT", number))}

    def make(self, tokens: int, width: int, pooled: int, seed: int):
        extra = {"pooled_output": _random([1, pooled], seed + 1)} if pooled else {}
        return ([[_random([1, tokens, width], seed), extra]],)


class ProbeLatent:
    """A zero latent of the shape "1,16,1,8,8"."""

    CATEGORY, FUNCTION, RETURN_TYPES = "distorch test", "make", ("LATENT",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"shape": ("STRING", {"default": "1,4,8,8"})}}

    def make(self, shape: str):
        return ({"samples": torch.zeros([int(part) for part in shape.split(",")])},)


class ProbeSave:
    """Writes a value (latent, image, conditioning) as `<name>.pt` into the output folder."""

    CATEGORY, FUNCTION, RETURN_TYPES, OUTPUT_NODE = "distorch test", "save", (), True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"value": (AnyType("*"), {}), "name": ("STRING", {"default": "value"})}}

    @classmethod
    def IS_CHANGED(cls, **_kwargs: object) -> float:
        return float("nan")

    def save(self, value: object, name: str):
        if isinstance(value, dict):
            value = value["samples"]
        elif isinstance(value, list):
            value = [value[0][0], value[0][1].get("pooled_output")]
        torch.save(value, pathlib.Path(folder_paths.get_output_directory()) / f"{name}.pt")
        return {"ui": {"saved": [name]}}


class ProbeRun:
    """Runs Python in the worker, between nodes: `value` passes through, or what the code puts in its place."""

    CATEGORY, FUNCTION, RETURN_TYPES = "distorch test", "run", (AnyType("*"),)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"value": (AnyType("*"), {}), "code": ("STRING", {"default": ""})}}

    @classmethod
    def IS_CHANGED(cls, **_kwargs: object) -> float:
        return float("nan")

    def run(self, value: object, code: str):
        scope = {"value": value, "torch": torch}
        exec(code, scope)  # noqa: S102 - the purpose of this node
        return (scope["value"],)


NODE_CLASS_MAPPINGS = {
    "DistorchTestRun": ProbeRun,
    "DistorchTestConditioning": ProbeConditioning,
    "DistorchTestLatent": ProbeLatent,
    "DistorchTestSave": ProbeSave,
}
