# SPDX-License-Identifier: Apache-2.0
"""Tells when a node runs, with its inputs and what it returned, and when a prompt does.

Seam: `execution.get_output_data`, the one function through which ComfyUI runs every node,
`PromptExecutor.add_message`, which says how a prompt goes, and `ProgressBar.update_absolute`,
through which samplers report each step. Cached nodes do not run. Holds for every ComfyUI since
0.3.64; all are passed on with all their arguments.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Protocol

from .seam import FunctionSeam

log = logging.getLogger("DisTorch")


class NodeListener(Protocol):
    """Called in ComfyUI's worker thread."""

    def node_started(self, prompt: str, node: str, kind: str, inputs: dict[str, Any]) -> None:
        """A node is about to run; each input is a list of values."""

    def node_ended(self, prompt: str, node: str, outputs: object) -> None:
        """It returned `outputs`, or failed (None)."""

    def progress(self, value: int, total: int) -> None:
        """The running node has done `value` of `total` steps."""

    def message(self, event: str, data: dict[str, Any]) -> None:
        """ComfyUI's "execution_start", "execution_success", "execution_error" and so on."""


class NodeEvents:
    """The wrappers, and who listens."""

    def __init__(self, execution: Any, utils: Any) -> None:
        """`execution`: ComfyUI's module of that name; `utils`: comfy.utils."""
        self.listeners: list[NodeListener] = []
        self._seams = (
            FunctionSeam(execution, "get_output_data", self._around_node, "which node loads what"),
            FunctionSeam(
                execution.PromptExecutor, "add_message", self._around_message, "which prompt runs"
            ),
            FunctionSeam(
                utils.ProgressBar, "update_absolute", self._around_progress, "how long a step takes"
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
        node = str(unique_id)
        kind = obj.__name__ if isinstance(obj, type) else type(obj).__name__
        self._tell("node_started", str(prompt_id), node, kind, dict(input_data_all or {}))
        outputs = None
        try:
            result = await original(prompt_id, unique_id, obj, input_data_all, *args, **kwargs)
            outputs = result[0]
            return result
        finally:
            self._tell("node_ended", str(prompt_id), node, outputs)

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
            self._tell("message", event, data)
        return original(executor, event, data, *args, **kw)

    def _around_progress(
        self, original: Callable[..., Any], bar: Any, value: Any, *args: Any, **kw: Any
    ) -> Any:
        result = original(bar, value, *args, **kw)
        self._tell("progress", int(bar.current), int(bar.total))
        return result

    def _tell(self, method: str, *arguments: Any) -> None:
        for listener in self.listeners:
            try:
                getattr(listener, method)(*arguments)
            except Exception:  # watching must never break a run
                log.exception("DisTorch: %s of %s failed", method, type(listener).__name__)
