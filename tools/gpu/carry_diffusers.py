# SPDX-License-Identifier: Apache-2.0
"""Puts the modules of diffusers that its group offloading imports, and no others, into a folder.

carry_diffusers.py DOWNLOADS FOLDER EXTRA. EXTRA gets what it imports beside that and what may be missing where it is used.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

# The bench was written with this version.
WHEEL = "diffusers==0.42.1"
NEEDS = ("requests", "pillow")
USED = """
import pathlib, sys
from diffusers.hooks import apply_group_offloading
for module in list(sys.modules.values()):
    if (getattr(module, "__name__", "") or "").split(".")[0] == "diffusers" and getattr(module, "__file__", None):
        print(module.__file__)
"""


def run(*folders: Path) -> list[str]:
    """Import what is used from `folders` in a process of its own; returns diffusers' files that were loaded."""
    done = subprocess.run(
        [sys.executable, "-c", USED],
        env={
            "PYTHONPATH": ":".join(map(str, folders)),
            "PATH": "/usr/bin:/bin",
            "HF_HUB_OFFLINE": "1",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"diffusers cannot be imported:\n{done.stderr}")
    return done.stdout.split()


def fetch(wheel: str, downloads: Path) -> Path:
    """Return a wheel's file, downloaded unless it is there."""
    name, version = wheel.split("==")
    if not list(downloads.glob(f"{name}-{version}-*.whl")):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        subprocess.run(
            [*command, "--disable-pip-version-check", "-d", downloads, wheel], check=True
        )
    (found,) = downloads.glob(f"{name}-{version}-*.whl")
    return found


def main() -> int:
    """Run the command line; returns the exit status."""
    downloads, target, extra = (Path(argument) for argument in sys.argv[1:4])
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*command, "--no-compile", "--target", extra, *NEEDS], check=True)
    with tempfile.TemporaryDirectory() as name, zipfile.ZipFile(fetch(WHEEL, downloads)) as archive:
        folder = Path(name)
        archive.extractall(folder)
        files = [f for f in run(folder, extra) if Path(f).is_relative_to(folder)]
        kept = [Path(file).relative_to(folder) for file in files]
        # Importing asks for the version of the installed package.
        kept += [p.relative_to(folder) for p in folder.glob("*.dist-info/*A*A*")]
        kept += [p.relative_to(folder) for p in folder.glob("*.dist-info/licenses/*")]
        for file in kept:
            (target / file).parent.mkdir(parents=True, exist_ok=True)
            (target / file).write_bytes((folder / file).read_bytes())
    run(target, extra)
    print(f"{WHEEL}: {len(files)} modules carried")
    return 0


if __name__ == "__main__":
    sys.exit(main())
