# SPDX-License-Identifier: Apache-2.0
"""Changed bytes at every edge are refused as promised; `make fuzz-edges` goes on for minutes."""

from __future__ import annotations

import edge_inputs as edges
import pytest


@pytest.mark.parametrize("edge", edges.EDGES, ids=lambda edge: edge.name)
def test_seeds_are_read_and_changed_ones_are_refused_or_hold_together(edge: edges.Edge) -> None:
    for seed in edge.seeds:
        edge.check(seed)
    edges.run(edge, 300)


def test_bytes_that_are_treated_wrongly_are_told() -> None:
    def check(data: bytes) -> None:
        if data != b"good":
            raise KeyError("a")

    with pytest.raises(AssertionError, match=r"bad \d+: KeyError: 'a': b'"):
        edges.run(edges.Edge("bad", (b"good",), check), 50)


def test_a_number_of_too_many_digits_is_no_answer() -> None:
    """Python refuses to read such digits, with an error of its own."""
    line = f"GPU-1, A, {'9' * 5000}, 1, 2\nGPU-2, B, 3, 1, 2\n"
    assert [gpu.uuid for gpu in edges.gpus._parse_smi(line)] == ["GPU-2"]
