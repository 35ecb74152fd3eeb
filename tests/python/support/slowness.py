# SPDX-License-Identifier: Apache-2.0
"""Limits of time on a machine that nobody knows: by how much slower it runs Python than the one they were written on."""

from __future__ import annotations

import time

# Of one of the 2.6 GHz (AMD EPYC 9004) on which docs/benchmarks.md was measured, with CPython 3.11.
_SECONDS = 2.1e-3


def slowness() -> float:
    """Return how many times longer a loop of Python takes here; 1 where it takes less.

    In processor time and the least of several: what else the machine does does not count, a slower clock does.
    """
    return max(1.0, min(_loop() for _ in range(10)) / _SECONDS)


def _loop() -> float:
    begin = time.thread_time()
    table = {}
    for i in range(20_000):
        table[str(i % 50)] = (i, len(table))
    return time.thread_time() - begin
