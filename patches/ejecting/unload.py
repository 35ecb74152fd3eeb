# SPDX-License-Identifier: Apache-2.0
"""`unload_all_models` unloads what was flagged and nothing else; `soft_empty_cache` clears every device in use.

Reason: ComfyUI's "free" unloads everything. With managed models alive, only those whose inner model carries
`_mgpu_unload_distorch_model == True` are unloaded; when none does, not one call goes into the core. Recovery from
running out of memory, `--disable-smart-memory`, and a ComfyUI without a managed model get the core's own function.

After each "free", every model that stayed is checked: the same tensors on the same devices, still on the core's list.
A difference is an error in the log, and is counted in `violations`.
"""

from __future__ import annotations

import dataclasses
import logging
import sys
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import comfy.model_management as mm

from distorch import caches

from ..placing import donors
from ..seams.seam import FunctionSeam
from . import cleanup, keep, managed

if TYPE_CHECKING:
    from distorch._C import UnloadReport

log = logging.getLogger("DisTorch")

#: How many models did not stay as they were through a "free" that should not have touched them.
violations = 0


@dataclasses.dataclass(frozen=True)
class _Look:
    """A model that stays, as it was when models were unloaded."""

    model: weakref.ref[Any]
    name: str
    listed: bool
    held: bool
    tensors: tuple[tuple[str, int, str], ...]


_watched: list[_Look] = []

_HOW_TO_LET_GO = "switch keep_loaded off in its loader, use DisTorch Unload with let_go, or let go of it in the DisTorch tab"
_last: dict[str, Any] = {}


def last_free() -> dict[str, Any]:
    """What the last "free", if it was selective, unloaded, what it kept and why, and how to let go of that; then forget it."""
    told = dict(_last)
    _last.clear()
    return told


def _tensors(model: Any) -> tuple[tuple[str, int, str], ...]:
    return tuple((name, id(t), str(t.device)) for name, t in model.named_parameters())


def _listed(model: Any) -> bool:
    return any(e.model is not None and e.model.model is model for e in mm.current_loaded_models)


def _recovering() -> bool:
    """Whether the core calls because memory ran out: the exception is being handled."""
    error = sys.exc_info()[1]
    if error is None:
        return False
    if hasattr(mm, "is_oom"):
        return bool(mm.is_oom(error))
    return isinstance(error, mm.OOM_EXCEPTION)


def _unload_all_models(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    _last.clear()
    if not keep.managed():
        return original(*args, **kwargs)
    if getattr(mm, "DISABLE_SMART_MEMORY", False) or _recovering():
        answer = original(*args, **kwargs)
        _unload_the_rest()
        return answer
    try:
        _unload_flagged()
    except Exception:  # the caller is ComfyUI's worker: it must live, and a "free" must free
        log.exception("the selective unload failed; ComfyUI unloads everything instead")
        return original(*args, **kwargs)
    return None


def _unload_the_rest() -> None:
    """ComfyUI before 0.25 empties its current device only: ours may lie, or have run out, on another."""
    try:
        for entry in list(mm.current_loaded_models):
            if entry.device.type != "cpu":
                donors.unload(entry)
    except Exception:  # the caller is ComfyUI's worker
        log.exception("not every device could be emptied")


def _unload_flagged() -> None:
    looks = [_look(model) for model in keep.managed() if not keep.is_flagged(model)]
    report = managed.unload("flagged", let_go=True)
    _tell(report)
    # Compared after the executor's reset and the garbage collection that follow. In the middle of
    # a prompt, where a node calls this, there are none, and what follows may move a model rightly.
    _watched[:] = [] if cleanup.prompt_runs() else looks


def _look(model: Any) -> _Look:
    name = keep.title(model)
    return _Look(weakref.ref(model), name, _listed(model), keep.is_kept(model), _tensors(model))


def _tell(report: UnloadReport) -> None:
    """Say what a "free" did, what it left and why: in the log, and for the report."""
    gone = [f"{model.name} from {', '.join(model.devices)}" for model in report.unloaded]
    _last.update(unloaded=gone, kept=[_why(m.name, m.kept) for m in report.stay])
    if gone:
        log.info("free: unloaded (keep_loaded is off): %s", ", ".join(gone))
    else:
        log.info("free: no model is flagged, nothing is unloaded")
    for failure in report.failures:
        log.error("free: %s", failure)
    names = ", ".join(sorted(m.name for m in report.stay if m.kept))
    if names:
        log.info("free: %s stay (keep_loaded); to let go of one, %s", names, _HOW_TO_LET_GO)


def _why(name: str, kept: bool) -> dict[str, str]:
    if kept:
        return {"name": name, "why": "keep_loaded is on", "let_go": _HOW_TO_LET_GO}
    why = "only models with keep_loaded off are unloaded"
    return {"name": name, "why": why, "let_go": "use DisTorch Unload"}


def add_details(job: Any) -> None:
    """For `BetweenPrompts.finishing`: the report of a "free" says what it kept and why."""
    if job.kind == "free":
        job.details.update(last_free())


def _soft_empty_cache(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    answer = original(*args, **kwargs)
    if mm.cpu_mode():
        return answer
    try:
        ours = bool(keep.managed())
        if ours:
            caches.clear_caches(collect=False, changed=True)
            check()
        if ours and kwargs.get("force", args[0] if args else False):
            cleanup.trigger_executor_cache_reset("soft_empty_cache(force=True)")
        else:
            cleanup.check_cpu_memory_threshold()
    except Exception:  # as above: clearing a cache must not end the caller
        log.exception("clearing the caches of all devices failed")
    return answer


def check() -> int:
    """Compare the models that stayed with what they were when models were unloaded; returns the differences."""
    global violations
    looks, _watched[:] = list(_watched), []
    found = 0
    for look in looks:
        model = look.model()
        if model is None:
            culprit = "it is gone" if look.held else ""
        elif look.listed and not _listed(model):
            culprit = "it is no longer on ComfyUI's list of loaded models"
        elif _tensors(model) != look.tensors:
            now = {name: rest for name, *rest in _tensors(model)}
            changed = [name for name, *rest in look.tensors if now.get(name) != rest]
            culprit = f"tensors have moved: {', '.join(changed[:3])} ({len(changed)} in all)"
        else:
            culprit = ""
        if culprit:
            found += 1
            log.error("%s was to stay through this free, but %s", look.name, culprit)
    violations += found
    return found


SEAMS = (
    FunctionSeam(mm, "unload_all_models", _unload_all_models, "unload what was flagged"),
    FunctionSeam(mm, "soft_empty_cache", _soft_empty_cache, "clear every device in use"),
)


def install() -> None:
    """Wrap both functions."""
    managed.install()
    for seam in SEAMS:
        seam.install()


def uninstall() -> None:
    """Put the core's functions back."""
    for seam in SEAMS:
        seam.uninstall()
    managed.uninstall()
