# SPDX-License-Identifier: Apache-2.0
"""The command line `distorch`: one module a command, imported only when that command runs.

A command module has `configure(parser)` (adds its arguments), and `run(args) -> int` (the exit status: 0 fine,
1 failed, 2 wrong input).
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from distorch import __version__
from distorch.tools.cli import terminal

# command -> (module, one line of help)
COMMANDS: dict[str, tuple[str, str]] = {
    "demo": (
        "distorch.tools.cli.demo",
        "split a real pretrained model over several devices, run it, eject it",
    ),
    "plan": ("distorch.tools.cli.plan", "show what would go where, without loading anything"),
    "devices": ("distorch.tools.cli.devices", "list the devices with their memory"),
    "monitor": (
        "distorch.tools.cli.monitor",
        "watch memory over a whole run: log, plot, statistics",
    ),
    "links": (
        "distorch.tools.cli.links",
        "measure the links between devices, for you and the planner",
    ),
    "stats": ("distorch.tools.cli.stats", "peak, average, median and gaps of memory logs"),
    "e2e": ("distorch.tools.cli.e2e", "run workflows on a running ComfyUI; does memory come back?"),
    "doctor": (
        "distorch.tools.cli.doctor",
        "say what was found, what was not, and what to do about it",
    ),
}


def _parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="distorch", description="Place the blocks of a model on several devices."
    )
    parser.add_argument("--version", action="version", version=f"distorch {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (module, summary) in COMMANDS.items():
        sub = commands.add_parser(name, help=summary, description=summary)
        if name in argv:  # only the command that runs pays for its imports
            importlib.import_module(module).configure(sub)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    args = _parser(argv).parse_args(argv)
    try:
        status = int(importlib.import_module(COMMANDS[args.command][0]).run(args))
        sys.stdout.flush()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130
    except OSError as error:
        if not terminal.reader_is_gone(error):
            raise
        terminal.turn_away()
        return 0
    return status
