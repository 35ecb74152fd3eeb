# SPDX-License-Identifier: Apache-2.0
"""Makes the page of a run: Markdown that can be pasted into docs/benchmarks.md.

page.py RESULTS.json    # prints it
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "bench/gpu"))

import copies as copy_tables  # noqa: E402
import report  # noqa: E402


def page(results: dict[str, Any]) -> str:
    """Return the page, as far as the run has come."""
    by_name = {row["step"]: row for row in results["steps"]}
    shown = [
        *_head(results, by_name),
        *_steps(results["steps"]),
        *_goals(by_name),
        *_bench(by_name),
    ]
    shown += [*_copies(by_name), *_probes(by_name)]
    return "\n".join(shown) + "\n"


def _results(by_name: dict[str, Any], step: str) -> Any:
    return by_name.get(step, {}).get("results") or {}


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    head, *others = rows
    lines = [head, ["---"] * len(head), *others]
    return [
        "| " + " | ".join(str(cell).replace("|", "/") for cell in line) + " |" for line in lines
    ]


def _head(results: dict[str, Any], by_name: dict[str, Any]) -> Iterable[str]:
    versions = _results(by_name, "first").get("versions", {})
    about = ", ".join(f"{key} {value}" for key, value in versions.items() if key != "device")
    device = versions.get("device", "no device")
    yield f"## {'Dry run, no figures' if results['dry_run'] else 'Measured'}: {device}, {results['date']}"
    yield ""
    yield f"`tools/gpu_check.sh`, {results['seconds']:.0f} s. {about}."
    yield ""


def _steps(steps: Sequence[dict[str, Any]]) -> list[str]:
    rows = [["step", "came out", "seconds", "what it said"]]
    for step in steps:
        found = step.get("results")
        said = found.get("said", "") if isinstance(found, dict) else ""
        rows.append([step["step"], step["status"], f"{step['seconds']:.1f}", "; ".join(filter(None, [said, step.get("why", "")]))])  # fmt: skip
    return [*_table(rows), ""]


def _goals(by_name: dict[str, Any]) -> list[str]:
    rows = _results(by_name, "bench").get("rows", [])
    seconds = [row for row in rows if row["unit"] == "s"]
    host = _results(by_name, "host time").get("microseconds_a_group")
    table = [["goal", "measured"]]
    fractions = [row["fraction_of_bound"] for row in seconds if row["fraction_of_bound"]]
    ratios = [r for row in seconds for r in row["ratio"].values() if r]
    if fractions:
        table.append(["T at most 1.05 of max(C, B / W)", f"{1 / min(fractions):.3f} at worst"])
        linked = [row["link_seconds"] / row["values"]["streamed"] for row in seconds if row["link_seconds"] > row["compute_seconds"] and "streamed" in row["values"]]  # fmt: skip
        if linked:
            table.append(["0.95 of the measured copy peak, where the link is the bound", f"{min(linked):.3f} at worst"])  # fmt: skip
    if ratios:
        table.append(["faster than each rival", f"{min(ratios):.2f} to {max(ratios):.2f} times"])
    if host is not None:
        table.append(["host time of a group at most 25 µs, CUDA's own calls included", f"{host:.1f} µs"])  # fmt: skip
    return [*_table(table), ""] if len(table) > 1 else []


def _bench(by_name: dict[str, Any]) -> list[str]:
    found = _results(by_name, "bench")
    if not found.get("rows"):
        return []
    lines = ["T, C and B / W in seconds a step, or bytes in the dry run; a rival's column is its time by ours.", ""]  # fmt: skip
    lines += [*_table(report.cells(found["rows"])), ""]
    for row in found["rows"]:
        where = f"{row['size']}, {row['tokens']} tokens, {row['share']:.0%} away"
        lines += [f"- {where}: {way}: {problem}" for way, problem in row["problems"].items()]
        lines += [f"- {where}: {note}" for note in row["notes"]]
    lines += [f"- not done: {case}" for case in found["not_done"]]
    return [*lines, ""]


def _copies(by_name: dict[str, Any]) -> list[str]:
    rows = _results(by_name, "copies")
    if not isinstance(rows, list) or not rows:
        return []
    return ["```", *copy_tables.copies_table(rows), "```", ""]


def _probes(by_name: dict[str, Any]) -> list[str]:
    rows = [["asked", "answered"]]
    for probe, answers in _results(by_name, "probes").items():
        if isinstance(answers, dict):
            rows += [[f"{probe}: {key}", str(value)] for key, value in answers.items()]
    return [*_table(rows), ""] if len(rows) > 1 else []


if __name__ == "__main__":
    print(page(json.loads(Path(sys.argv[1]).read_text())), end="")
