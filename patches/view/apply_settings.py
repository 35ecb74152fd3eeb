# SPDX-License-Identifier: Apache-2.0
"""Gives what the user chose on the settings page to the modules that it concerns, whenever it changes."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from distorch import memory

from ..ejecting import cleanup, keep
from ..seams import lifecycle
from ..settings import settings

log = logging.getLogger("DisTorch")


def _apply(values: Mapping[str, Any]) -> None:
    """Give the choices to the modules that keep them as their own."""
    for logger in (log, logging.getLogger("distorch")):
        logger.setLevel(values["log_level"])
    cleanup.cpu_threshold = values["cpu_memory_threshold"] / 100
    cleanup.cpu_hysteresis = values["cpu_memory_hysteresis"] / 100
    keep.pressure = values["kept_memory_threshold"] / 100 if values["kept_under_pressure"] else 1.0
    memory.scanner().cache_seconds = values["scan_interval"]


def _note_loaded(request: Any, node: str, _inputs: Any, _outputs: Any) -> None:
    if settings["debug_mode"]:
        cleanup.multigpu_memory_log(request.file, f"loaded by {node}")


def _note_changed(model: Any) -> None:
    if settings["debug_mode"]:
        cleanup.multigpu_memory_log(type(model).__name__, "placed, spilled or unloaded")


_LISTENERS = ((lifecycle.loaded, _note_loaded), (lifecycle.changed, _note_changed))


def install() -> None:
    """Follow the file, and give the choices to whom they concern; a second call does nothing."""
    if _apply not in settings._listeners:
        settings.listen(_apply)
    lifecycle.follow(_LISTENERS)
    settings.start()


def uninstall() -> None:
    """Follow the file no more, with every choice at its default; a second call does nothing."""
    settings.stop()
    settings.reset()
    settings.unlisten(_apply)
    lifecycle.leave(_LISTENERS)
