# SPDX-License-Identifier: Apache-2.0
"""Stand-ins for packs whose nodes we wrap: `write` puts them into a folder, to be loaded by ComfyUI as packs.

`ComfyUI-WanVideoWrapper` has a small transformer, and moves it as two of that pack's releases do (`wanvideo_….py`).
"""

from __future__ import annotations

import pathlib
import shutil

from . import signatures

RELEASES = ("globals", "asks")
_NOTING = "from .noting import classes\n\nNODE_CLASS_MAPPINGS = classes({pack!r})\n"
_WAN = "from .wanvideo import NODE_CLASS_MAPPINGS as WAN\n\nNODE_CLASS_MAPPINGS |= WAN\n"


def write(folder: pathlib.Path, release: str = "globals") -> list[pathlib.Path]:
    """Writes the packs; returns their folders. `release`: how WanVideoWrapper finds its devices, one of `RELEASES`."""
    here, packs = pathlib.Path(__file__).parent, []
    for pack in signatures.PACKS:
        path = folder / pack
        path.mkdir(parents=True)
        for name in ("signatures.py", "noting.py"):
            shutil.copy(here / name, path)
        text = _NOTING.format(pack=pack)
        if pack == "ComfyUI-WanVideoWrapper":
            for name in ("sampling.py", "transformer.py", f"wanvideo_{release}.py"):
                shutil.copy(here / name, path / name.replace(f"_{release}", ""))
            text += _WAN
        (path / "__init__.py").write_text(text)
        packs.append(path)
    return packs
