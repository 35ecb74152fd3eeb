# SPDX-License-Identifier: Apache-2.0
"""check_wheel.py WHEEL...: what a wheel must hold, must not ask for, and how large it may be; a line for each.

Linux: no library but glibc's, libstdc++, libgcc and libtorch_cpu is asked for; `_C` shows nothing but its entry point, so
that no Abseil in the process meets ours; the operators take from torch only functions of its stable C interface.
Windows: nothing but the system's DLLs, Python's and torch_cpu is asked for.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

LARGEST = 2 << 20
LINUX_LIBRARIES = re.compile(r"^(lib(c|m|dl|rt|pthread|stdc\+\+|gcc_s|torch_cpu)\.so(\.\d+)?|ld-linux-x86-64\.so\.2)$")  # fmt: skip
WINDOWS_LIBRARIES = re.compile(r"^(KERNEL32|USER32|ADVAPI32|dbghelp|bcrypt|msvcrt|api-ms-win-[\w-]+|python3\d+|torch_cpu)\.dll$", re.IGNORECASE)  # fmt: skip
SYSTEM_SYMBOL = re.compile(r"@(GLIBC|GLIBCXX|CXXABI|GCC)_|^(_ITM_|__gmon_start__|__cxa_finalize)")
STABLE_SYMBOL = re.compile(r"^(aoti_torch_|torch_)\w+$")
PARTS = {
    "linux": ("_C.cpython-{v}-x86_64-linux-gnu.so", "libdistorch_ops.so"),
    "win": ("_C.cp{v}-win_amd64.pyd", "libdistorch_ops.dll"),
}


def _output(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _symbols(binary: Path, which: str) -> list[str]:
    lines = _output("nm", "--dynamic", which, binary).splitlines()
    return [line.split()[-1] for line in lines]


def linux_problems(core: Path, operators: Path) -> list[str]:
    """Return what is wrong with the two binaries of a wheel for Linux."""
    found = []
    for binary in (core, operators):
        dynamic = _output("readelf", "--dynamic", "--wide", binary)
        needed = re.findall(r"\(NEEDED\).*\[(.+)\]", dynamic)
        found += [f"{binary.name} asks for {n}" for n in needed if not LINUX_LIBRARIES.match(n)]
        found += [f"{binary.name} has a run path: {p}" for p in re.findall(r"\((?:RUNPATH|RPATH)\).*\[(.+)\]", dynamic)]  # fmt: skip
    shown = [s for s in _symbols(core, "--defined-only") if s != "PyInit__C"]
    found += [f"{core.name} shows {symbol}" for symbol in shown]
    taken = [s for s in _symbols(operators, "--undefined-only") if not SYSTEM_SYMBOL.search(s)]
    found += [f"{operators.name} needs {s}, which is not of torch's stable interface" for s in taken if not STABLE_SYMBOL.match(s)]  # fmt: skip
    return found


def windows_problems(core: Path, operators: Path) -> list[str]:
    """Return what is wrong with the two binaries of a wheel for Windows."""
    found = []
    for binary in (core, operators):
        headers = _output("x86_64-w64-mingw32-objdump", "--private-headers", binary)
        needed = re.findall(r"DLL Name: (.+)", headers)
        found += [f"{binary.name} asks for {n}" for n in needed if not WINDOWS_LIBRARIES.match(n)]
        table = re.search(r"\[Ordinal/Name Pointer\] Table\n((?:\s*\[.*\n)+)", headers)
        names = [line.split()[-1] for line in table[1].splitlines()] if table else []
        found += [f"{binary.name} shows {n}" for n in names if n != "PyInit__C"]
    return found


def check(wheel: Path) -> list[str]:
    """Return what is wrong with a wheel."""
    name = re.fullmatch(r"distorch-([\w.]+)-cp(\d+)-cp(\d+)-(manylinux_2_(\d+)_x86_64|win_amd64)\.whl", wheel.name)  # fmt: skip
    if name is None or name[2] != name[3] or int(name[5] or 0) > 34:
        return [f"the name says another system than the ones meant: {wheel.name}"]
    found = []
    if wheel.stat().st_size > LARGEST:
        found.append(f"{wheel.stat().st_size} bytes, more than {LARGEST}")
    system = "win" if name[4].startswith("win") else "linux"
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
        root, info = Path(folder) / "distorch", Path(folder) / f"distorch-{name[1]}.dist-info"
        core, operators = (root / part.format(v=name[2]) for part in PARTS[system])
        asked = [core, operators, root / "__init__.py", root / "py.typed", info / "METADATA"]
        asked += [info / "licenses" / "LICENSE", info / "sboms" / "distorch.cdx.json"]
        found += [f"{p.relative_to(folder)} is not in it" for p in asked if not p.is_file()]
        if found:
            return found
        binaries = {p for p in root.rglob("*") if p.suffix in {".so", ".pyd", ".dll"}}
        found += [f"{p.name} is in it" for p in sorted(binaries - {core, operators})]
        bom = json.loads((info / "sboms" / "distorch.cdx.json").read_text())
        if not all(part["version"] for part in bom["components"]) or "absl" not in str(bom).replace("abseil", "absl"):  # fmt: skip
            found.append("the bill of materials lacks a version")
        found += (linux_problems if system == "linux" else windows_problems)(core, operators)
    return found


def main() -> int:
    """Check each wheel; 1 where anything is wrong."""
    failed = False
    for wheel in map(Path, sys.argv[1:]):
        problems = check(wheel)
        failed = failed or bool(problems)
        print(f"{wheel.stat().st_size / 1e6:6.2f} MB  {wheel.name}  {'; '.join(problems) or 'ok'}")
    return failed


if __name__ == "__main__":
    sys.exit(main())
