# SPDX-License-Identifier: Apache-2.0
"""The node pack, imported as ComfyUI imports a pack: by path, under a name that no folder has."""

from __future__ import annotations

import importlib
import importlib.util
import pathlib
import sys
from types import ModuleType

ROOT = pathlib.Path(__file__).resolve().parents[3]
NAME = "distorch_pack_under_test"


class Pack:
    """`pack.load("patches.placing.blocks")` and so on. `forget` takes it out of memory."""

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
        """`load("patches.placing.blocks")`."""
        return importlib.import_module(f"{NAME}.{name}")


def forget() -> None:
    """Take the pack out of memory, whole or half imported: the next one is imported anew."""
    for name in [n for n in sys.modules if n == NAME or n.startswith(f"{NAME}.")]:
        del sys.modules[name]
