# SPDX-License-Identifier: Apache-2.0
"""The benchmarks of `make bench` give their rows, run as it runs them: they would break unseen with what they use."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

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
    for name in {"streaming_bench", "engine_bench", "dit", "ways"} - before:
        sys.modules.pop(name, None)


def test_the_engine_bench_measures_something(runner: ModuleType) -> None:
    rows = runner.run_module(BENCH / "engine_bench.py", moment=True)
    assert [unit for _, _, unit, _ in rows] == ["µs", "µs", "µs", "µs", "GB/s"]
    assert all(value > 0 for _, value, _, _ in rows)


def test_the_streaming_bench_counts_bytes(runner: ModuleType) -> None:
    rows = runner.run_module(BENCH / "streaming_bench.py", moment=True)
    assert len(rows) == 2 * 2 * 3
    assert {unit for _, _, unit, _ in rows} == {"bytes"}
    for name, value, _, label in rows:
        assert label.endswith(f"away {value:.0f}"), name
