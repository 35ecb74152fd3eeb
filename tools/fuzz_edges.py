# SPDX-License-Identifier: Apache-2.0
"""Gives the edges written in Python changed bytes for a while: fuzz_edges.py SECONDS, for each of them.

Prints how many each took; fails at the first that is treated in a way nobody promised, with its number and bytes.
"""

from __future__ import annotations

import logging
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "tests/python/support"))

import edge_inputs as edges

BATCH = 200


def main() -> int:
    """Run it; returns the exit status."""
    logging.disable(logging.CRITICAL)
    seconds, base = float(sys.argv[1]), time.time_ns()
    for edge in edges.EDGES:
        end, count = time.monotonic() + seconds, 0
        while time.monotonic() < end:
            try:
                edges.run(edge, BATCH, base + count)
            except AssertionError as error:
                sys.stdout.write(f"FOUND {error}\n")
                return 1
            count += BATCH
        sys.stdout.write(f"{edge.name}: {count} in {seconds:g} s, nothing found\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
