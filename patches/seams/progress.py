# SPDX-License-Identifier: Apache-2.0
"""Shows how far a load has come: in the log, and by the progress bar of the node that runs.

ComfyUI's bar also asks whether the user has interrupted the prompt: a long load can be broken off
between two blocks, with ComfyUI's own exception.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

log = logging.getLogger("DisTorch")

#: Seconds that a load takes without a word.
SILENT = 1.0
#: Lines in the log of a long one: at each such part of its bytes.
_PARTS = 4
#: Name of the attribute that tells our bar from a sampler's.
OURS = "distorch_load"


def shown(
    name: str, clock: Callable[[], float] = time.monotonic
) -> Callable[[int, int, int, int], None]:
    """What shows the progress of a load, to be called with blocks done, blocks, bytes done and bytes.

    Args:
        name: of the model, for the log.
        clock: seconds; for tests.
    """
    begin = clock()
    said = 0
    bar: Any = None

    def show(done_blocks: int, blocks: int, done: int, total: int) -> None:
        nonlocal bar, said
        now = clock()
        if now - begin < SILENT:
            return
        bar = bar or _bar(total)
        bar.update_absolute(done)
        part = _PARTS * done // max(1, total)
        if part > said:
            said = part
            log.info(
                "%s: block %d of %d is placed, %.0f of %.0f MB",
                name, done_blocks, blocks, done / 2**20, total / 2**20,
            )  # fmt: skip

    return show


def _bar(total: int) -> Any:
    import comfy.utils

    bar = comfy.utils.ProgressBar(max(1, total))
    setattr(bar, OURS, True)
    return bar
