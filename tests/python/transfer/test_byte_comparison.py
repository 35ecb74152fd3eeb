# SPDX-License-Identifier: Apache-2.0
"""Bytes of a step, a load and an unload beside the predecessor's way and accelerate's, counted in the same run."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

BENCH = Path(__file__).resolve().parents[3] / "bench"


@pytest.fixture(scope="module")
def bench() -> Iterator[ModuleType]:
    before = list(sys.path)
    spec = importlib.util.spec_from_file_location("streaming_bench", BENCH / "streaming_bench.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    yield module
    sys.path[:] = before
    del sys.modules[spec.name]


@pytest.mark.usefixtures("needs_sim")
@pytest.mark.parametrize(("size", "share"), [("flux-12b", 0.5), ("wan-14b", 1.0)])
def test_a_step_moves_the_streamed_groups_and_nothing_else(
    bench: ModuleType, size: str, share: float
) -> None:
    found, away = bench.compare(size, share)
    ours = found["streamed"]
    assert away > 0
    assert ours.step_in == away
    assert ours.step_out == 0
    assert (ours.load_out, ours.unload_out) == (0, 0), "nothing is copied back"
    for rival in ("per_leaf", "accelerate"):
        assert found[rival].step_in >= ours.step_in
        assert found[rival].unload_out > ours.unload_out
    assert found["per_leaf"].load_in > ours.load_in
    assert found["per_leaf"].load_out == away
    assert found["resident"].step_in == 0


def test_moving_more_than_a_rival_is_an_error(bench: ModuleType) -> None:
    least = bench.Bytes(1, 0, 10, 0, 0)
    bench._check({"streamed": least, "per_leaf": least})
    for field in dataclasses.fields(bench.Bytes):
        more = dataclasses.replace(least, **{field.name: getattr(least, field.name) + 1})
        with pytest.raises(RuntimeError, match=rf"\({field.name}\), accelerate"):
            bench._check({"streamed": more, "accelerate": least})
