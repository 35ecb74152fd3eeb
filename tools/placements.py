# SPDX-License-Identifier: Apache-2.0
"""`make placements`: random placements of small models, against the resident model and the plan.

placements.py [COUNT [SEED]]: COUNT of them (1,000), from SEED (0) on. Fails at the first that differs, and says its seed.
"""

from __future__ import annotations

import collections
import logging
import pathlib
import sys
import warnings

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "tests/python/support"))

import random_placements


def main() -> int:
    """Run it; returns the exit status."""
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    placed: collections.Counter[str] = collections.Counter()
    refused = 0
    while placed.total() < count:
        try:
            case = random_placements.check(seed)
        except Exception as error:
            sys.stdout.write(f"seed {seed}: {type(error).__name__}: {error}\n")
            return 1
        refused += case is None
        if case is not None:
            placed[case.model] += 1
        seed += 1
    models = ", ".join(f"{name} {n}" for name, n in sorted(placed.items()))
    sys.stdout.write(
        f"{placed.total()} placements with the resident model's bits and the plan's bytes: {models}\n"
    )
    sys.stdout.write(f"{refused} strings asked for what does not fit, and were told so\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
