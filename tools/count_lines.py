# SPDX-License-Identifier: Apache-2.0
"""Counts the lines of C++ and Python that parse, plan, place, run, unload and clear, at two revisions.

    python tools/count_lines.py [BEFORE [AFTER]]

BEFORE is the last revision of the first form by default, AFTER what git would commit now. A line counts that holds code:
no blank one, no comment, no docstring. Bindings are C++ and count where they belong. Reading files and devices, telemetry,
tools, nodes, seams and the tab are counted nowhere.
"""

from __future__ import annotations

import fnmatch
import io
import subprocess
import sys
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FIRST_FORM = "07b1948"

# By stage: where its files are, in the first form and in the second. A file belongs to the first pattern that it meets.
STAGES = {
    "parse": """allocation/parse* allocation/scanner.* allocation/units.* allocation/spec.* allocation/printer.*
        allocation/bytes.* allocation/device_id.* bindings/bind_allocation.cc bindings/names.h
        bindings/distorch/allocation.py patches/request.py patches/placing/request.py""",
    "run": """allocation/cost_model.* allocation/mode_choice.* allocation/plan_step.* distorch/execution/* distorch/transfer/*
        distorch/torch_streamer.h bindings/bind_execution.cc bindings/bind_streaming.cc bindings/bind_transfer.cc
        bindings/bind_cost.cc bindings/bind_modes.cc bindings/tensor_swap.h bindings/distorch/engine/* bindings/distorch/run/*
        bindings/distorch/transfer.py bindings/distorch/loans.py bindings/distorch/on_demand.py bindings/distorch/model_inputs.py
        bindings/distorch/nested.py patches/runner.py patches/placing/runner.py""",
    "plan": """allocation/* bindings/bind_plan.cc bindings/distorch/group_costs.py
        bindings/distorch/device_table.py bindings/distorch/model_blocks.py patches/blocks.py patches/placing/blocks.py
        patches/shards.py patches/placing/donors.py patches/preview.py patches/placing/preview.py""",
    "place": """distorch/placement/* distorch/mover/* distorch/torch_module* bindings/bind_placement.cc bindings/ops/*
        bindings/distorch/placing.py bindings/distorch/placed.py bindings/distorch/tables.py bindings/distorch/slabs.py
        bindings/distorch/mover.py bindings/distorch/staging.py bindings/distorch/parts.py bindings/distorch/patching.py
        bindings/distorch/guards.py bindings/distorch/hostmemory.py patches/placed*.py patches/weights.py patches/patcher.py
        patches/adopt.py patches/loading.py patches/checkpoints.py patches/placing/*""",
    "clear": """distorch/unload/cache_clearer.* bindings/distorch/caches.py patches/cleanup.py patches/ejecting/cleanup.py""",
    "unload": """distorch/unload/* bindings/bind_unload.cc bindings/distorch/eject.py patches/keep.py patches/unload*.py
        patches/ejecting/*""",
}


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout


def sources(revision: str) -> dict[str, str]:
    """Return path and text of every source file of a revision; "" is the working tree."""
    listed = _git("ls-tree", "-r", "--name-only", revision) if revision else _git("ls-files", "-co")
    paths = [p for p in listed.splitlines() if p.endswith((".cc", ".h", ".py"))]
    return {
        p: _git("show", f"{revision}:{p}") if revision else (ROOT / p).read_text() for p in paths
    }


def code_lines(path: str, text: str) -> int:
    """Count the lines that hold code."""
    if not path.endswith(".py"):
        lines = (line.strip() for line in text.splitlines())
        return sum(bool(line) and not line.startswith("//") for line in lines)
    held: set[int] = set()
    statement: list[tokenize.TokenInfo] = []
    layout = {tokenize.COMMENT, tokenize.NL, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.NEWLINE:
            if any(t.type != tokenize.STRING for t in statement):  # no docstring
                held.update(n for t in statement for n in range(t.start[0], t.end[0] + 1))
            statement = []
        elif token.type not in layout:
            statement.append(token)
    return len(held)


def stage_of(path: str) -> str | None:
    """Return what a file belongs to; None where it is none of the stages."""
    for stage, patterns in STAGES.items():
        if any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns.split()):
            return stage
    return None


def count(files: dict[str, str]) -> dict[str, tuple[int, int]]:
    """Return lines of (C++, Python) by stage."""
    counted = {stage: [0, 0] for stage in ("parse", "plan", "place", "run", "unload", "clear")}
    for path, text in files.items():
        stage = stage_of(path)
        if stage is not None:
            counted[stage][path.endswith(".py")] += code_lines(path, text)
    return {stage: (cpp, python) for stage, (cpp, python) in counted.items()}


def table(before: dict[str, tuple[int, int]], after: dict[str, tuple[int, int]]) -> list[str]:
    """Return the rows as Markdown."""
    rows = {stage: (*before[stage], *after[stage]) for stage in before}
    rows["all"] = tuple(map(sum, zip(*rows.values(), strict=True)))  # type: ignore[assignment]
    return [
        "| | C++ before | Python before | C++ now | Python now |",
        "|---|---|---|---|---|",
        *(
            f"| {stage} | " + " | ".join(f"{n:,}" for n in row) + " |"
            for stage, row in rows.items()
        ),
    ]


def main(arguments: list[str]) -> None:
    """Print the table of two revisions."""
    before, after = [*arguments, *(FIRST_FORM, "")[len(arguments) :]]
    print("\n".join(table(count(sources(before)), count(sources(after)))))


if __name__ == "__main__":
    main(sys.argv[1:])
