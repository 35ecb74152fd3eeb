# SPDX-License-Identifier: Apache-2.0
"""Commands that run where no route leads out."""

from __future__ import annotations

import shutil
import subprocess


def alone() -> list[str]:
    """The words before a command that run it in a network namespace of its own; none where that is not allowed.

    Its loopback is down.
    """
    program = shutil.which("unshare")
    if program is None:
        return []
    command = [program, "--map-root-user", "--net"]
    tried = subprocess.run([*command, "true"], capture_output=True)
    return command if tried.returncode == 0 else []
