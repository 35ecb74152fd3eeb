# SPDX-License-Identifier: Apache-2.0
"""Small models of six architectures, placed at random: the resident model's bits, the plan's bytes."""

from __future__ import annotations

import pytest
import random_placements

SEEDS = 50  # `make placements` takes a thousand


@pytest.mark.parametrize("first", range(0, SEEDS, 10))
def test_placed_models_compute_the_same_bits(first: int) -> None:
    placed = [random_placements.check(seed) for seed in range(first, first + 10)]
    assert sum(case is not None for case in placed) >= 8


def test_a_model_that_computes_something_else_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random_placements, "_expected", lambda model, _, value: model(value) + 1)
    with pytest.raises(AssertionError, match="step 0 differs"):
        random_placements.check(0)
