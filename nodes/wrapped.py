# SPDX-License-Identifier: Apache-2.0
"""Loader nodes of ComfyUI (and of the GGUF pack) with a choice of device or a placement.

Each class is made from the core's node: its inputs and outputs, ours behind them. Names, order and
defaults are ComfyUI-MultiGPU's, so that workflows saved with it open and run; `keep_loaded` is new
and last. The core's class is called, never subclassed: it may be of either node API.
"""

from __future__ import annotations

import copy
import dataclasses
import re
from typing import Any

import nodes as core

from ..patches.placing import loading
from ..patches.placing.request import Request, available, spec_for, what_is_wrong
from ..patches.seams import devices


@dataclasses.dataclass(frozen=True)
class Family:
    """What tells the families apart: the device widget, and which question it answers."""

    device: str = "compute_device"
    text_encoder: bool = False
    core_device: bool = False  # the core's own "device" input becomes ours; the core gets "default"


MODEL = Family()
CLIP = Family("device", text_encoder=True, core_device=True)
CLIP_WITHOUT_DEVICE = Family("device", text_encoder=True)


def device_input(name: str | None = None) -> tuple[list[str], dict[str, Any]]:
    """A device widget: what ComfyUI can compute on, the first accelerator chosen; with `name`: every device, it chosen."""
    there = devices.computing() if name is None else devices.names()
    return (there, {"default": name or devices.first_of(there)})


def gigabytes(default: float, most: float = 128.0) -> tuple[str, dict[str, Any]]:
    """A size widget in GB."""
    return ("FLOAT", {"default": default, "min": 0.0, "max": most, "step": 0.1})


def text() -> tuple[str, dict[str, Any]]:
    """An allocation string."""
    return ("STRING", {"multiline": False, "default": "", "placeholder": "cuda:0,8gb;cpu,*"})


def switch(default: bool) -> tuple[str, dict[str, Any]]:
    """A yes or no."""
    return ("BOOLEAN", {"default": default})


def execution_mode() -> tuple[list[str], dict[str, Any]]:
    """How the blocks on other accelerators are used; last, as saved workflows keep their order."""
    return (["auto", "stream", "migrate"], {"default": "auto"})


class AnyType(str):
    """A type name that is unlike none: ComfyUI asks with `!=` whether two types match."""

    __slots__ = ()

    def __ne__(self, other: object) -> bool:
        return False


ANY = AnyType("*")


class AnyDevice:
    """Accepts a device that this machine lacks: the node then says so and takes another."""

    @classmethod
    def VALIDATE_INPUTS(
        cls,
        device: str | None = None,
        compute_device: str | None = None,
        donor_device: str | None = None,
        unet_device: str | None = None,
        clip_device: str | None = None,
        vae_device: str | None = None,
        unet_compute_device: str | None = None,
        unet_donor_device: str | None = None,
        clip_compute_device: str | None = None,
        clip_donor_device: str | None = None,
        expert_mode_allocations: str | None = None,
        unet_expert_mode_allocations: str | None = None,
        clip_expert_mode_allocations: str | None = None,
        compare_with: str | None = None,
    ) -> bool | str:
        """ComfyUI leaves out its own check of each input that is named here. A wrong string is told before anything is queued."""
        strings = {
            "expert_mode_allocations": expert_mode_allocations,
            "unet_expert_mode_allocations": unet_expert_mode_allocations,
            "clip_expert_mode_allocations": clip_expert_mode_allocations,
            "compare_with": compare_with,
        }
        wrong = [f"{k}: {refused}" for k, v in strings.items() if (refused := what_is_wrong(v))]
        return "\n".join(wrong) or True


class Later:
    """A node of a pack that may be loaded after ours; it is asked for when it is needed."""

    def __init__(self, name: str, *returns: str) -> None:
        self.name, self.RETURN_TYPES = name, returns

    def __call__(self) -> Any:
        return self.cls()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.cls, name)

    @property
    def known(self) -> Any | None:
        """The node's class; None while its pack has not been loaded."""
        return core.NODE_CLASS_MAPPINGS.get(self.name)

    @property
    def cls(self) -> Any:
        """The node's class. Raises RuntimeError where there is none."""
        if self.known is None:
            raise RuntimeError(f"the pack with the node {self.name} has not been loaded")
        return self.known


def multigpu(node: type, node_id: str, family: Family) -> type:
    """The node with a device, and no placement: the core loads the model as it always does."""

    class DeviceNode(AnyDevice):
        CATEGORY = "multigpu"
        FUNCTION = "override"
        RETURN_TYPES = node.RETURN_TYPES
        RETURN_NAMES = _names(node)

        @classmethod
        def INPUT_TYPES(cls) -> dict[str, Any]:
            return _with(inputs_of(node), {"device": device_input()})

        def override(self, device: str | None = None, **inputs: Any) -> tuple[Any, ...]:
            if family.core_device:
                inputs["device"] = "default"
            return loading.load_plainly(
                node, available(device), inputs, text_encoder=family.text_encoder
            )

    return _named(DeviceNode, node_id)


