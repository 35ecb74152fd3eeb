# SPDX-License-Identifier: Apache-2.0
"""The build backend of the wheel: scikit-build-core, with a bootstrap for environments that lack it.

`pip install --no-build-isolation <folder>` builds against the torch that is already there, but pip then installs
no build requirements either. Where scikit-build-core or pybind11 is missing, they are put into a temporary folder,
so that one command serves a ComfyUI environment and leaves nothing else behind in it.
"""

from __future__ import annotations

import atexit
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from typing import Any

_TOOLS = {"scikit_build_core": "scikit-build-core>=0.10", "pybind11": "pybind11>=2.13"}


def _bootstrap() -> None:
    missing = [need for module, need in _TOOLS.items() if importlib.util.find_spec(module) is None]
    if shutil.which("cmake") is None:
        missing.append("cmake>=3.25,<4")
    if shutil.which("ninja") is None:
        missing.append("ninja")
    if not missing:
        return
    folder = tempfile.mkdtemp(prefix="distorch-build-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--target",
        folder,
    ]
    subprocess.run([*command, *missing], check=True)
    sys.path.insert(0, folder)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH")]))
    os.environ["PATH"] = os.pathsep.join([os.path.join(folder, "bin"), os.environ["PATH"]])  # noqa: PTH118


def _backend() -> Any:
    _bootstrap()
    import scikit_build_core.build

    return scikit_build_core.build


def get_requires_for_build_wheel(config_settings: dict | None = None) -> list[str]:
    """PEP 517."""
    return list(_backend().get_requires_for_build_wheel(config_settings))


def get_requires_for_build_sdist(config_settings: dict | None = None) -> list[str]:
    """PEP 517."""
    return list(_backend().get_requires_for_build_sdist(config_settings))


def prepare_metadata_for_build_wheel(folder: str, config_settings: dict | None = None) -> str:
    """PEP 517."""
    return str(_backend().prepare_metadata_for_build_wheel(folder, config_settings))


def build_wheel(
    folder: str, config_settings: dict | None = None, metadata: str | None = None
) -> str:
    """PEP 517."""
    return str(_backend().build_wheel(folder, config_settings, metadata))


def build_sdist(folder: str, config_settings: dict | None = None) -> str:
    """PEP 517."""
    return str(_backend().build_sdist(folder, config_settings))
