# SPDX-License-Identifier: Apache-2.0
"""`distorch stats`: peak, average, median and gaps of memory logs, a device. Needs neither torch nor a GPU."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys

_EPILOG = """\
Every form that `distorch monitor` writes is read, and the forms may be mixed:
  12:34:56,Used=8123MB,Free=16453MB
  12:34:56,cuda:1,Used=8123MB,Free=16453MB
  CSV with a line of names first, and JSON lines
--rotated reads FILE.5 … FILE.1 before FILE, as `distorch monitor` rotates them.

Exit status: 0; 1 where there is no sample; 2 where a log cannot be read.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `distorch stats`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    parser.add_argument("logs", nargs="+", metavar="LOG", help='a log; "-" is standard input')
    parser.add_argument(
        "--rotated", action="store_true", help="also the parts that were rotated away, oldest first"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object, sizes in MB")


def run(args: argparse.Namespace) -> int:
    """Print the statistics."""
    from distorch.tools.stats import read_logs

    found = read_logs(
        [part for log in args.logs for part in (_parts(log) if args.rotated else [log])]
    )
    for message in found.unreadable:
        sys.stderr.write(f"distorch stats: {message}\n")
    if args.json:
        sys.stdout.write(json.dumps(found.as_json(), indent=2) + "\n")
    elif found.lines or not found.unreadable:
        sys.stdout.write(found.text())
    if found.unreadable:
        return 2
    return 0 if found.devices else 1


def _parts(log: str) -> list[str]:
    """Return LOG.N … LOG.1, LOG: those that are there, and LOG in any case."""
    folder, name = os.path.split(log)
    numbers = []
    with contextlib.suppress(OSError):
        for entry in os.listdir(folder or "."):  # noqa: PTH208 (names, not paths)
            number = entry.removeprefix(name + ".")
            if entry != number and number.isdecimal():
                numbers.append(int(number))
    return [*(f"{log}.{n}" for n in sorted(numbers, reverse=True)), log]
