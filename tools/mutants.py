#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Mutation testing of the C++ that decides: changes one thing in a copy of it, and sees whether a test fails.

    tools/mutants.py [GROUP...] [--each 60] [--seed 1] [--again]

The copy lies in build/mutants, without torch and not optimised. Of each group of files as many mutants are drawn as asked,
always the same ones for one seed, and compiled into it together: each condition, statement or first value that has some
is there once as it is and once for each of them, and DISTORCH_MUTANT says which one acts. So the copy is compiled once,
and a mutant costs no more than the tests. Those that do not compile are left out. A mutant is killed when a test of its
group fails, is ended by a signal or takes more than its time. What survives must stand in docs/reliability.md with its
reason. Exit status 1: fewer than 90 % are killed, or a survivor is not on that page.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cpp_mutants import Mutant, mutants, spans, with_mutants

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "build" / "mutants"
TREE, BUILD = WORK / "tree", WORK / "tree" / "build"
PAGE = ROOT / "docs" / "reliability.md"
LEAST = 0.9
MEMORY = 4 << 30  # bytes of one test binary: a mutant may ask for all there is
# Fewer cases than usual, where a test draws them: one mutant after the other has to pass through.
FEWER = {"DISTORCH_SCHEDULES": "200", "DISTORCH_STRINGS": "20000"}


@dataclass(frozen=True)
class Group:
    """Files that belong together, and the test binaries that are about them, the quickest first."""

    files: tuple[str, ...]
    tests: tuple[str, ...]


GROUPS = {
    "parser": Group(
        (
            "allocation/parser.cc",
            "allocation/parser_amounts.cc",
            "allocation/parser_devices.cc",
            "allocation/scanner.cc",
        ),
        (
            "allocation/parser_test",
            "allocation/spec_test",
            "allocation/printer_test",
            "allocation/parser_differential_test",
        ),
    ),
    "planner": Group(
        (
            "allocation/planner.cc",
            "allocation/planner_layout.cc",
            "allocation/planner_slots.cc",
            "allocation/layout_contiguous.cc",
            "allocation/layout_loose.cc",
            "allocation/layout_spread.cc",
            "allocation/repack.cc",
            "allocation/share_forms.cc",
            "allocation/shares.cc",
            "allocation/slots.cc",
            "allocation/units.cc",
        ),
        ("allocation/planner_test", "allocation/report_test", "allocation/planner_property_test"),
    ),
    "scheduler": Group(
        ("distorch/execution/stream_scheduler.cc",),
        (
            "distorch/execution/stream_scheduler_test",
            "distorch/execution/byte_streamer_test",
            "distorch/execution/streaming_time_test",
        ),
    ),
    "placement": Group(
        (
            "distorch/placement/placement.cc",
            "distorch/placement/placement_state.cc",
            "distorch/placement/slab_layout.cc",
            "distorch/placement/staging.cc",
        ),
        ("distorch/placement/slab_layout_test", "distorch/placement/placement_test"),
    ),
    "ejecting": Group(
        (
            "distorch/unload/cache_clearer.cc",
            "distorch/unload/managed_models.cc",
            "distorch/unload/unload_report.cc",
        ),
        (
            "distorch/unload/unload_report_test",
            "distorch/unload/cache_clearer_test",
            "distorch/unload/managed_models_test",
        ),
    ),
}


def prepare(tests: list[str], drawn: dict[int, Mutant]) -> dict[int, Mutant]:
    """Copy the sources with these mutants in them and build the tests; returns those that compile."""
    TREE.mkdir(parents=True, exist_ok=True)
    names = ["CMakeLists.txt", "pyproject.toml", "cmake", "allocation", "distorch", "tests"]
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *names],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    wanted = [n for n in listed if not n.startswith("tests/python") and (ROOT / n).is_file()]
    drawn = {n: m for n, m in drawn.items() if _rows(m)}
    while True:
        for name in wanted:
            data = (ROOT / name).read_bytes()
            inside = {n: m for n, m in drawn.items() if m.file == name}
            if inside:
                data = with_mutants(data.decode(), inside).encode()
            target = TREE / name
            if not target.is_file() or target.read_bytes() != data:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(data)
        options = ["WITH_TORCH", "BUILD_SIM", "BUILD_EXAMPLES", "INSTALL"]
        subprocess.run(
            ["cmake", "-S", TREE, "-B", BUILD, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=None", "-DCMAKE_CXX_FLAGS=-O0 -w",
             "-DDISTORCH_BUILD_TESTS=ON", *(f"-DDISTORCH_{option}=OFF" for option in options)],
            check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        output = build(tests)
        if not output:
            return drawn
        wrong = set(re.findall(r"([\w/]+\.cc):(\d+):\d+: error", output))
        places = {(file.lstrip("/"), int(line)) for file, line in wrong}
        left = {n: m for n, m in drawn.items() if not places & {(m.file, row) for row in _rows(m)}}
        if len(left) == len(drawn):
            raise SystemExit(output[-4000:])
        drawn = left


def _rows(mutant: Mutant) -> range:
    """Return the rows of what stands there several times for this mutant; none for one that cannot be made."""
    text = (ROOT / mutant.file).read_text()
    for begin, end, _ in spans(text):
        if begin <= mutant.begin and mutant.end <= end:
            return range(text.count("\n", 0, begin) + 1, text.count("\n", 0, end) + 2)
    return range(0)


def build(tests: list[str]) -> str:
    """Build test binaries; returns the compiler's words when they do not compile, else ""."""
    names = [Path(test).name for test in tests]
    command = ["cmake", "--build", BUILD, "--parallel", "1", "--target", *names, "--", "-k", "0"]
    done = subprocess.run(command, capture_output=True, text=True)
    return "" if done.returncode == 0 else done.stdout + done.stderr


def killed_by(number: int, tests: tuple[str, ...], limits: dict[str, float]) -> str:
    """Run tests with a mutant until one fails; return its name, or ""."""
    for test in tests:
        try:
            done = subprocess.run(
                [BUILD / "tests" / test, "--gtest_fail_fast", "--gtest_brief=1"],
                capture_output=True,
                timeout=limits[test],
                env=os.environ | FEWER | {"DISTORCH_MUTANT": str(number)},
                preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY)),
            )
        except subprocess.TimeoutExpired:
            return f"{Path(test).name}: took too long"
        if done.returncode:
            return Path(test).name
    return ""


