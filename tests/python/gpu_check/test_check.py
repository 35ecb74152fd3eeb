# SPDX-License-Identifier: Apache-2.0
"""tools/gpu/check.py: a step that is cut off or fails still tells what it knows, and the page is made of it."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
MODULES = ("check", "steps", "page", "junit", "manifest", "copies", "report", "plot")


@pytest.fixture
def check() -> Iterator[ModuleType]:
    before = list(sys.path)
    sys.path.insert(0, str(ROOT / "tools/gpu"))
    try:
        yield importlib.import_module("check")
    finally:
        sys.path[:] = before
        for name in MODULES:
            sys.modules.pop(name, None)


def step(check: ModuleType, script: str, limit: float = 30.0, **more: Any) -> Any:
    return check.steps.Step("a step", ("/bin/sh", "-c", script), limit, **more)


def test_a_step_that_is_done(check: ModuleType, tmp_path: Path) -> None:
    does = step(check, "echo seen; echo $A > {out}/made; echo '{\"said\": \"two\"}' > {json}", environment={"A": "b"})  # fmt: skip
    row = check.run_step(does, tmp_path, 60)
    assert (row["status"], row["results"], row["exit_status"]) == ("ok", {"said": "two"}, 0)
    assert (tmp_path / "made").read_text() == "b\n"
    assert "seen" in (tmp_path / "log.txt").read_text()
    assert check.told(row).split() == ["ok", "a", "step", f"{row['seconds']:.1f}", "s", "two"]


def test_the_bench_takes_what_the_copies_have_shown(check: ModuleType, tmp_path: Path) -> None:
    kept = tmp_path / "copies.json"
    bench = step(check, "echo {copies} {limit} > {out}/made", 20)
    check.run_step(bench, tmp_path, 60, copies=kept)
    assert (tmp_path / "made").read_text() == f"{check.steps.COPIES} 12\n"
    done = check.steps.Step("copies", ("/bin/sh", "-c", "echo '{\"gbps\": 1}' > {json}"), 30)
    check.run_step(done, tmp_path, 60, copies=kept)
    check.run_step(bench, tmp_path, 60, copies=kept)
    assert (tmp_path / "made").read_text() == f"{kept} 12\n"
    assert kept.read_text() == '{"gbps": 1}\n'


def test_a_step_that_fails_says_its_last_line(check: ModuleType, tmp_path: Path) -> None:
    row = check.run_step(step(check, "echo first; echo last >&2; exit 3"), tmp_path, 60)
    assert (row["status"], row["why"], row["exit_status"]) == ("failed", "last", 3)
    row = check.run_step(step(check, "exit 4"), tmp_path, 60)
    assert row["why"] == "exit status 4, no output"


def test_a_step_that_is_cut_off_keeps_what_it_has_measured(
    check: ModuleType, tmp_path: Path
) -> None:
    script = "echo '{\"a\": 1}' > {json}; printf '{\"a\"' >> {json}; sleep 60 & sleep 60"
    row = check.run_step(step(check, script, 2.0), tmp_path, 60)
    assert (row["status"], row["why"]) == ("cut off", "after 2 s")
    assert row["results"] == [{"a": 1}]
    assert row["seconds"] < 20
    row = check.run_step(step(check, "true"), tmp_path, check.RESERVE)
    assert (row["status"], row["why"]) == ("not run", "no time was left")
    row = check.run_step(step(check, "true", absent="no tool"), tmp_path, 60)
    assert (row["status"], row["why"]) == ("not run", "no tool")


def test_all_steps_leave_their_results_at_once(
    check: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    Step = check.steps.Step  # noqa: N806
    look = f"cp {tmp_path}/results.json {tmp_path}/seen.json; cp {tmp_path}/page.md {tmp_path}/seen.md; exit 1"  # fmt: skip
    found = [
        Step("one", ("/bin/sh", "-c", 'echo \'{"said": "fine"}\' > {json}'), 30),
        Step("two", ("/bin/sh", "-c", look), 30),
    ]
    monkeypatch.setattr(check.steps, "steps", lambda dry_run: found)
    monkeypatch.setattr(sys, "argv", ["check.py", "--out", str(tmp_path), "--dry-run"])
    assert check.main() == 1
    seen = json.loads((tmp_path / "seen.json").read_text())
    assert [row["step"] for row in seen["steps"]] == ["one"], "there before the second began"
    assert "| one | ok |" in (tmp_path / "seen.md").read_text()
    assert len(json.loads((tmp_path / "results.json").read_text())["steps"]) == 2
    assert "failed: two (exit status 1, no output)" in capsys.readouterr().out
    found[1:] = [Step("three", ("true",), 30, absent="no tool")]
    assert check.main() == 0, "in a dry run"
    monkeypatch.setattr(sys, "argv", ["check.py", "--out", str(tmp_path)])
    assert check.main() == 1, "a GPU has shown nothing of it"


@pytest.mark.parametrize("dry_run", [False, True])
def test_the_steps_are_those_of_the_plan(check: ModuleType, dry_run: bool) -> None:
    found = check.steps.steps(dry_run)
    names = [step.name for step in found]
    assert names[:3] == ["first", "probes", "tests, native"]
    assert names[-1] == "bench"
    if not dry_run:
        assert names[3:5] == ["tests, expandable", "tests, async"]
        configured = [step.environment.get("PYTORCH_ALLOC_CONF") for step in found[2:5]]
        assert configured == [None, "expandable_segments:True", "backend:cudaMallocAsync"]
        assert sum(step.limit for step in found if step.name != "bench") <= 430
    for each in found:
        assert each.limit <= 300
        for part in each.command:
            if part.endswith(".py"):
                assert Path(part).exists()


def test_counts_of_a_test_run(check: ModuleType) -> None:
    text = """<testsuites><testsuite>
    <testcase classname="tests.python.cuda.test_a" name="test_one"/>
    <testcase classname="cuda.test_a" name="test_two"><failure message="no"/></testcase>
    <testcase classname="cuda.test_a" name="test_three"><skipped message="hardware"/></testcase>
    </testsuite></testsuites>"""
    junit = importlib.import_module("junit")
    assert junit.counts(text) == {
        "said": "1 passed, 1 failed, 1 not run",
        "passed": 1,
        "failed": ["test_a::test_two"],
        "skipped": ["test_a::test_three (hardware)"],
    }


def test_a_kit_of_other_sources_is_not_taken(check: ModuleType, tmp_path: Path) -> None:
    manifest = importlib.import_module("manifest")
    for name in ("CMakeLists.txt", "allocation/a.cc", "bindings/distorch/b.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("one")
    before = manifest.sources_hash(tmp_path)
    (tmp_path / "bindings/distorch/b.py").write_text("two")
    assert manifest.sources_hash(tmp_path) == before, "Python is not compiled"
    (tmp_path / "allocation/a.cc").write_text("two")
    assert manifest.sources_hash(tmp_path) != before


def test_the_page_of_a_whole_run(check: ModuleType) -> None:
    row = {
        "size": "flux-12b", "tokens": 4608, "share": 0.5, "unit": "s", "values": {"streamed": 0.42, "resident": 0.4},
        "compute_seconds": 0.4, "link_seconds": 0.41, "bound": 0.41, "fraction_of_bound": 0.41 / 0.42,
        "ratio": {"per_leaf": 4.0}, "problems": {"accelerate": "OutOfTimeError: not done within 40 s"}, "notes": [],
    }  # fmt: skip
    copies = [{"way": "pinned", "source": "cpu", "target": "cuda:0", "bytes": 1 << 28, "gbps": 50.0}]  # fmt: skip
    steps = [
        {"step": "first", "status": "ok", "seconds": 9.0, "results": {"said": "x", "versions": {"device": "Some GPU", "torch": "2.11"}}},
        {"step": "probes", "status": "ok", "seconds": 9.0, "results": {"said": "1 of 1", "border": {"across": "cudaErrorInvalidValue"}}},
        {"step": "copies", "status": "ok", "seconds": 9.0, "results": copies},
        {"step": "host time", "status": "ok", "seconds": 9.0, "results": {"microseconds_a_group": 19.5}},
        {"step": "bench", "status": "cut off", "seconds": 9.0, "why": "after 9 s", "results": {"rows": [row], "not_done": ["wan"]}},
    ]  # fmt: skip
    text = check.page.page({"date": "2026-01-01", "dry_run": False, "seconds": 45.0, "steps": steps})  # fmt: skip
    for expected in (
        "## Measured: Some GPU, 2026-01-01",
        "| bench | cut off | 9.0 | after 9 s |",
        "| T at most 1.05 of max(C, B / W) | 1.024 at worst |",
        "| 0.95 of the measured copy peak, where the link is the bound | 0.976 at worst |",
        "| faster than each rival | 4.00 to 4.00 times |",
        "| host time of a group at most 25 µs, CUDA's own calls included | 19.5 µs |",
        "| flux-12b | 4608 | 50% | 0.4200 | 0.4000 | 0.4100 | 0.976 | 4.000 | - |",
        "- flux-12b, 4608 tokens, 50% away: accelerate: OutOfTimeError: not done within 40 s",
        "- not done: wan",
        "| border: across | cudaErrorInvalidValue |",
    ):
        assert expected in text, text
