# SPDX-License-Identifier: Apache-2.0
"""Pinned memory counts with ComfyUI's own, on CUDA's double."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fake_cuda import streamed_by_the_core

from distorch import slabs
from distorch.run import HostPinner, pinning
from distorch.slabs import PAGE

pytestmark = pytest.mark.usefixtures("sim")


@pytest.fixture
def seam(pack: Any, comfy: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(comfy.mm, "MAX_PINNED_MEMORY", 8.0 * PAGE, raising=False)
    monkeypatch.setattr(comfy.mm, "TOTAL_PINNED_MEMORY", 3 * PAGE, raising=False)
    seam = pack.load("patches.seams.pinned_memory")
    seam.install()
    yield seam
    seam.uninstall()


def pinned(fake: Any, pages: int) -> tuple[HostPinner, torch.Tensor]:
    pinner = HostPinner(fake.device, segment=2 * PAGE)
    slab = slabs.allocate(pages * PAGE, torch.device("cpu"))
    pinner.pin(slab, range(2 * PAGE, pages * PAGE, 2 * PAGE))
    return pinner, slab


def test_ours_stays_below_the_cores_limit_and_is_in_its_count(
    seam: Any, comfy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with streamed_by_the_core(monkeypatch) as fake:
        pinner, _slab = pinned(fake, pages=6)
        assert pinner.pinned == 4 * PAGE, "8 pages are allowed, 3 are the core's, segments have 2"
        assert comfy.mm.TOTAL_PINNED_MEMORY == 7 * PAGE
        pinner.close()
        assert comfy.mm.TOTAL_PINNED_MEMORY == 3 * PAGE


def test_nothing_is_pinned_where_the_core_may_not(
    seam: Any, comfy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--disable-pinned-memory` leaves the limit at -1."""
    monkeypatch.setattr(comfy.mm, "MAX_PINNED_MEMORY", -1)
    with streamed_by_the_core(monkeypatch) as fake:
        pinner, _slab = pinned(fake, pages=2)
        assert pinner.pinned == 0
        assert "limit of 0 bytes" in pinner.trouble


def test_without_the_cores_count_our_own_limit_holds(
    pack: Any, comfy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(comfy.mm, "MAX_PINNED_MEMORY", raising=False)
    before = pinning._budget
    pack.load("patches.seams.pinned_memory").install()
    assert pinning._budget is before


def test_uninstalling_gives_our_own_limit_back(seam: Any) -> None:
    assert isinstance(pinning._budget, seam.CoreBudget)
    seam.uninstall()
    assert pinning._budget.limit() == pinning.default_cap()
