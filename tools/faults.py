# SPDX-License-Identifier: Apache-2.0
"""`make faults`: lets every call of every operation fail in turn, and prints what came of it.

faults.py [STEP [OPERATION...]]: only each STEP-th call; only these operations. Fails when a fault was not handled, left
something or changed a model.
"""

from __future__ import annotations

import gc
import logging
import pathlib
import sys
import warnings

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "tests/python/support"))

import every_fault as faults

SHOWN = 40


def main() -> int:
    """Run it; returns the exit status."""
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)  # it says what is wrong, some thousand times
    step = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    names = sys.argv[2:]
    gc.freeze()  # what was imported stays: the collections after each fault need not look through it
    if faults.system() is None:
        sys.stdout.write("files and threads do not fail: os_faults is not loaded (LD_PRELOAD)\n")
    chosen = [op for op in faults.OPERATIONS if not names or op.name in names]
    results = [faults.every(op, kind, step) for op in chosen for kind in faults.kinds_of(op)]
    sys.stdout.write(faults.table(results) + "\n")
    wrong = [line for result in results for line in result.wrong]
    sys.stdout.write("".join(f"WRONG {line}\n" for line in wrong[:SHOWN]))
    if len(wrong) > SHOWN:
        sys.stdout.write(f"and {len(wrong) - SHOWN} more\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
