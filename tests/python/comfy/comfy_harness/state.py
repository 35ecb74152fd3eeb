# SPDX-License-Identifier: Apache-2.0
"""Questions to a running server about memory, copies and placements."""

from __future__ import annotations

import dataclasses
from typing import Any

from .server import ComfyServer

# While the worker collects after a prompt, `gc.collect()` of another thread does nothing, and cycles stay.
_COLLECT = """
def _collect():
    import gc, threading, time
    me, done = threading.get_ident(), []
    def _note(phase, info):
        if phase == "stop" and info["generation"] == 2 and threading.get_ident() == me:
            done.append(info)
    gc.callbacks.append(_note)
    try:
        gc.collect()
        while not done:
            time.sleep(0.01)
            gc.collect()
    finally:
        gc.callbacks.remove(_note)
_collect()
"""

_STATE = """
import os, psutil
import comfy.model_management as mm
import distorch.memory.placements
import distorch_sim
_sims = [f"sim:{i}" for i in range(torch.sim.device_count())]
_all = ["cpu", *_sims]
result = {
    "allocated": {d: torch.sim.memory_allocated(i) for i, d in enumerate(_sims)},
    "copied": {f"{a}>{b}": distorch_sim.copied(a, b) for a in _all for b in _all if a != b},
    "loaded": [
        [type(m.model).__name__, type(m.model.model).__name__, str(m.device), m.model.loaded_size()]
        for m in mm.current_loaded_models if m.model is not None
    ],
    "placements": [
        {"name": p.name, "state": p.state, "bytes": dict(p.bytes_per_device), "blocks": dict(p.blocks),
         "patched": p.patched, "spilled": p.spilled, "reasons": dict(p.reasons),
         "streaming": p.streaming, "streamed_bytes": p.streamed_bytes, "migrated": dict(p.migrated),
         "compute_step_s": p.compute_step_s}
        for p in distorch.memory.placements.placements()
    ],
    "rss": psutil.Process(os.getpid()).memory_info().rss,
}
"""


@dataclasses.dataclass
class State:
    """What a server holds: bytes of each device, counted copies, the core's list, placements."""

    allocated: dict[str, int]
    copied: dict[str, int]
    loaded: list[list[Any]]
    placements: list[dict[str, Any]]
    rss: int

    def placed(self, name: str) -> dict[str, Any]:
        """The one placed model of this class."""
        (found,) = [p for p in self.placements if p["name"] == name]
        return found


def state(comfy: ComfyServer) -> State:
    """Asks after a garbage collection of its own."""
    return State(**comfy.evaluate(_COLLECT + _STATE))


def reset_counters(comfy: ComfyServer) -> None:
    """Copies are counted from now on."""
    comfy.evaluate("import distorch_sim; distorch_sim.reset_counters()")


_COUNT_READS = """
import comfy.utils
if not hasattr(comfy.utils, "_counted_reads"):
    comfy.utils._counted_reads = []
    _load = comfy.utils.load_torch_file
    def _counting(path, *args, **kwargs):
        comfy.utils._counted_reads.append(str(path).replace("\\\\", "/"))
        return _load(path, *args, **kwargs)
    comfy.utils.load_torch_file = _counting
comfy.utils._counted_reads.clear()
"""


def count_reads(comfy: ComfyServer) -> None:
    """Files of weights that are read are noted from now on."""
    comfy.evaluate(_COUNT_READS)


def reads(comfy: ComfyServer) -> list[str]:
    """Their paths since `count_reads`."""
    return list(comfy.evaluate("result = comfy.utils._counted_reads"))
