# SPDX-License-Identifier: Apache-2.0
"""Makes a model that the core has just loaded a placed one."""

from __future__ import annotations

import logging
from typing import Any

import comfy.model_management as mm
import comfy.model_patcher
import comfy.patcher_extension
import torch

from ..seams import current_device, lifecycle
from ..seams.non_dynamic import require_non_dynamic
from . import donors
from .patcher import attach, become_ours, check_class
from .request import Request
from .weights import HOST

log = logging.getLogger("DisTorch")


def find_patcher(output: Any) -> Any | None:
    """The patcher inside a node's output: a model, a text encoder, a VAE, a ControlNet; or None."""
    for candidate in (
        output,
        getattr(output, "patcher", None),
        getattr(output, "control_model_wrapped", None),
    ):
        if isinstance(candidate, comfy.model_patcher.ModelPatcher):
            return candidate
    return None


def adopt(output: Any, request: Request) -> Any:
    """Gives the output's model a placement. Returns its patcher.

    Raises DynamicVRAMError if ComfyUI manages the model dynamically, PlanError if it fits nowhere.
    """
    patcher = find_patcher(output)
    if patcher is None:
        raise TypeError(
            f"{request.node}: {type(output).__name__} holds no model whose blocks can be placed"
        )
    require_non_dynamic(patcher)
    _bring_to_host(patcher)
    if getattr(output, "disable_offload", False):
        log.warning(
            "%s runs as a whole only: it stays on %s", type(patcher.model).__name__, request.compute
        )
        request = request.whole_on(request.compute)
    become_ours(patcher)
    placed = attach(patcher.model, request)
    donors.plan_for_an_empty_machine(placed)
    patcher.add_callback(comfy.patcher_extension.CallbacksMP.ON_LOAD, check_class)
    current_device.attach(patcher)
    setattr(patcher.model, donors.FLAG, not request.keep_loaded)
    donors.tell(patcher.model, placed, "waiting")
    lifecycle.tell(lifecycle.adopted, patcher, request)
    return patcher


def _bring_to_host(patcher: Any) -> None:
    """Undoes a load that the core's loader has done: the host copies must be on the host."""
    patcher.offload_device = HOST
    for entry in list(mm.current_loaded_models):
        if entry.model is patcher:
            donors.unload(entry)
    with torch.inference_mode():
        for module in patcher.model.modules():
            for table in (module._parameters, module._buffers):
                for name, tensor in table.items():
                    if tensor is not None and tensor.device != HOST:
                        moved = _on_host(module, name, tensor)
                        table[name] = (
                            torch.nn.Parameter(moved, requires_grad=False)
                            if table is module._parameters
                            else moved
                        )
    patcher.model.device = HOST


def _on_host(module: torch.nn.Module, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """The tensor on the host; zeros for a key that the file lacks, which ComfyUI leaves on "meta"."""
    if not tensor.is_meta:
        return tensor.to(HOST)
    wanted = getattr(module, f"{name}_comfy_model_dtype", None)
    return torch.zeros(tensor.shape, dtype=wanted or tensor.dtype)
