# SPDX-License-Identifier: Apache-2.0
"""Runs the steps of tools/gpu_check.sh one behind the other and keeps what each has shown.

check.py --out DIR [--dry-run]. Few files, because not everybody who lends a machine lets many come back: DIR/results.json
(all there is to know, anew after each step), DIR/log.txt, DIR/results.svg, DIR/page.md.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import page
import steps
from junit import counts

# All steps together, in seconds: whoever lends a machine for ten minutes takes it back then.
WHOLE = 540.0
# On a simulated device nothing is as fast as on a GPU; nobody waits for the machine.
DRY_RUN_FACTOR = 4.0
# Kept for what comes behind the last step.
RESERVE = 5.0


def run_step(
    step: steps.Step, out: Path, left: float, factor: float = 1.0, copies: Path | None = None
) -> dict[str, Any]:
    """Run one step; returns what is known of it.

    Args:
        step: which.
        out: the folder of the run.
        left: seconds that are left in all.
        factor: of the step's own limit.
        copies: where the rows of the copies are kept for the bench.
    """
    if step.absent:
        return {"step": step.name, "status": "not run", "seconds": 0.0, "why": step.absent}
    limit = min(step.limit * factor, left - RESERVE)
    if limit <= 1:
        return {"step": step.name, "status": "not run", "seconds": 0.0, "why": "no time was left"}
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        results = Path(temporary) / "results.json"
        copied = copies if copies is not None and copies.exists() else steps.COPIES
        places = {
            "{json}": str(results),
            "{out}": str(out),
            "{folder}": temporary,
            "{limit}": f"{max(1.0, limit - 8):.0f}",
            "{copies}": str(copied),
        }
        command = list(step.command)
        for name, place in places.items():
            command = [part.replace(name, place) for part in command]
        output, code = _output(command, steps.environment(step), limit, temporary)
        row: dict[str, Any] = {"step": step.name, "status": "ok" if code == 0 else "failed"}
        if code is None:
            row.update(status="cut off", why=f"after {limit:.0f} s")
        elif code:
            lines = output.strip().splitlines() or [f"exit status {code}, no output"]
            row["why"] = lines[-1][:300]
        row["seconds"] = round(time.monotonic() - begin, 1)
        row["exit_status"] = code
        if results.exists() and results.stat().st_size:
            row["results"] = _read(results)
            if step.name == "copies" and code == 0 and copies is not None:
                copies.write_text(results.read_text())
    with (out / "log.txt").open("a") as log:
        log.write(f"== {step.name}: {' '.join(command)}\n{output}\n")
    return row


def _output(
    command: list[str], environment: dict[str, str], limit: float, folder: str
) -> tuple[str, int | None]:
    """Return a command's output and its exit status, None where it was ended after `limit` seconds."""
    with (
        tempfile.TemporaryFile("w+", errors="replace") as stream,
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=folder,
            start_new_session=True,
        ) as process,
    ):
        code: int | None
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        if code is None:
            os.killpg(process.pid, signal.SIGKILL)  # with all that it has started
            process.wait()
        stream.seek(0)
        return stream.read(), code


def _read(path: Path) -> Any:
    text = path.read_text()
    if text.lstrip().startswith("<"):
        return counts(text)
    try:
        return json.loads(text)
    except ValueError:  # a JSON object a line, the last one cut off perhaps
        rows = []
        for line in text.splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                break
        return rows


def told(row: dict[str, Any]) -> str:
    """Return the line that is printed for a step."""
    detail = row.get("why", "")
    results = row.get("results")
    if isinstance(results, dict) and "said" in results:
        detail = f"{results['said']}{'; ' + detail if detail else ''}"
    return f"{row['status']:<8}{row['step']:<20}{row['seconds']:>6.1f} s  {detail}".rstrip()


def main() -> int:
    """Run everything; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--dry-run", action="store_true")
    args = parser.parse_args()
    begin = time.monotonic()
    for name in ("results.json", "log.txt", "results.svg", "page.md"):
        (args.out / name).unlink(missing_ok=True)
    results: dict[str, Any] = {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "dry_run": args.dry_run,
        "steps": [],
    }
    with tempfile.TemporaryDirectory() as shared:
        for step in steps.steps(args.dry_run):
            left = WHOLE - (time.monotonic() - begin)
            factor = DRY_RUN_FACTOR if args.dry_run else 1.0
            row = run_step(step, args.out, left, factor, Path(shared) / "copies.json")
            results["steps"].append(row)
            results["seconds"] = round(time.monotonic() - begin, 1)
            print(told(row), flush=True)
            fresh = args.out / "results.json.new"
            fresh.write_text(json.dumps(results, indent=1) + "\n")
            fresh.replace(args.out / "results.json")
            (args.out / "page.md").write_text(page.page(results))
    bad = [row for row in results["steps"] if row["status"] in ("failed", "cut off")]
    # What a GPU has to show is not shown by what was not run there.
    if not args.dry_run:
        bad += [row for row in results["steps"] if row["status"] == "not run"]
    for row in bad:
        print(f"{row['status']}: {row['step']} ({row.get('why', '')}); see {args.out / 'log.txt'}")
    print(f"{results['seconds']:.0f} s; written: {args.out / 'results.json'}, page.md")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
