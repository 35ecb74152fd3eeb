# SPDX-License-Identifier: Apache-2.0
"""The host's time of a streamed group that computes nothing, the device's own calls included (bench/engine_bench.py)."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))

import engine_bench


def main() -> int:
    """Run the step; returns the exit status."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", required=True)
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    dry_run = args.device.startswith("sim")
    hooks, whole, bare = engine_bench.hook_overhead(5 if dry_run else 200, args.device)
    results = {"without_copies": hooks, "microseconds_a_group": whole, "bare_copy": bare}
    said = f"{whole:.1f} µs a group, of them {bare:.1f} µs for the bare copy"
    results = {"said": "no figure in a dry run"} if dry_run else {"said": said, **results}
    print(results["said"])
    args.json.write_text(json.dumps(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
