# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Iterator

import pytest

from distorch.memory import Scanner


@pytest.fixture
def scanner() -> Iterator[Scanner]:
    """A scanner of its own that has seen what is there; stopped after the test."""
    made = Scanner()
    made.install_hooks()
    made.rows()
    yield made
    made.stop()
