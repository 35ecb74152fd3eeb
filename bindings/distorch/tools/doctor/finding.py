# SPDX-License-Identifier: Apache-2.0
"""What a check says, and what it is told."""

from __future__ import annotations

import functools
import json
import os
import platform
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: "absent": what DisTorch can do without. "note": it works, with a limit. "broken": what it needs.
OK, ABSENT, NOTE, BROKEN = "ok", "absent", "note", "broken"


@dataclass(frozen=True)
class Finding:
    """One row: what was looked for, its status, what was found, and what to do (empty where nothing is)."""

    name: str
    status: str
    found: str
    advice: str = ""


@dataclass(frozen=True)
class Case:
    """What is examined: this Python, and the ComfyUI it is for, if one is known."""

    comfyui: Path | None = None  # its folder
    server: str = ""  # address of a running one, "http://127.0.0.1:8188"

    @functools.cached_property
    def system(self) -> dict[str, Any]:
        """What the running server says of itself; empty without one. Raises OSError if it does not answer."""
        if not self.server:
            return {}
        with urllib.request.urlopen(f"{self.server.rstrip('/')}/system_stats", timeout=5) as answer:
            told = json.loads(answer.read(1 << 20))
        return dict(told.get("system", {}))

    @property
    def arguments(self) -> list[str] | None:
        """What ComfyUI was started with; None if no running one was named."""
        return [str(a) for a in self.system.get("argv", [])] if self.server else None


def is_comfyui(folder: Path) -> bool:
    """Whether a folder holds ComfyUI's sources."""
    return (folder / "comfy" / "model_management.py").is_file()


def find_comfyui() -> Path | None:
    """The first folder of COMFYUI_PATH, else this folder or one above it, or the `ComfyUI` in one of them."""
    named = [Path(p) for p in os.environ.get("COMFYUI_PATH", "").split(os.pathsep) if p]
    if named:
        return named[0]
    here = Path.cwd()
    for folder in (here, *here.parents):
        for candidate in (folder, folder / "ComfyUI"):
            if is_comfyui(candidate):
                return candidate
    return None


def on_windows() -> bool:
    """Whether this is Windows; asked at run time, so that a test can say so."""
    return platform.system() == "Windows"


def gigabytes(count: float) -> str:
    """Bytes in words, without the compiled core."""
    return f"{count / 2**30:.1f} GB"
