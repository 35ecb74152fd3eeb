# SPDX-License-Identifier: Apache-2.0
"""What the nodes of WanVideoWrapper need besides a device: its block swap, and its transformer placed by a string."""

from __future__ import annotations

import logging
from typing import Any

from ..patches.placing import loading, wan
from ..patches.placing.request import Request, available, spec_for
from ..patches.seams import pack_devices
from .wrapped import text

log = logging.getLogger("DisTorch")

#: Inputs of the model loader that neither the pack nor ComfyUI-MultiGPU has.
MORE = {"expert_mode_allocations": text()}

_SWAP = "swap_device"
#: The pack's own ways of having weights elsewhere, as inputs of its loader.
_OWN_WAYS = ("block_swap_args", "vram_management_args")


def load(node: Any, inputs: dict[str, Any], compute: str) -> tuple[Any, ...]:
    """Loads the model; with a string its transformer's blocks are placed by it whenever it samples."""
    string = inputs.pop(next(iter(MORE)), "")
    request = None
    if string.strip():
        spec = spec_for(compute, string, 0.0, [])  # before a file is read
        request = Request(
            compute,
            spec,
            node="WanVideoModelLoaderMultiGPU",
            file=inputs["model"],
            execution_mode="stream",  # its blocks take more than tensors
        )
        for name in _OWN_WAYS:
            if inputs.get(name) is not None:
                log.warning("%s has no effect: expert_mode_allocations places the blocks", name)
                inputs[name] = None
        inputs["load_device"] = "offload_device"
    with pack_devices.on_devices(pack_devices.package_of(node.cls), compute):
        outputs = loading.call(node, inputs)
    wan.ask_for(outputs[0], request)
    return outputs


def sample(node: Any, inputs: dict[str, Any], compute: str) -> tuple[Any, ...]:
    """Samples on the device, the pack's swapped blocks on theirs, or the blocks placed by the loader's string."""
    model = inputs["model"] = wan.without_block_swap(inputs["model"])
    swapped = wan.block_swap_of(model).get(_SWAP)
    swap = None if swapped is None else available(swapped, default="cpu")
    module = str(node.cls.__module__)
    package = pack_devices.package_of(node.cls)
    with (
        pack_devices.on_devices(package, compute, swap, computes=module),
        wan.devices_of(model, compute, swap),
        wan.placed_by_string(model, module, compute),
    ):
        return loading.call(node, inputs)


def swap(node: Any, inputs: dict[str, Any], device: str) -> tuple[Any, ...]:
    """The pack's settings, with the device that receives the swapped blocks."""
    settings, *rest = loading.call(node, inputs)
    return ({**settings, _SWAP: device}, *rest)
