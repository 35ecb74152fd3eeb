# SPDX-License-Identifier: Apache-2.0
"""`distorch doctor`: what was found on this machine and in ComfyUI, what was not, and what to do about it.

Status: "ok"; "absent", for what DisTorch can do without; "note", for what works with a limit; "broken", for what it needs
(the exit status is then 1).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from distorch.tools import doctor


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `distorch doctor`."""
    parser.add_argument("--json", action="store_true", help="one JSON array")
    parser.add_argument(
        "--comfyui",
        type=Path,
        metavar="FOLDER",
        help="ComfyUI's folder (default: COMFYUI_PATH, or found from this folder up)",
    )
    parser.add_argument(
        "--server",
        default="",
        metavar="URL",
        help="ask a running ComfyUI as well, for example http://127.0.0.1:8188",
    )


def run(args: argparse.Namespace) -> int:
    """Print the findings; 1 if something needed is missing or broken, else 0."""
    case = doctor.Case(args.comfyui or doctor.find_comfyui(), args.server)
    findings = doctor.examine(case)
    if args.json:
        sys.stdout.write(json.dumps([dataclasses.asdict(f) for f in findings], indent=2) + "\n")
    else:
        width = max(len(finding.name) for finding in findings)
        for finding in findings:
            mark = finding.status.ljust(len(doctor.BROKEN))
            sys.stdout.write(f"{mark}  {finding.name.ljust(width)}  {finding.found}\n")
            if finding.advice:
                sys.stdout.write(f"{' ' * (len(doctor.BROKEN) + width + 4)}-> {finding.advice}\n")
    return 1 if any(finding.status == doctor.BROKEN for finding in findings) else 0
