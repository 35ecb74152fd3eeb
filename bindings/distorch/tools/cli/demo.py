# SPDX-License-Identifier: Apache-2.0
"""`distorch demo`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "--picture",
        type=Path,
        default=Path("placement.svg"),
        help="where to write the picture of the placement",
    )


def run(args: argparse.Namespace) -> int:
    """Run the demo; 0 when every check held, 1 otherwise."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from distorch.tools.demo import Demo, DemoError

    def say(text: str) -> None:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()

    try:
        Demo(say, args.picture).run()
    except (DemoError, OSError) as error:
        sys.stderr.write(f"distorch demo: {error}\n")
        return 1
    return 0
