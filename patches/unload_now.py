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
import dataclasses
import gc
import logging
import weakref
from collections.abc import Callable
from typing import Any

import comfy.model_management as mm

from distorch import caches
from distorch import devices as device_table
from distorch.devices import name_of

from . import keep
from .adopt import find_patcher
from .node_events import ENDINGS
from .seam import FunctionSeam
from .shards import DonorShard, unload

log = logging.getLogger("DisTorch")

THIS, OTHERS, EVERYTHING = CHOICES = ("this model", "all others", "everything")

_KNOWN_NODES = 256  # nodes of workflows run lately; a forgotten one runs once more


@dataclasses.dataclass(frozen=True)
class Report:
    """What was unloaded from where, what each accelerator gave back in bytes, what stays loaded."""

    unloaded: dict[str, tuple[str, ...]]
    freed: dict[str, int]
    stay: tuple[str, ...]
    still_kept: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"unloaded {name} from {', '.join(d)}" for name, d in self.unloaded.items()]
        if not lines:
            lines.append("nothing to unload: no such model is loaded")
        for device, size in self.freed.items():
            lines.append(f"{device}: {size} bytes given back ({size / 2**20:.2f} MB)")
        if self.stay:
            lines.append(f"still loaded: {', '.join(self.stay)}")
        if self.still_kept:
            names = ", ".join(self.still_kept)
            lines.append(f"kept in system memory: {names} (switch let_go on to end that)")
        return "\n".join(lines)


def inner_of(value: Any) -> Any | None:
    """The inner model of a node's output; None if it holds none that ComfyUI loads."""
    patcher = find_patcher(value)
    return None if patcher is None else patcher.model


def run(what: str, value: Any, let_go: bool = False, node: str = "") -> Report:
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
    before = _in_use()
    unloaded: dict[str, list[str]] = {}
    held = []
    for entry, owner in _chosen(what, model):
        name, device = keep.title(owner), name_of(entry.device)
        if device not in unloaded.setdefault(name, []):
            unloaded[name].append(device)
        unload(entry)  # first: whoever nobody else holds is gone once it is let go of
        if let_go and keep.is_managed(owner):
            keep.release(owner)
        elif keep.is_kept(owner) and name not in held:
            held.append(name)
    if unloaded:
        _settle()
    after = _in_use()
    freed = {d: max(0, before[d] - after.get(d, 0)) for d in before} if unloaded else {}
    report = Report(
        {name: tuple(devices) for name, devices in unloaded.items()},
        freed,
        tuple(dict.fromkeys(keep.title(owner) for _, owner in _entries())),
        tuple(held),
    )
    log.info("%s", report)
    return report


def _entries() -> list[tuple[Any, Any]]:
    """The core's entries with the model that each belongs to; a donor's shard after its model."""
    alive = [e for e in mm.current_loaded_models if e.model is not None]
    alive.sort(key=lambda entry: isinstance(entry.model.model, DonorShard))
    owned = [(entry, keep.owner_of(entry.model.model)) for entry in alive]
    return [(entry, owner) for entry, owner in owned if owner is not None]


def _chosen(what: str, model: Any) -> list[tuple[Any, Any]]:
    if what == THIS:
        return [row for row in _entries() if row[1] is model]
    if what == OTHERS:
        return [row for row in _entries() if row[1] is not model]
    return _entries()


def _in_use() -> dict[str, int]:
    """Bytes in use on each accelerator of this process, by whomever, as the device itself counts."""
    infos = (device_table.device_info(name) for name in device_table.devices_in_use())
    return {info.device: info.used for info in infos if info.used is not None}


def _settle() -> None:
    gc.collect()
    mm.soft_empty_cache()
    caches.clear_caches(collect=False)  # the core's function clears the current device only


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
            if any(owner not in left for _, owner in _chosen(what, model)):
                self._tokens[node] = self._tokens.get(node, 0) + 1
        return self._tokens.get(node, 0)

    def prompt_ended(self) -> None:
        """Remember what is loaded now, for the nodes of the prompt that has ended."""
        for node in self._asked:
            self._left[node] = weakref.WeakSet(owner for _, owner in _entries())
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