def limits_of(tests: tuple[str, ...]) -> dict[str, float]:
    """Return the seconds that each test may take: many times what it takes as it is."""
    limits = {}
    for test in tests:
        begin = time.monotonic()
        if killed_by(0, (test,), {test: 300}):
            raise SystemExit(f"{test} fails on the sources as they are")
        limits[test] = 10 + 5 * (time.monotonic() - begin)
    return limits


def draw(names: list[str], each: int, seed: int) -> dict[int, Mutant]:
    """Return the mutants of these groups by their numbers."""
    found: list[Mutant] = []
    for name in names:
        of_group = [
            m for file in GROUPS[name].files for m in mutants(file, (ROOT / file).read_text())
        ]
        random.Random(f"{name} {seed}").shuffle(of_group)
        found += of_group[:each]
    return dict(enumerate(found, 1))


def examine(
    name: str, drawn: dict[int, Mutant], known: dict[str, dict[str, str]]
) -> Iterator[dict[str, str]]:
    """Try the mutants of one group, but for those known to be killed; yields a row for each."""
    group = GROUPS[name]
    limits: dict[str, float] = {}
    for number, mutant in drawn.items():
        if mutant.file not in group.files:
            continue
        if known.get(mutant.name, {}).get("killed"):
            yield known[mutant.name]
            continue
        limits = limits or limits_of(group.tests)
        begin = time.monotonic()
        by = killed_by(number, group.tests, limits)
        seconds = time.monotonic() - begin
        print(f"{by or 'SURVIVED':42} {seconds:5.1f} s  {mutant.name}", flush=True)
        yield {"group": name, "name": mutant.name, "what": mutant.what, "killed": by}


def told(rows: list[dict[str, str]]) -> tuple[str, bool]:
    """Return the figures as text, and whether they are as they should be."""
    page = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    survivors = [row["name"] for row in rows if not row["killed"]]
    unlisted = [name for name in survivors if name not in page]
    lines = []
    for group in dict.fromkeys(row["group"] for row in rows):
        of_group = [row for row in rows if row["group"] == group]
        killed = sum(bool(row["killed"]) for row in of_group)
        lines.append(f"{group:10} {len(of_group):4} mutants, {killed:4} killed")
    share = 1 - len(survivors) / max(1, len(rows))
    lines.append(
        f"all        {len(rows):4} mutants, {len(rows) - len(survivors):4} killed, {share:.1%}"
    )
    lines += [f"not in {PAGE.name}: {name}" for name in unlisted]
    return "\n".join(lines), bool(rows) and share >= LEAST and not unlisted


def main() -> int:
    """Run it; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("groups", nargs="*", help=f"of {', '.join(GROUPS)}; all when none is given")
    parser.add_argument("--each", type=int, default=60, help="mutants of each group")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--again", action="store_true", help="only those that survived, or were not reached"
    )
    given = parser.parse_args()
    if unknown := set(given.groups) - set(GROUPS):
        parser.error(f"no such group: {', '.join(sorted(unknown))}")
    wanted = given.groups or list(GROUPS)
    tests = [test for name in wanted for test in GROUPS[name].tests]
    drawn = prepare(tests, draw(wanted, given.each, given.seed))
    kept = WORK / "rows.json"
    known = json.loads(kept.read_text()) if given.again and kept.exists() else []
    by_name = {row["name"]: row for row in known}
    rows: list[dict[str, str]] = []
    for name in wanted:
        for row in examine(name, drawn, by_name):
            rows.append(row)
            kept.write_text(
                json.dumps(
                    [*rows, *(r for n, r in by_name.items() if n not in {x["name"] for x in rows})]
                )
            )
    text, good = told(rows)
    print(text)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
