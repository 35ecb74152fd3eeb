# SPDX-License-Identifier: Apache-2.0
"""Tells when a node runs, with its inputs and what it returned, and when a prompt does.

Seam: `execution.get_output_data`, the one function through which ComfyUI runs every node,
`PromptExecutor.add_message`, which says how a prompt goes, `ProgressBar.update_absolute`, through
which samplers report each step, and `BaseModel.apply_model`, through which they run a model. Cached
nodes do not run. Holds for every ComfyUI since 0.3.64; all are passed on with all their arguments.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Protocol

from . import progress
from .seam import FunctionSeam

log = logging.getLogger("DisTorch")


#: How a prompt ends, by ComfyUI's message.
ENDINGS = {
    "execution_success": "success",
    "execution_error": "error",
    "execution_interrupted": "interrupted",
}


class NodeListener(Protocol):
    """Called in ComfyUI's worker thread, `passed` in any."""

    def node_started(self, prompt: str, node: str, kind: str, inputs: dict[str, Any]) -> None:
        """A node is about to run; each input is a list of values."""

    def node_ended(self, prompt: str, node: str, outputs: object) -> None:
        """It returned `outputs`, or failed (None)."""

    def progress(self, value: int, total: int) -> None:
        """The running node has done `value` of `total` steps."""

    def passed(self, model: object) -> None:
        """A sampler runs `model` (comfy.model_base.BaseModel) once."""

    def message(self, event: str, data: dict[str, Any]) -> None:
        """ComfyUI's "execution_start", "execution_success", "execution_error" and so on."""


class NodeEvents:
    """The wrappers, and who listens."""

    def __init__(self, execution: Any, utils: Any, model_base: Any) -> None:
        """`execution`: ComfyUI's module of that name; `utils`: comfy.utils; and comfy.model_base."""
        self.listeners: list[NodeListener] = []
        self._kinds = _Kinds(execution)
        self._seams = (
            FunctionSeam(execution, "get_output_data", self._around_node, "which node loads what"),
            FunctionSeam(
                execution.PromptExecutor, "add_message", self._around_message, "which prompt runs"
            ),
            FunctionSeam(
                utils.ProgressBar, "update_absolute", self._around_progress, "how long a step takes"
            ),
            FunctionSeam(
                model_base.BaseModel, "apply_model", self._around_pass, "which model a step runs"
            ),
        )

    def install(self) -> None:
        """Wrap the functions."""
        for seam in self._seams:
            seam.install()

    def uninstall(self) -> None:
        """Give them back."""
        for seam in self._seams:
            seam.uninstall()

    async def _around_node(
        self,
        original: Callable[..., Any],
        prompt_id: Any,
        unique_id: Any,
        obj: Any,
        input_data_all: Any,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        key = (str(prompt_id), str(unique_id))
        self._tell("node_started", lambda: (*key, self._kinds.of(obj), dict(input_data_all or {})))
        result = None
        try:
            result = await original(prompt_id, unique_id, obj, input_data_all, *args, **kwargs)
            return result
        finally:
            self._tell("node_ended", lambda: (*key, result[0] if result else None))

    def _around_message(
        self,
        original: Callable[..., Any],
        executor: Any,
        event: str,
        data: Any,
        *args: Any,
        **kw: Any,
    ) -> Any:
        if isinstance(data, dict):
            self._tell("message", lambda: (event, data))
        return original(executor, event, data, *args, **kw)

    def _around_progress(
        self, original: Callable[..., Any], bar: Any, value: Any, *args: Any, **kw: Any
    ) -> Any:
        result = original(bar, value, *args, **kw)
        if not getattr(bar, progress.OURS, False):  # a load has no steps
            self._tell("progress", lambda: (int(bar.current), int(bar.total)))
        return result

    def _around_pass(self, original: Callable[..., Any], model: Any, *args: Any, **kw: Any) -> Any:
        self._tell("passed", lambda: (model,))
        return original(model, *args, **kw)

    def _tell(self, method: str, arguments: Callable[[], tuple[Any, ...]]) -> None:
        for listener in self.listeners:
            try:
                getattr(listener, method)(*arguments())
            except Exception:  # watching must never break a run
                log.exception("DisTorch: %s of %s failed", method, type(listener).__name__)


class _Kinds:
    """What workflows call a node's class; packs often give the class itself another name."""

    def __init__(self, execution: Any) -> None:
        self._execution = execution
        self._names: dict[type, str] = {}
        self._seen = 0  # entries of ComfyUI's table that `_names` has

    def of(self, node: Any) -> str:
        """Return the name of a node, or of its class."""
        kind = node if isinstance(node, type) else type(node)
        nodes = getattr(self._execution, "nodes", None)
        table = getattr(nodes, "NODE_CLASS_MAPPINGS", {})
        if len(table) != self._seen:
            self._seen = len(table)
            self._names = {c: name for name, c in reversed(table.items()) if isinstance(c, type)}
            self._names |= {
                c: name for name, c in table.items() if name == getattr(c, "__name__", "")
            }
        return self._names.get(kind, kind.__name__)
