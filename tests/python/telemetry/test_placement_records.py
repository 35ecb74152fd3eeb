# SPDX-License-Identifier: Apache-2.0
"""How each block of a placed model is used."""

from __future__ import annotations

import threading

from distorch.memory import placements
from distorch.memory.placements import Placement


def test_a_block_is_used_as_the_group_around_it() -> None:
    blocks = {
        "blocks.1.up": "cuda:0",
        "blocks.2.up": "cpu",
        "blocks.2 (own)": "cpu",
        "blocks.20.up": "cuda:1",
        "blocks.20": "cuda:1",
        "norm": "cpu",
        "blocks (buffers)": "cpu",
    }
    placement = Placement(
        1, "m", "f", "cuda:0", "r", "placed", blocks, {},
        groups={"blocks.2": "streamed", "blocks.20": "migrated"},
    )  # fmt: skip
    assert placement.modes() == {
        "blocks.1.up": "resident",
        "blocks.2.up": "streamed",
        "blocks.2 (own)": "streamed",
        "blocks.20.up": "migrated",
        "blocks.20": "migrated",
        "norm": "streamed",
        "blocks (buffers)": "streamed",
    }


def test_a_model_may_die_while_another_is_looked_up() -> None:
    """As when a collection of garbage begins just then."""

    class Key(int):
        def __hash__(self) -> int:
            placements.forget(3)
            return super().__hash__()

    asking = threading.Thread(target=placements.find, args=(Key(2),), daemon=True)
    asking.start()
    asking.join(10)
    assert not asking.is_alive()
