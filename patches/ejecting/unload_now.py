# SPDX-License-Identifier: Apache-2.0
"""Unloading in the middle of a prompt, by the core's own means for each entry of its list.

Only devices are given back: a model's host copy stays with whoever holds it, so a node that uses the model later in
the same prompt loads it again. That holds for kept models too; `let_go` also ends their keeping.

Whether a cached "DisTorch Unload" must run again: ComfyUI runs it whenever what flows through it changed. If nothing
did, it must run again only when one of its models has come back meanwhile by another prompt's doing; a model that
this very workflow loads behind the node is no reason, or each run would repeat all that lies behind it. So at the end
of each prompt with such a node the models that are loaded are remembered; `Memory.token` changes when there is another.
"""

from __future__ import annotations

import collections
import logging
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..placing.adopt import find_patcher
from ..seams.node_events import ENDINGS
from ..seams.seam import FunctionSeam
from . import managed

if TYPE_CHECKING:
    from distorch._C import UnloadReport

log = logging.getLogger("DisTorch")

THIS, OTHERS, EVERYTHING = CHOICES = ("this model", "all others", "everything")

_KNOWN_NODES = 256  # nodes of workflows run lately; a forgotten one runs once more


def inner_of(value: Any) -> Any | None:
    """The inner model of a node's output; None if it holds none that ComfyUI loads."""
    patcher = find_patcher(value)
    return None if patcher is None else patcher.model


def run(what: str, value: Any, let_go: bool = False, node: str = "") -> UnloadReport:
    """Unload `what` (one of `CHOICES`); `value` is or holds the model it is about.

    Raises ValueError if `what` needs a model and `value` holds none.
    """
    model = inner_of(value)
    if model is None and what != EVERYTHING:
        raise ValueError(
            f"DisTorch Unload: {what!r} needs a model, a text encoder, a VAE or a ControlNet at "
            f"'model' (or as the value), but got {type(value).__name__}"
        )
    memory.about(node, model)
    about = [model] if what != EVERYTHING else []
    report = managed.unload("these" if what == THIS else "all but", about, let_go=let_go)
    log.info("%s", report)
    return report


def text(report: UnloadReport) -> str:
    """The report for the node's output, with what ends a keeping."""
    kept = any(model.kept and not model.loaded for model in report.stay)
    return f"{report}\n(switch let_go on to end the keeping)" if kept else str(report)


def _concerned(what: str, model: Any) -> list[Any]:
    """The loaded models that `what` is about."""
    return [m for m in managed.loaded() if what == EVERYTHING or (m is model) is (what == THIS)]


class Memory:
    """What each unload node was about, and what was loaded when its last prompt ended.

    Used by ComfyUI's worker thread. Holds models weakly.
    """

    def __init__(self) -> None:
        self._about: collections.OrderedDict[str, Any] = collections.OrderedDict()
        self._left: dict[str, weakref.WeakSet[Any]] = {}
        self._tokens: dict[str, int] = {}
        self._asked: set[str] = set()

    def about(self, node: str, model: Any) -> None:
        """Note the model that a node has just been about (None: it had none)."""
        self._about[node] = (lambda: None) if model is None else weakref.ref(model)
        self._about.move_to_end(node)
        while len(self._about) > _KNOWN_NODES:
            old, _ = self._about.popitem(last=False)
            self._left.pop(old, None)
            self._tokens.pop(old, None)

    def token(self, node: str, what: str) -> int:
        """A number that differs from the last one when the node has something new to unload."""
        self._asked.add(node)
        if node in self._about:
            model, left = self._about[node](), self._left.get(node, ())
            if any(owner not in left for owner in _concerned(what, model)):
                self._tokens[node] = self._tokens.get(node, 0) + 1
        return self._tokens.get(node, 0)

    def prompt_ended(self) -> None:
        """Remember what is loaded now, for the nodes of the prompt that has ended."""
        for node in self._asked:
            self._left[node] = weakref.WeakSet(managed.loaded())
        self._asked.clear()


memory = Memory()
_seams: list[FunctionSeam] = []


def _around_message(
    original: Callable[..., Any], executor: Any, event: str, *args: Any, **kwargs: Any
) -> Any:
    if event in ENDINGS:
        try:
            memory.prompt_ended()
        except Exception:  # the caller is ComfyUI's worker
            log.exception("what is loaded could not be remembered: unload nodes will run again")
    return original(executor, event, *args, **kwargs)


def install() -> None:
    """Learn when a prompt ends; a second call does nothing."""
    import execution

    if not _seams:
        _seams.append(
            FunctionSeam(
                execution.PromptExecutor, "add_message", _around_message, "a prompt has ended"
            )
        )
    _seams[0].install()


def uninstall() -> None:
    """Stop listening."""
    for seam in _seams:
        seam.uninstall()
