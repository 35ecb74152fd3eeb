# SPDX-License-Identifier: Apache-2.0
"""Whether ComfyUI records the allocations of this thread, to give their addresses out again in the next step.

Its compiler (with comfy-aimdo 0.5.5 and later) does so for each block of some models, also of placed ones. It goes by the
stream's handle alone, and every device's default stream is 0: a tensor of a donor would get memory of the compute
device. Read only: its pause is a flag and no counter, so that to pause it would end somebody else's pause.
"""

from __future__ import annotations

import sys
import threading

# As its versions call them.
_TABLES = ("MALLOC_GRAPHS", "ACTIVE_MALLOC_GRAPHS")


def recording() -> bool:
    """Whether a graph is active in this thread."""
    module = sys.modules.get("comfy.model_prefetch")
    tables = (getattr(module, name, None) for name in _TABLES)
    return any(table and table.get(threading.get_ident()) is not None for table in tables)
