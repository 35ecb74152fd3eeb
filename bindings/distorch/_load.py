# SPDX-License-Identifier: Apache-2.0
"""Loads the two compiled parts of the package and explains a failure.

`core()` gives `distorch._C` (no torch needed), and so does `_load.C`, with types (`_C.pyi`); `load_operators()` registers
`torch.ops.distorch.*` once per process.
"""

from __future__ import annotations

import functools
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distorch import _C

    C = _C

_ABI_VERSION = 2  # bindings/ops/library.cc


class LoadError(ImportError):
    """A compiled part of DisTorch could not be loaded; the message says what was found and what to do."""


def _explain(part: str, error: BaseException) -> LoadError:
    folder = Path(__file__).parent
    kinds = {".so", ".pyd", ".dll"}
    present = sorted(p.name for p in folder.iterdir() if p.suffix in kinds) or ["none"]
    torch = sys.modules.get("torch")
    lines = [
        f"DisTorch's {part} could not be loaded: {error}",
        f"  python {sys.version.split()[0]}, torch {getattr(torch, '__version__', 'not imported')}",
        f"  package folder {folder}, compiled parts there: {', '.join(present)}",
        "Likely causes, in order:",
        "  1. the package was not built: run `make` in a checkout, or "
        "`pip install --no-build-isolation <folder of DisTorch>` in this environment;",
        "  2. it was built for another Python version: build it again with this one;",
        "  3. torch is older than 2.10: update torch;",
        "  4. Abseil is missing: `apt-get install libabsl-dev` (Debian, Ubuntu).",
        "".join(traceback.format_exception(error)),
    ]
    return LoadError("\n".join(lines))


@functools.cache
def core() -> Any:
    """Return `distorch._C`. Raises LoadError with the versions found and the likely causes."""
    try:
        from distorch import _C
    except ImportError as error:
        raise _explain("C++ core (_C)", error) from error
    return _C


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Give `C`, the core, from its first use on."""
        if name != "C":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()["C"] = core()
        return globals()["C"]


@functools.cache
def load_operators() -> Any:
    """Register the tensor operators and return `torch.ops.distorch`. Raises LoadError likewise. Thread safe."""
    import torch

    suffix = "dll" if sys.platform == "win32" else "so"
    library = Path(__file__).parent / f"libdistorch_ops.{suffix}"
    try:
        torch.ops.load_library(str(library))
        found = int(torch.ops.distorch.abi_version())
    except (OSError, RuntimeError, AttributeError) as error:
        raise _explain("operators (libdistorch_ops)", error) from error
    if found != _ABI_VERSION:
        raise _explain(
            "operators (libdistorch_ops)",
            RuntimeError(
                f"operator library has ABI {found}, the package needs {_ABI_VERSION}: build both together"
            ),
        )
    return torch.ops.distorch
