# SPDX-License-Identifier: Apache-2.0
"""The ComfyUI that the pack is in, or is to be in: read from its folder, and asked if it runs."""

from __future__ import annotations

import importlib.metadata
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import distorch
from distorch.tools.comfyui import SEAMS, Source, problems_of

from . import finding
from .finding import ABSENT, BROKEN, NOTE, OK, Case, Finding, is_comfyui

_OFF = ("--disable-dynamic-vram", "--highvram", "--gpu-only", "--novram", "--cpu")
_NAME_IT = "name its folder: --comfyui FOLDER"


def folder(case: Case) -> Finding:
    """Whether there is one, and whether it has what the pack relies on."""
    if case.comfyui is None:
        return Finding("ComfyUI", ABSENT, "not found here or above", _NAME_IT)
    if not is_comfyui(case.comfyui):
        advice = "name the folder with main.py and comfy/ in it: --comfyui FOLDER"
        return Finding("ComfyUI", BROKEN, f"no ComfyUI in {case.comfyui}", advice)
    problems = problems_of(Source(case.comfyui))
    if not problems:
        return Finding("ComfyUI", OK, f"{case.comfyui}: all {len(SEAMS)} seams are as expected")
    told = "; ".join(map(str, problems))
    return Finding(
        "ComfyUI", NOTE, f"{case.comfyui}: {told}", "look for a newer DisTorch, the rest works"
    )


def pack(case: Case) -> Finding:
    """Whether the pack's folder is there, of the version of the package."""
    found = [p for p in _packs(case) if _is_ours(p)]
    if not found:
        what = "not in custom_nodes" if case.comfyui else "no ComfyUI is known"
        advice = "clone DisTorch into custom_nodes" if case.comfyui else _NAME_IT
        return Finding("DisTorch's folder", ABSENT, what, advice)
    pinned = re.search(r"^distorch==(\S+)", _read(found[0] / "requirements.txt"), re.MULTILINE)
    version = pinned[1] if pinned else "of no version"
    if version != distorch.__version__:
        return Finding(
            "DisTorch's folder",
            BROKEN,
            f"{found[0]} is {version}, the package {distorch.__version__}",
            f'"{sys.executable}" -m pip install -r "{found[0] / "requirements.txt"}"',
        )
    return Finding("DisTorch's folder", OK, f"{found[0]}, {version}")


def predecessor(case: Case) -> Finding:
    """ComfyUI-MultiGPU beside the pack: both have nodes of the same ids."""
    name = "ComfyUI-MultiGPU"
    found = [p for p in _packs(case) if _plain(p.name) == _plain(name) and not _is_ours(p)]
    if not found:
        return Finding(name, OK, "not beside DisTorch")
    return Finding(
        name,
        BROKEN,
        f"{found[0]}: its nodes keep their ids, and DisTorch registers none of them",
        f'move it away: {"move" if finding.on_windows() else "mv"} "{found[0]}" "{found[0]}.disabled"',
    )


def dynamic_vram(case: Case) -> Finding:
    """Whether DynamicVRAM is on, and what that means for placed models."""
    name = "DynamicVRAM"
    if case.comfyui is None or not is_comfyui(case.comfyui):
        return Finding(name, ABSENT, "no ComfyUI is known", _NAME_IT)
    source = Source(case.comfyui)
    if source.find("comfy.model_patcher", "ModelPatcherDynamic") is None:
        return Finding(name, OK, "this ComfyUI has none")
    if any(p.need.name == "CoreModelPatcher" for p in problems_of(source)):
        return Finding(
            name,
            BROKEN,
            "this ComfyUI leaves no way to load a model without it",
            "start ComfyUI with --disable-dynamic-vram",
        )
    try:
        aimdo = f"comfy-aimdo {importlib.metadata.version('comfy-aimdo')}"
    except importlib.metadata.PackageNotFoundError:
        aimdo = "comfy-aimdo is not installed here"
    if case.arguments is None:
        state = f"on where there is an NVIDIA GPU, unless started with {' or '.join(_OFF)}"
    else:
        off = [a for a in case.arguments if a in _OFF]
        state = f"off ({off[0]})" if off else "on where there is an NVIDIA GPU"
    return Finding(name, OK, f"{state}; {aimdo}; placed models are loaded beside it")


def hidden_gpus(case: Case) -> Finding:
    """Newer ComfyUIs show one GPU on Windows unless they are told otherwise."""
    name = "all GPUs in ComfyUI"
    if not finding.on_windows():
        return Finding(name, OK, "only on Windows are some left out")
    from distorch._load import core

    count = len(core().nvml_devices()[0])
    main = _read(case.comfyui / "main.py") if case.comfyui else ""
    if count < 2 or (main and 'os.environ["CUDA_VISIBLE_DEVICES"] = "0"' not in main):
        return Finding(name, OK, f"{count} of NVIDIA, none is left out")
    chosen = {"--cuda-device", "--default-device"} & set(case.arguments or ())
    if chosen or "CUDA_VISIBLE_DEVICES" in os.environ:
        return Finding(name, OK, f"chosen by {next(iter(chosen), 'CUDA_VISIBLE_DEVICES')}")
    return Finding(
        name,
        NOTE if case.arguments is None else BROKEN,
        f"{count} of NVIDIA, and ComfyUI shows the first alone unless it is told otherwise",
        "start ComfyUI with --cuda-device all (in run_nvidia_gpu.bat, behind main.py)",
    )


def _packs(case: Case) -> Iterator[Path]:
    place = case.comfyui / "custom_nodes" if case.comfyui else None
    if place is not None and place.is_dir():
        yield from sorted(p for p in place.iterdir() if p.is_dir() and p.suffix != ".disabled")


def _is_ours(pack: Path) -> bool:
    return '\nname = "distorch"\n' in _read(pack / "pyproject.toml")


def _plain(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum()).removesuffix("main")


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
