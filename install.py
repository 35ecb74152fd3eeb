# SPDX-License-Identifier: Apache-2.0
"""What has to be there for the pack, and how it comes there.

ComfyUI-Manager runs this file after `requirements.txt`; by hand: `python install.py`. Where the compiled package has
not come as a wheel, it is built against the torch that is there. torch itself is never replaced: where it is too old,
nothing is installed and one sentence says so. The pack asks `shortcoming()` when ComfyUI starts.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import pathlib
import re
import subprocess
import sys

FOLDER = pathlib.Path(__file__).resolve().parent
OLDEST_PYTHON = (3, 10)
OLDEST_TORCH = (2, 10)
BUILD = ("-m", "pip", "install", "--no-build-isolation", "--no-deps")


def wanted() -> str:
    """The version of the package that belongs to this folder."""
    pinned = re.search(r"^distorch==(\S+)", (FOLDER / "requirements.txt").read_text(), re.MULTILINE)
    assert pinned is not None, "requirements.txt pins the package"
    return pinned[1]


def unserved() -> str:
    """One sentence if the package cannot run on this Python or this torch, else ""."""
    python, torch = sys.version_info[:2], _torch_version()
    if python < OLDEST_PYTHON:
        return (
            f"DisTorch needs Python {_text(OLDEST_PYTHON)} or later, and this is {_text(python)} ({sys.executable}): "
            "install a newer ComfyUI beside this one."
        )
    if torch is None:
        return f"DisTorch needs torch, which is not installed for {sys.executable}: is that ComfyUI's Python?"
    if tuple(int(n) for n in re.findall(r"\d+", torch)[:2]) < OLDEST_TORCH:
        return (
            f"DisTorch needs torch {_text(OLDEST_TORCH)} or later, and {torch} is here, which is left as it is: "
            "update ComfyUI with its torch (for the portable version: update\\update_comfyui_and_python_dependencies.bat)."
        )
    return ""


def shortcoming() -> str:
    """One sentence that says what is missing for the pack and what to type, or "" if nothing is."""
    return unserved() or _package_shortcoming()


def broken(error: ImportError) -> str:
    """One sentence for a package that is there and does not load."""
    told = str(error).partition("\n")[0]
    return f"DisTorch's package distorch does not load ({told}): type {remedy(again=True)} and start ComfyUI again."


def remedy(*, again: bool = False) -> str:
    """What to type."""
    force = "--force-reinstall " if again else ""
    return f'"{sys.executable}" -m pip install {force}-r "{FOLDER / "requirements.txt"}"'


def _package_shortcoming() -> str:
    spec = importlib.util.find_spec("distorch")
    if (
        spec is None or spec.origin is None
    ):  # the C++ folder of that name, beside this file, is no package
        return f"DisTorch's package distorch {wanted()} is not installed: type {remedy()} and start ComfyUI again."
    found = _package_version()
    if found != wanted():
        return (
            f"DisTorch's folder needs the package distorch {wanted()}, and {found or 'another state of it'} is installed: "
            f"type {remedy()} and start ComfyUI again."
        )
    return ""


def _package_version() -> str:
    try:
        from distorch import __version__
    except ImportError:  # from before the version had a file of its own
        return ""
    return str(__version__)


def _torch_version() -> str | None:
    try:
        return importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return None


def _text(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def main() -> int:
    """0 when the package is there in the end; says in one sentence why it is not."""
    why = unserved()
    if not why and _package_shortcoming():
        sys.stderr.write("DisTorch: no wheel is installed, building the package\n")
        built = subprocess.run([sys.executable, *BUILD, str(FOLDER)], check=False).returncode == 0
        if not built:
            why = (
                f"DisTorch's package distorch {wanted()} is not there: no wheel of it was found, and it could not be "
                "built here, which needs a C++20 compiler and Abseil's headers (docs/comfyui.md)."
            )
    if why:
        sys.stderr.write(f"{why}\n")
    return 1 if why else 0


if __name__ == "__main__":
    sys.exit(main())
