# SPDX-License-Identifier: Apache-2.0
"""Run by ComfyUI-Manager after it has fetched or updated this folder: builds the package against the torch that is there."""

from __future__ import annotations

import pathlib
import subprocess
import sys

COMMAND = ("-m", "pip", "install", "--no-build-isolation", "--no-deps")


def main() -> int:
    """Exit status of pip; on a failure says what has to be there."""
    folder = pathlib.Path(__file__).resolve().parent
    status = subprocess.run([sys.executable, *COMMAND, str(folder)], check=False).returncode
    if status != 0:
        sys.stderr.write(
            "DisTorch could not be built. A C++20 compiler, libabsl-dev and torch 2.10 or later are needed "
            f"(docs/comfyui.md); then run: {sys.executable} {__file__}\n"
        )
    return status


if __name__ == "__main__":
    sys.exit(main())