def distorch2(node: type, node_id: str, family: Family) -> type:
    """The node with a placement of its first output's blocks."""
    eject_default = not family.text_encoder

    class PlacementNode(AnyDevice):
        CATEGORY = "multigpu/distorch_2"
        FUNCTION = "override"
        RETURN_TYPES = node.RETURN_TYPES
        RETURN_NAMES = _names(node)

        @classmethod
        def INPUT_TYPES(cls) -> dict[str, Any]:
            inputs = _with(inputs_of(node), _placement_widgets(family))
            if family.device == "device":
                inputs["hidden"] = {"prompt": "PROMPT", "unique_id": "UNIQUE_ID"}
            return inputs

        def override(
            self,
            virtual_vram_gb: float = 4.0,
            donor_device: str = "cpu",
            expert_mode_allocations: str = "",
            eject_models: bool = eject_default,
            keep_loaded: bool = True,
            execution_mode: str = "auto",
            prompt: Any = None,
            unique_id: str = "",
            **inputs: Any,
        ) -> tuple[Any, ...]:
            compute = available(inputs.pop(family.device, None) or _in_prompt(prompt, unique_id))
            donors = [available(donor_device, default="cpu")]
            request = Request(
                compute=compute,
                spec=spec_for(compute, expert_mode_allocations, virtual_vram_gb, donors),
                node=node_id,
                file=_file(inputs),
                keep_loaded=keep_loaded,
                eject_models=eject_models,
                execution_mode=execution_mode,
            )
            if family.core_device:
                inputs["device"] = "default"
            return loading.load(node, node_id, request, inputs, text_encoder=family.text_encoder)

    return _named(PlacementNode, node_id)


def legacy(node: type, node_id: str, family: Family) -> type:
    """The first DisTorch's widgets (GGUF): every other accelerator may be a donor."""

    class LegacyNode(AnyDevice):
        CATEGORY = "multigpu/legacy"
        FUNCTION = "override"
        RETURN_TYPES = node.RETURN_TYPES
        RETURN_NAMES = _names(node)

        @classmethod
        def INPUT_TYPES(cls) -> dict[str, Any]:
            return _with(inputs_of(node), _legacy_widgets())

        def override(
            self,
            device: str | None = None,
            virtual_vram_gb: float = 4.0,
            use_other_vram: bool = False,
            expert_mode_allocations: str = "",
            keep_loaded: bool = True,
            **inputs: Any,
        ) -> tuple[Any, ...]:
            compute = available(device)
            others = [d for d in devices.names()[1:] if d != compute] if use_other_vram else []
            request = Request(
                compute=compute,
                spec=spec_for(compute, expert_mode_allocations, virtual_vram_gb, [*others, "cpu"]),
                node=node_id,
                file=_file(inputs),
                keep_loaded=keep_loaded,
            )
            return loading.load(node, node_id, request, inputs, text_encoder=family.text_encoder)

    return _named(LegacyNode, node_id)


def _placement_widgets(family: Family) -> dict[str, Any]:
    return {
        family.device: device_input(),
        "virtual_vram_gb": gigabytes(4.0),
        "donor_device": device_input("cpu"),
        "expert_mode_allocations": text(),
        "eject_models": switch(not family.text_encoder),
        "keep_loaded": switch(True),
        "execution_mode": execution_mode(),
    }


def _legacy_widgets() -> dict[str, Any]:
    return {
        "device": device_input(),
        "virtual_vram_gb": gigabytes(4.0, 24.0),
        "use_other_vram": switch(False),
        "expert_mode_allocations": text(),
        "keep_loaded": switch(True),
    }


def _with(inputs: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Ours behind the core's; one of the same name keeps its place."""
    inputs["optional"].update(more)
    return inputs


def inputs_of(node: Any) -> dict[str, Any]:
    """A copy of a node's inputs, with both parts and without hidden ones."""
    inputs = copy.deepcopy(dict(node.INPUT_TYPES()))
    inputs["required"] = dict(inputs.get("required", {}))
    inputs["optional"] = dict(inputs.get("optional", {}))
    inputs.pop("hidden", None)
    return inputs


def _in_prompt(prompt: Any, unique_id: str) -> str | None:
    """The device in a prompt that gives it under the name that the text encoders' loaders had in the first 2.0 releases."""
    value = (prompt or {}).get(unique_id, {}).get("inputs", {}).get("compute_device")
    return value if isinstance(value, str) else None


def _names(node: type) -> tuple[str, ...]:
    if isinstance(node, Later):
        return tuple(node.RETURN_TYPES)
    return tuple(getattr(node, "RETURN_NAMES", None) or node.RETURN_TYPES)  # type: ignore[attr-defined]


def _file(inputs: dict[str, Any]) -> str:
    """The file names among the inputs ("unet_name", "clip_name4", "model_path"), for reports."""
    return ", ".join(str(v) for k, v in inputs.items() if re.search(r"_(name\d?|path)$", k))


def _named(cls: type, name: str) -> type:
    cls.__name__ = cls.__qualname__ = name
    return cls
