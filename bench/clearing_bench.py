# SPDX-License-Identifier: Apache-2.0
"""What clearing costs after a node when there is nothing to clear, on simulated devices.

What a look at one device costs on CUDA is torch's own `_cuda_memoryStats`: it needs a GPU and is not in these numbers.
"""

from __future__ import annotations

import statistics
import sys
import time

Row = tuple[str, float, str, str]
GOALS = {"clearing: nothing to do, a device": 50.0}


def main(moment: bool = False) -> list[Row]:
    """Return the rows of bench/run.py: three devices in use, none of which has changed."""
    import distorch_sim
    import torch

    from distorch import caches

    distorch_sim.install([64 << 20] * 3)
    held = [torch.empty(1 << 20, dtype=torch.uint8, device=f"sim:{i}") for i in range(3)]
    caches.clear_caches()
    before = torch.sim.empty_cache_calls
    seconds = []
    for _ in range(20 if moment else 2000):
        start = time.perf_counter()
        caches.clear_caches(collect=False, changed=True)
        seconds.append(time.perf_counter() - start)
    if torch.sim.empty_cache_calls != before:
        raise RuntimeError("a device with nothing to clear was cleared")
    del held
    figure = statistics.median(seconds) / 3 * 1e6
    return [("clearing: nothing to do, a device", figure, "us", "soft_empty_cache asks this")]


if __name__ == "__main__":
    from run import alone

    sys.exit(alone(main, GOALS))
