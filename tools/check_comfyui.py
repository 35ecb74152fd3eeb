# SPDX-License-Identifier: Apache-2.0
"""check_comfyui.py PATH…: whether each ComfyUI has what the pack relies on: names, signatures, what functions use.

Reads the sources; imports nothing of ComfyUI, and needs neither torch nor a build. Exit status 1 where anything differs:
each line names what differs and what does not work then.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bindings"))

from distorch.tools.comfyui import SEAMS, Source, problems_of


def main() -> int:
    """Run the check; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH")
    failed = False
    for path in parser.parse_args().paths:
        tree = Source(path)
        if not tree.has("comfy.model_management"):
            sys.stdout.write(f"{path}: holds no ComfyUI\n")
            failed = True
            continue
        found = problems_of(tree)
        needs = sum(len(seam.needs) for seam in SEAMS.values())
        sys.stdout.write(
            f"{path}: {needs - len(found)} of {needs} needs of {len(SEAMS)} seams are met\n"
        )
        sys.stdout.write("".join(f"  {problem}\n" for problem in found))
        failed = failed or bool(found)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
