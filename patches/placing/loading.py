# SPDX-License-Identifier: Apache-2.0
"""One call of a ComfyUI loader for us: on the chosen device, not dynamic, its model then adopted."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import torch

from ..seams import current_device, devices, expected, lifecycle
from ..seams.non_dynamic import non_dynamic
from .adopt import adopt, find_patcher
from .request import Request

log = logging.getLogger("DisTorch")


@contextlib.contextmanager
def on_device(name: str, *, text_encoder: bool) -> Iterator[None]:
    """ComfyUI's loaders use this device: for text encoders that question alone is answered."""
    device = torch.device(name)
    choice = devices.Choice(text_encoder=device) if text_encoder else devices.Choice(model=device)
    with devices.chosen(choice):
        yield


@contextlib.contextmanager
def for_placement(name: str, *, text_encoder: bool, placed: str) -> Iterator[None]:
    """As `on_device`, with host copies on the host, and ordinary patchers for outputs of type `placed`."""
    device = torch.device(name)
    choice = devices.Choice(
        model=None if text_encoder else device,
        text_encoder=device if text_encoder else None,
        offload=torch.device("cpu"),
    )
    others = [name for name in ("CLIP", "VAE") if name != placed]
    with devices.chosen(choice), non_dynamic(but=others):
        yield


def load_plainly(
    node: type, name: str, inputs: dict[str, Any], *, text_encoder: bool
) -> tuple[Any, ...]:
    """Runs the core's loader node for a device; its models stay the core's own."""
    with on_device(name, text_encoder=text_encoder):
        outputs = call(node, inputs)
    for output in outputs:
        patcher = find_patcher(output)
        if patcher is not None:
            current_device.attach(patcher)
    return outputs


def call(node: type, inputs: dict[str, Any]) -> tuple[Any, ...]:
    """Runs a node of either API."""
    if hasattr(node, "define_schema"):
        result = node.execute(**inputs)  # type: ignore[attr-defined]
        return tuple(result.result if hasattr(result, "result") else result)
    return tuple(getattr(node(), node.FUNCTION)(**inputs))  # type: ignore[attr-defined]


def load(
    node: type, node_id: str, request: Request, inputs: dict[str, Any], *, text_encoder: bool
) -> tuple[Any, ...]:
    """Runs the core's loader node and places the blocks of its first output.

    A kept model that was loaded with the same settings is given again instead: no file is read.
    What holds no model that could be placed, as a ControlNet that is a LoRA, is left to ComfyUI; so is all of it where
    ComfyUI is not as placing expects it.
    """
    if not expected.can_place():
        return load_plainly(node, request.compute, inputs, text_encoder=text_encoder)
    kept = lifecycle.kept_outputs(request, node_id, inputs)
    if kept is not None:
        return kept
    lifecycle.tell(lifecycle.before_load, request, node_id, inputs)
    placed = str(node.RETURN_TYPES[0])  # type: ignore[attr-defined]
    with for_placement(request.compute, text_encoder=text_encoder, placed=placed):
        outputs = call(node, inputs)
    if find_patcher(outputs[0]) is None:
        log.error(
            "%s: the %s in %s holds no model whose blocks can be placed: it is left to ComfyUI, and "
            "the allocation has no effect",
            node_id,
            type(outputs[0]).__name__,
            request.file,
        )
        return outputs
    adopt(outputs[0], request)
    lifecycle.tell(lifecycle.loaded, request, node_id, inputs, outputs)
    return outputs
