# SPDX-License-Identifier: Apache-2.0
"""`distorch stats`: peak, average, median and gaps of memory logs, a device. Needs neither torch nor a GPU."""

from __future__ import annotations

import argparse
import json
import sys

_EPILOG = """\
Every form that `distorch monitor` writes is read, and the forms may be mixed:
  12:34:56,Used=8123MB,Free=16453MB
  12:34:56,cuda:1,Used=8123MB,Free=16453MB
  CSV with a line of names first, and JSON lines
Give a log that was rotated oldest part first: distorch stats vram.log.2 vram.log.1 vram.log

Exit status: 0; 1 where there is no sample; 2 where a log cannot be read.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `distorch stats`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    parser.add_argument("logs", nargs="+", metavar="LOG", help='a log; "-" is standard input')
    parser.add_argument("--json", action="store_true", help="one JSON object, sizes in MB")


def run(args: argparse.Namespace) -> int:
    """Print the statistics."""
    from distorch.stats import read_logs

    found = read_logs(args.logs)
    for message in found.unreadable:
        sys.stderr.write(f"distorch stats: {message}\n")
    if args.json:
        sys.stdout.write(json.dumps(found.as_json(), indent=2) + "\n")
    elif found.lines or not found.unreadable:
        sys.stdout.write(found.text())
    if found.unreadable:
        return 2
    return 0 if found.devices else 1
