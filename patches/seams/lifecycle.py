# SPDX-License-Identifier: Apache-2.0
"""What other parts of the pack want to know of a managed model's life: plain lists of callbacks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

# Lists of this module, each with a function that is to be in it.
Listening = Iterable[tuple[list[Any], Callable[..., Any]]]

#: `(request, node_id, inputs)`, at the node, before a file is read: this is where models are ejected.
before_load: list[Callable[[Any, str, dict[str, Any]], None]] = []

#: `(request, node_id, inputs)` may answer with a kept model's outputs instead of loading again.
reuse: list[Callable[[Any, str, dict[str, Any]], tuple[Any, ...] | None]] = []

#: `(request, outputs)`, when a kept model is given again instead; it may be in host memory.
reused: list[Callable[[Any, tuple[Any, ...]], None]] = []

#: `(patcher, request)`, when a model has become ours; its weights are still on the host.
adopted: list[Callable[[Any, Any], None]] = []

#: `(request, node_id, inputs, outputs)`, when a node of ours has loaded its file.
loaded: list[Callable[[Any, str, dict[str, Any], tuple[Any, ...]], None]] = []

#: `(inner model)`, after each placement, spill and unload.
changed: list[Callable[[Any], None]] = []


def kept_outputs(request: Any, node: str, inputs: dict[str, Any]) -> tuple[Any, ...] | None:
    """The outputs of a kept model that was loaded with the same settings, if there is one."""
    for ask in reuse:
        outputs = ask(request, node, inputs)
        if outputs is not None:
            tell(reused, request, outputs)
            return outputs
    return None


def tell(listeners: list[Callable[..., None]], *args: Any) -> None:
    """Calls each listener."""
    for listener in listeners:
        listener(*args)


def follow(pairs: Listening) -> None:
    """Adds each function to its list; one that is there is not added again."""
    for listeners, function in pairs:
        if function not in listeners:
            listeners.append(function)


def leave(pairs: Listening) -> None:
    """Takes each function out of its list; one that is not there is no error."""
    for listeners, function in pairs:
        if function in listeners:
            listeners.remove(function)
