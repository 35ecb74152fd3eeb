# SPDX-License-Identifier: Apache-2.0
"""The pack beside a small stand-in of our own for ComfyUI: these tests always run."""

from __future__ import annotations

import importlib
import importlib.util
import pathlib
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import comfy_standin

ROOT = pathlib.Path(__file__).resolve().parents[3]
NAME = "distorch_pack_under_test"


class Pack:
    """`pack.patches.blocks` and so on, imported as ComfyUI imports a pack: by path."""

    def __init__(self) -> None:
        spec = importlib.util.spec_from_file_location(
            NAME, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
        )
        assert spec is not None
        assert spec.loader is not None
        self.module = importlib.util.module_from_spec(spec)
        sys.modules[NAME] = self.module
        spec.loader.exec_module(self.module)

    def load(self, name: str) -> ModuleType:
        """`load("patches.blocks")`."""
        return importlib.import_module(f"{NAME}.{name}")


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
    for name in [n for n in sys.modules if n == NAME or n.startswith(f"{NAME}.")]:
        del sys.modules[name]
