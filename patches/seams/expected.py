# SPDX-License-Identifier: Apache-2.0
"""Whether the ComfyUI that runs is what each seam expects; looked at once, when it starts.

A seam of which it is not is left alone, with one line in the log, and the rest works: a function is not wrapped; where
placing is concerned, models are loaded by ComfyUI as a whole.
"""

from __future__ import annotations

import logging
import time

from distorch.tools.comfyui import PLACING, Problem, Running, problems_of

log = logging.getLogger("DisTorch")

_found: dict[str, Problem] = {}


def look() -> float:
    """Look at every seam and say what is not as expected; returns the seconds that it took."""
    begin = time.perf_counter()
    _found.clear()
    for problem in problems_of(Running()):
        _found.setdefault(problem.seam.name, problem)
    seconds = time.perf_counter() - begin
    for problem in _found.values():
        log.warning("%s", problem)
    log.debug("ComfyUI was looked at in %.1f ms", seconds * 1000)
    return seconds


def problem_with(seam: str) -> Problem | None:
    """What is not as expected of a seam (`distorch.tools.comfyui.SEAMS`), as far as was looked."""
    return _found.get(seam)


def can_place() -> bool:
    """Whether blocks can be placed here."""
    return PLACING.name not in _found
