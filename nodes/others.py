# SPDX-License-Identifier: Apache-2.0
"""The one wrapper around nodes of other packs: their inputs with a device among them, their call on that device."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

from ..patches.placing import loading
from ..patches.placing.request import available
from ..patches.seams import pack_devices
from .other_packs import DEVICE_TYPE, DeviceInput, Row
from .wrapped import Later, device_input, inputs_of


def on_a_device(name: str, row: Row) -> type:
    """The class of `<name>MultiGPU`. The pack may be loaded later than ours."""
    node = Later(name, *row.outputs.values())
    ours = [row.device] if row.offload is None else [row.device, row.offload]

    class OtherPacksNode:
        CATEGORY = row.category
        FUNCTION = "override"
        RETURN_TYPES = (*row.outputs.values(), *([DEVICE_TYPE] if row.gives else []))
        RETURN_NAMES = (*row.outputs, *([row.gives] if row.gives else []))
        NEEDS = name
        VALIDATE_INPUTS = _Validation(node, [d.name for d in ours if not d.link])

        @classmethod
        def INPUT_TYPES(cls) -> dict[str, Any]:
            inputs = inputs_of(node)
            for device in ours:
                _insert(inputs, device)
            alias, of = row.alias
            if of in inputs["optional"] and alias not in inputs["optional"]:
                _put(inputs["optional"], alias, inputs["optional"][of], of)
            inputs["optional"].update(row.more)
            return inputs

        def override(self, **inputs: Any) -> tuple[Any, ...]:
            compute = available(inputs.pop(row.device.name, None), default=row.device.default)
            offload = None
            if row.offload is not None:
                offload = available(inputs.pop(row.offload.name, None), default="cpu")
            inputs = {key: _unwrapped(value) for key, value in inputs.items()}
            _rename(inputs, row.alias, inputs_of(node))
            if row.device.instead in _names(inputs_of(node)):
                inputs[row.device.instead] = row.device.gives[compute != "cpu"]
            if row.call is not None:
                outputs = row.call(node, inputs, compute)
            else:
                with pack_devices.on_devices(pack_devices.package_of(node.cls), compute, offload):
                    outputs = loading.call(node, inputs)
            return (*outputs[: len(row.outputs)], *([compute] if row.gives else []))

    OtherPacksNode.__name__ = OtherPacksNode.__qualname__ = f"{name}MultiGPU"
    return OtherPacksNode


class _Validation:
    """The class's VALIDATE_INPUTS: lets any device pass, as the node takes another for one that is missing.

    A node whose device comes by a link needs none of ours: there it is the pack's own, or none.
    """

    def __init__(self, node: Later, widgets: list[str]) -> None:
        self._node, self._widgets = node, widgets

    def __get__(self, _instance: object, owner: type) -> Any:
        if not self._widgets:
            if self._node.known is None:
                raise AttributeError("VALIDATE_INPUTS")
            return self._node.known.VALIDATE_INPUTS

        def validate(_cls: type, **_devices: Any) -> bool:
            return True

        # ComfyUI leaves out its own check of each input that is named here.
        names = ("cls", *self._widgets)
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        parameters = [inspect.Parameter(name, kind) for name in names]
        validate.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return validate.__get__(owner)


def _insert(inputs: dict[str, Any], device: DeviceInput) -> None:
    part = inputs[device.part]
    row = (DEVICE_TYPE,) if device.link else device_input(device.default)
    behind = device.behind
    if device.instead in part and behind is None:
        names = list(part)
        at = names.index(device.instead)
        behind = names[at - 1] if at else ""
    for group in ("required", "optional"):
        inputs[group].pop(device.instead, None)
    _put(part, device.name, row, behind)


def _put(part: dict[str, Any], name: str, row: Any, behind: str | None) -> None:
    """Adds an input behind another; "": as the first; None, or one that is not there: as the last."""
    rest = dict(part)
    part.clear()
    if behind == "":
        part[name] = row
    for key, value in rest.items():
        part[key] = value
        if key == behind:
            part[name] = row
    part.setdefault(name, row)


def _rename(inputs: dict[str, Any], alias: tuple[str, str], known: dict[str, Any]) -> None:
    name, of = alias
    if name in inputs and of in _names(known) and name not in _names(known):
        value = inputs.pop(name)
        if inputs.get(of) is None and value is not None:
            inputs[of] = value


def _names(inputs: dict[str, Any]) -> Iterable[str]:
    return [*inputs["required"], *inputs["optional"]]


def _unwrapped(value: Any) -> Any:
    """ComfyUI-MultiGPU's loaders gave a model as a tuple of one; what is in it."""
    return value[0] if isinstance(value, tuple) and len(value) == 1 else value
