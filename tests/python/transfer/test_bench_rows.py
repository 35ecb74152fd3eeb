# SPDX-License-Identifier: Apache-2.0
"""The benchmarks of `make bench` give their rows, run as it runs them: they would break unseen with what they use."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

needs_pandas = pytest.mark.skipif(
    importlib.util.find_spec("pandas") is None, reason="no pandas, which it is set beside"
)

BENCH = Path(__file__).resolve().parents[3] / "bench"


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    spec = importlib.util.spec_from_file_location("bench_runner", BENCH / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    for name in {
        "streaming_bench",
        "engine_bench",
        "scan_bench",
        "stats_bench",
        "made_bench",
        "dit",
        "ways",
    } - before:
        sys.modules.pop(name, None)


@pytest.mark.usefixtures("needs_sim")
def test_the_engine_bench_measures_something(runner: ModuleType) -> None:
    rows = runner.run_module(BENCH / "engine_bench.py", moment=True)
    assert [unit for _, _, unit, _ in rows] == [*["µs"] * 6, "GB/s"]
    assert all(value > 0 for _, value, _, _ in rows)


@pytest.mark.usefixtures("needs_sim")
def test_the_streaming_bench_counts_bytes(runner: ModuleType) -> None:
    rows = runner.run_module(BENCH / "streaming_bench.py", moment=True)
    assert len(rows) == 2 * 2 * 3
    assert {unit for _, _, unit, _ in rows} == {"bytes"}
    for name, value, _, label in rows:
        assert label.endswith(f"away {value:.0f}"), name


@pytest.mark.usefixtures("needs_sim")
@pytest.mark.parametrize(
    ("name", "goals"), [pytest.param("stats", 8, marks=needs_pandas), ("scan", 2), ("engine", 3)]
)
def test_each_goal_is_of_a_row_that_there_is(runner: ModuleType, name: str, goals: int) -> None:
    rows = runner.run_module(BENCH / f"{name}_bench.py", moment=True)
    found = sys.modules[f"{name}_bench"].GOALS
    assert len(found) == goals
    assert found.keys() <= {row[0] for row in rows}


def test_a_missed_goal_is_named_and_ends_with_status_1(
    runner: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [("a", 2.0, "s", ""), ("b", 2.1, "s", "beside"), ("c", float("nan"), "ms", "")]
    assert runner.missed(rows, {"a": 2.0}) == []
    assert runner.missed(rows, dict.fromkeys("abcd", 2.0)) == [
        "b: 2.10 s, at most 2 is the goal", "c: nan ms, at most 2 is the goal", "d: not measured",
    ]  # fmt: skip
    assert runner.alone(lambda: rows, {"a": 2.0}) == 0
    assert "MISSED" not in capsys.readouterr().out
    assert runner.alone(lambda: rows, {"b": 2.0}) == 1
    assert capsys.readouterr().out.endswith("MISSED: b: 2.10 s, at most 2 is the goal\n")


@pytest.mark.skipif(shutil.which("git") is None, reason="no git, whose commit the table names")
@pytest.mark.parametrize(
    ("figure", "moment", "status"), [(1, False, 0), (3, False, 1), (3, True, 0)]
)
def test_make_bench_looks_at_goals_of_full_runs(
    figure: float, moment: bool, status: int,
    runner: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    (tmp_path / "bench").mkdir()
    bench = tmp_path / "bench/made_bench.py"
    bench.write_text(
        f'GOALS = {{"r": 2}}\ndef main(moment):\n    return [("r", {figure}, "s", "")]\n'
    )
    monkeypatch.setattr(runner, "ROOT", tmp_path)
    monkeypatch.setattr(runner, "BINARIES", tmp_path)
    monkeypatch.setattr(sys, "argv", ["run.py", *(["--moment"] if moment else [])])
    assert runner.main() == status
