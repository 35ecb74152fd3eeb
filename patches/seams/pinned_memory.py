# SPDX-License-Identifier: Apache-2.0
"""Host memory is pinned within ComfyUI's limit, and counted where ComfyUI counts its own.

Reason: the driver has one limit for a process. Two that keep a count each would together pin more than the system can
spare, and Windows refuses more than about half of the memory. Old versions have no such count: the library's own limit
holds there. Nothing is patched: the numbers are read and written where the core keeps them.
"""

from __future__ import annotations

import comfy.model_management as mm

from distorch.run import share_budget


class CoreBudget:
    """ComfyUI's limit and count, in bytes. Used under the GIL, as the core itself does."""

    def limit(self) -> int:
        """What may be pinned at most; 0 where the user or the core's own checks allow none."""
        return max(0, int(mm.MAX_PINNED_MEMORY))

    def used(self) -> int:
        """What the core and this pack have pinned."""
        return int(mm.TOTAL_PINNED_MEMORY)

    def add(self, count: int) -> None:
        """Count ours: more, or less if negative."""
        mm.TOTAL_PINNED_MEMORY = max(0, mm.TOTAL_PINNED_MEMORY + count)


def install() -> None:
    """Share the core's budget where it has one; a second call changes nothing."""
    if hasattr(mm, "MAX_PINNED_MEMORY") and hasattr(mm, "TOTAL_PINNED_MEMORY"):
        share_budget(CoreBudget())


def uninstall() -> None:
    """Pin within the library's own limit, from the next placed model on."""
    share_budget(None)
