# SPDX-License-Identifier: Apache-2.0
"""Shows how far a load has come: in the log, and by the progress bar of the node that runs.

ComfyUI's bar also asks whether the user has interrupted the prompt: a long load can be broken off
between two blocks, with ComfyUI's own exception.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

log = logging.getLogger("DisTorch")

#: Seconds that a load takes without a word, and between two lines in the log.
SILENT = 1.0
#: Name of the attribute that tells our bar from a sampler's.
OURS = "distorch_load"


def shown(
    name: str, blocks: Sequence[Any], clock: Callable[[], float] = time.monotonic
) -> Iterator[Any]:
    """Yields the blocks; a block counts as placed when the next one is asked for.

    Args:
        name: of the model, for the log.
        blocks: what is placed; each has `bytes`.
        clock: seconds; for tests.
    """
    total = sum(block.bytes for block in blocks)
    begin = said = clock()
    done = 0
    bar: Any = None
    for index, block in enumerate(blocks, 1):
        yield block
        done += block.bytes
        now = clock()
        if now - begin < SILENT:
            continue
        bar = bar or _bar(total)
        bar.update_absolute(done)
        if now - said >= SILENT or index == len(blocks):
            said = now
            log.info(
                "%s: block %d of %d is placed, %.0f of %.0f MB",
                name, index, len(blocks), done / 2**20, total / 2**20,
            )  # fmt: skip


def _bar(total: int) -> Any:
    import comfy.utils

    bar = comfy.utils.ProgressBar(max(1, total))
    setattr(bar, OURS, True)
    return bar
