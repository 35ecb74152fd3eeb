# SPDX-License-Identifier: Apache-2.0
"""Says what a kit was made from, so that an old one is not taken for what the sources say now.

manifest.py --write FILE --runner 3.12   # by tools/gpu_kit.sh
manifest.py --check FILE                 # exit status 1, and why, when the compiled sources have changed since
manifest.py --runner-of FILE             # the Python of the dry run
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COMPILED = ("allocation", "distorch", "bindings", "bench/gpu", "cmake")
KINDS = {".h", ".cc", ".cu", ".cmake", ".txt"}


def sources_hash(root: Path = ROOT) -> str:
    """Return a hash of all that the compiled parts are made from; needs no git."""
    found = hashlib.sha256()
    files = [
        root / "CMakeLists.txt",
        *(p for folder in COMPILED for p in (root / folder).rglob("*") if p.suffix in KINDS),
    ]
    for path in sorted(files):
        found.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()


def main() -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", type=Path)
    parser.add_argument("--runner", default="3.12")
    parser.add_argument("--check", type=Path)
    parser.add_argument("--runner-of", type=Path)
    args = parser.parse_args()
    if args.write:
        contents = {"sources": sources_hash(), "dry_run_python": args.runner}
        args.write.write_text(json.dumps(contents, indent=1) + "\n")
    if args.runner_of:
        print(json.loads(args.runner_of.read_text())["dry_run_python"])
    if args.check:
        if not args.check.exists():
            print(f"{args.check} is not there: run `make gpu-kit` first")
            return 1
        if json.loads(args.check.read_text())["sources"] != sources_hash():
            print("the compiled sources have changed since the kit was made")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
