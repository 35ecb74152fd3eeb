# SPDX-License-Identifier: Apache-2.0
"""The package itself, and what it stands on: Python, torch, the compiled parts, the packages beside them."""

from __future__ import annotations

import importlib.machinery
import importlib.metadata
import importlib.util
import os
import platform
import sys
from pathlib import Path

import distorch

from .finding import ABSENT, BROKEN, OK, Case, Finding

OLDEST_TORCH = (2, 10)


def python(_case: Case) -> Finding:
    """Always fine: what runs this file is new enough for the package's own metadata."""
    return Finding("python", OK, f"{platform.python_version()} ({sys.executable})")


def torch(_case: Case) -> Finding:
    """The torch that is here, and whether it is new enough."""
    if importlib.util.find_spec("torch") is None:
        advice = f'"{sys.executable}" -m pip install "torch>=2.10", or use ComfyUI\'s own Python'
        return Finding("torch", BROKEN, "not installed", advice)
    import torch

    version = str(torch.__version__)
    numbers = tuple(int(n) for n in version.split("+")[0].split(".")[:2])
    if numbers < OLDEST_TORCH:
        advice = (
            "update ComfyUI with its torch (portable version: update\\update_comfyui_and_python_dependencies.bat), "
            f'or "{sys.executable}" -m pip install --upgrade torch torchvision torchaudio'
        )
        return Finding("torch", BROKEN, f"{version} is older than 2.10", advice)
    return Finding("torch", OK, version)


def core(_case: Case) -> Finding:
    """The compiled core."""
    folder = Path(distorch.__file__).parent
    suffixes = importlib.machinery.EXTENSION_SUFFIXES
    files = sorted(p.name for p in folder.glob("_C.*") if p.suffix in (".so", ".pyd"))
    if not any((folder / f"_C{suffix}").exists() for suffix in suffixes):
        found = f"compiled for another Python: {', '.join(files)}" if files else "not there"
        return Finding("distorch core", BROKEN, found, reinstall())
    from distorch._load import core

    binary = core()
    told = f"{binary.__version__}, compiled by {binary.compiler} against torch {binary.built_with_torch}"
    return Finding("distorch core", OK, told)


def operators(_case: Case) -> Finding:
    """The operators on tensors."""
    from distorch._load import load_operators

    return Finding("distorch operators", OK, f"ABI {int(load_operators().abi_version())}")


def reinstall() -> str:
    """What to type for a compiled part that is missing or does not load."""
    return (
        f'"{sys.executable}" -m pip install --force-reinstall --no-deps distorch=={distorch.__version__}, '
        "or `make` in a checkout"
    )


def packages(_case: Case) -> Finding:
    """What some commands want."""
    optional = {"rich": "monitor, e2e", "aiohttp": "e2e", "transformers": "demo"}
    found, missing = [], []
    for package, use in optional.items():
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(f"{package} (for: {use})")
    if not missing:
        return Finding("optional packages", OK, ", ".join(found))
    advice = f'"{sys.executable}" -m pip install ' + " ".join(name.split()[0] for name in missing)
    return Finding("optional packages", ABSENT, "missing: " + ", ".join(missing), advice)


def simulated(_case: Case) -> Finding:
    """Only a checkout has them."""
    if importlib.util.find_spec("distorch_sim") is not None:
        return Finding("simulated devices", OK, "distorch_sim")
    advice = "only for tests and the demo: run `make` in a checkout"
    return Finding("simulated devices", ABSENT, "not built", advice)


def environment(case: Case) -> Finding:
    """Whether this Python is the one that runs ComfyUI."""
    name, version = "ComfyUI's Python", platform.python_version()
    if case.server:
        import torch

        theirs = (
            str(case.system.get("python_version", "")).split()[0],
            case.system.get("pytorch_version"),
        )
        ours = (version, str(torch.__version__))
        if theirs == ours:
            return Finding(name, OK, f"Python {ours[0]}, torch {ours[1]}, as the running server")
        found = (
            f"the server runs Python {theirs[0]} with torch {theirs[1]}, "
            f"this is Python {ours[0]} with torch {ours[1]}"
        )
        return Finding(name, BROKEN, found, "run this by the Python that starts ComfyUI")
    if case.comfyui is None:
        return Finding(
            name,
            ABSENT,
            "no ComfyUI is known",
            "name its folder: --comfyui FOLDER, or --server URL",
        )
    own = _pythons_of(case.comfyui)
    if own and not any(_prefix(p) == Path(sys.prefix).resolve() for p in own):
        return Finding(
            name,
            BROKEN,
            f"{case.comfyui} has a Python of its own, and this is {sys.executable}",
            f'"{own[0]}" -m pip install -r "requirements.txt" in DisTorch\'s folder, then "{own[0]}" -m distorch doctor',
        )
    if not own and importlib.util.find_spec("comfyui_frontend_package") is None:
        found = f"ComfyUI's requirements are not installed for {sys.executable}"
        return Finding(name, BROKEN, found, "run this by the Python that starts ComfyUI")
    return Finding(name, OK, sys.executable)


def _pythons_of(folder: Path) -> list[Path]:
    """The Pythons that lie in or beside a ComfyUI, of its portable version or of a virtual environment."""
    places = [folder / "venv", folder / ".venv", folder.parent / "python_embeded"]
    names = ("python.exe", "Scripts/python.exe", "bin/python")
    return [
        Path(os.path.abspath(place / name))  # noqa: PTH100 - a venv's Python is a link, which must stay one
        for place in places
        for name in names
        if (place / name).exists()
    ]


def _prefix(python: Path) -> Path:
    parent = python.parent
    return (parent.parent if parent.name in ("bin", "Scripts") else parent).resolve()
