# SPDX-License-Identifier: Apache-2.0
"""`make bench`: runs every benchmark there is and prints one table.

C++: every `build/release/bench/*_benchmark` (Google Benchmark). Python: every `bench/*_bench.py`, whose
`main(moment: bool) -> list[Row]` returns rows; its table `GOALS`, if it has one, says of some of them by name how much
the figure may be at most. A benchmark that reports an error or misses a goal, and a folder without any benchmark, end the
run with status 1. `--moment` runs each just long enough to show that it works: its numbers mean nothing, the table says
so, and no goal is looked at.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BINARIES = ROOT / "build/release/bench"

# name of what was measured, its figure, the unit, and what it stands beside ("" when it stands alone)
Row = tuple[str, float, str, str]


def _context() -> dict[str, str]:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    model = ""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [x for x in cpuinfo.read_text().splitlines() if x.startswith("model name")]
        model = names[0].split(":", 1)[1].strip() if names else ""
    return {
        "processor": f"{model or platform.processor()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "commit": commit.stdout.strip() or "unknown",
    }


def run_binary(path: Path, moment: bool) -> list[Row]:
    """Run one Google Benchmark binary; raises RuntimeError with its own words when a benchmark fails."""
    command = [str(path), "--benchmark_format=json"]
    if moment:
        command.append("--benchmark_min_time=0.01")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{path.name} exited {done.returncode}: {done.stderr[-2000:]}")
    rows: list[Row] = []
    for entry in json.loads(done.stdout)["benchmarks"]:
        if entry.get("error_occurred"):
            raise RuntimeError(f"{path.name}: {entry['name']}: {entry.get('error_message')}")
        if entry.get("run_type") == "aggregate":
            continue
        rows.append(
            (entry["name"], float(entry["real_time"]), entry["time_unit"], entry.get("label", ""))
        )
    return rows


def run_module(path: Path, moment: bool) -> list[Row]:
    """Run one Python benchmark module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise RuntimeError(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return list(module.main(moment))


def missed(rows: Sequence[Row], goals: Mapping[str, float]) -> list[str]:
    """Return a line for each goal that the rows miss; one whose row is not there is missed as well."""
    found = {name: (figure, unit) for name, figure, unit, _ in rows}
    lines = []
    for name, most in goals.items():
        figure, unit = found.get(name, (None, ""))
        if figure is None:
            lines.append(f"{name}: not measured")
        elif not figure <= most:
            lines.append(f"{name}: {figure:.2f} {unit}, at most {most:g} is the goal")
    return lines


def alone(measure: Callable[[], list[Row]], goals: Mapping[str, float]) -> int:
    """Print the rows of one module that is run by itself, in full; returns the exit status."""
    rows = measure()
    for name, value, unit, beside in rows:
        print(f"{name:54} {value:9.2f} {unit:4} {beside}")
    lines = missed(rows, goals)
    for line in lines:
        print(f"MISSED: {line}")
    return 1 if lines else 0


def main() -> int:
    """Run everything; returns the exit status."""
    parser = argparse.ArgumentParser(description="Run every benchmark and print one table.")
    parser.add_argument(
        "--moment", action="store_true", help="a moment each, to show that they work"
    )
    parser.add_argument("--filter", default="", help="only files whose name contains this")
    parser.add_argument("--json", type=Path, help="write context and rows there")
    args = parser.parse_args()

    jobs = [(p, run_binary) for p in sorted(BINARIES.glob("*_benchmark"))]
    jobs += [(p, run_module) for p in sorted((ROOT / "bench").glob("*_bench.py"))]
    jobs = [job for job in jobs if args.filter in job[0].name]
    if not jobs:
        print(f"no benchmark in {BINARIES} nor in bench/", file=sys.stderr)
        return 1

    context = _context()
    print(", ".join(f"{key} {value}" for key, value in context.items()))
    if args.moment:
        print("a moment each: these numbers show that the benchmarks run, nothing else")
    table: dict[str, list[Row]] = {}
    failed = 0
    for path, run in jobs:
        print(f"\n{path.name}")
        try:
            table[path.name] = run(path, args.moment)
        except Exception as error:
            print(f"  FAILED: {error}")
            failed += 1
            continue
        for name, figure, unit, beside in table[path.name]:
            print(f"  {name:<64} {figure:>14,.3f} {unit:<8} {beside}")
        goals = getattr(sys.modules.get(path.stem), "GOALS", {})
        lines = [] if args.moment else missed(table[path.name], goals)
        for line in lines:
            print(f"  MISSED: {line}")
        failed += len(lines)
    if args.json:
        args.json.write_text(json.dumps({"context": context, "rows": table}, indent=1) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
