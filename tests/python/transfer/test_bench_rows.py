# SPDX-License-Identifier: Apache-2.0
"""bench/engine_bench.py gives its rows: it uses the engine's parts, and would break with them unseen."""

from __future__ import annotations

import importlib.util
from pathlib import Path

BENCH = Path(__file__).resolve().parents[3] / "bench"


def test_the_engine_bench_measures_something() -> None:
    spec = importlib.util.spec_from_file_location("engine_bench", BENCH / "engine_bench.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    rows = {name: (value, unit) for name, value, unit, _ in module.main(moment=True)}
    assert [unit for _, unit in rows.values()] == ["µs", "µs", "µs", "µs", "GB/s"]
    assert all(value > 0 for value, _ in rows.values())
