# SPDX-License-Identifier: Apache-2.0
"""The pack beside a small stand-in of our own for ComfyUI: these tests always run."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import comfy_standin
import pytest
from pack_import import Pack, forget


@pytest.fixture
def comfy(monkeypatch: pytest.MonkeyPatch) -> comfy_standin.StandIn:
    """ComfyUI's modules, made anew for the test; three simulated devices of 1 GB."""
    standin = comfy_standin.StandIn()
    for name, module in standin.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    return standin


@pytest.fixture
def pack(comfy: comfy_standin.StandIn, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pack]:
    """The pack, imported beside the stand-in."""
    pack = Pack()
    for name, module in comfy.servers_modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    yield pack
    forget()
