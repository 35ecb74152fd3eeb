# SPDX-License-Identifier: Apache-2.0
"""Runs `distorch` without what Python lacks on Windows: python like_windows.py COMMAND ARGUMENTS…

No test of Windows itself, but whatever is imported or called although it is not there ends in a traceback.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import Any

MODULES = ("fcntl", "termios", "pwd", "resource", "tty", "pty")
NAMES = ((os, "pread"), (os, "O_CLOEXEC"), (os, "uname"), (signal, "SIGHUP"))


def hide() -> None:
    """Take it away."""
    for name in MODULES:
        sys.modules[name] = None  # type: ignore[assignment]
    for module, name in NAMES:
        delattr(module, name)

    def none(*_arguments: Any) -> None:
        raise NotImplementedError

    asyncio.SelectorEventLoop.add_signal_handler = none  # type: ignore[method-assign]


if __name__ == "__main__":
    hide()
    from distorch.tools.cli import main

    sys.exit(main(sys.argv[1:]))
