# SPDX-License-Identifier: Apache-2.0
"""Writes `bindings/distorch/_C.pyi` from the compiled core, which says itself what it has (pybind11-stubgen).

python tools/make_stub.py            # write it
python tools/make_stub.py --check    # status 1 if the one that is there is another
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STUB = ROOT / "bindings" / "distorch" / "_C.pyi"

_HEAD = "# SPDX-License-Identifier: Apache-2.0\n# Written by tools/make_stub.py.\n"
# What is not of the core but of this machine, or says less than is meant.
_CHANGES = (
    (r"typing\.SupportsInt \| typing\.SupportsIndex", "int"),  # pybind11 takes more than we give it
    (r"typing\.SupportsFloat \| typing\.SupportsIndex", "float"),
    (r"def __eq__\(self, \w+: \w+\)", "def __eq__(self, other: object)"),
    (r"^(\w+: (?:str|int)) = .*$", r"\1"),  # values
    (r"^__all__.*$", ""),
)


def generated() -> str:
    """Return the stub of the core that Python finds. Raises RuntimeError where something in it has no Python name."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pybind11_stubgen", "--exit-code", "-o", folder]
        done = subprocess.run(
            [*command, "distorch._C"], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(done.stderr)
        text = (Path(folder) / "distorch" / "_C.pyi").read_text(encoding="utf-8")
    for pattern, replacement in _CHANGES:
        text = re.sub(pattern, replacement, text, flags=re.MULTILINE)
    text = _ruff(_HEAD + text, "check", "--select", "I", "--fix", "--quiet")
    return _ruff(text, "format")


def _ruff(text: str, *command: str) -> str:
    whole = [sys.executable, "-m", "ruff", *command, "--stdin-filename", str(STUB), "-"]
    return subprocess.run(
        whole, input=text, capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout


def main(arguments: list[str]) -> int:
    """Write the stub, or compare it."""
    text = generated()
    if "--check" not in arguments:
        STUB.write_text(text, encoding="utf-8")
    elif STUB.read_text(encoding="utf-8") != text:
        print(f"{STUB} is not what the compiled core says: run python tools/make_stub.py")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
