# SPDX-License-Identifier: Apache-2.0
"""check_install.py WAY…: installs as people do, in a fresh environment with real ComfyUI, and looks at what came of it.

    source     pip builds against the torch that is there and brings no second one (needs no ComfyUI)
    clone      git clone into custom_nodes, pip install -r requirements.txt
    manager    the same by ComfyUI-Manager's cm-cli, from PyPI
    portable   in the layout of the portable version: an embedded Python beside ComfyUI, a path with a space and an umlaut
    folder     pip install --find-links: no pack, the command line and the library
    upgrade    folder and package become newer while ComfyUI runs the old ones
    uninstall  ComfyUI and its environment are as before
    bare       neither wheel nor compiler
    oldtorch   a torch older than 2.10, and a Python that is not served
    all        each of them

--python: a Python with ComfyUI's requirements and torch, of which the fresh environments borrow (COMFYUI_PYTHON).
--comfyui: a checkout (COMFYUI_PATH). --wheels: where `make wheels` put the wheels (dist/), which stands for PyPI here:
nothing has been published yet.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from fresh_comfyui import ROOT, Setting, environment, listing, run, say, site_of, wheel_of_version
from install_proofs import (
    contents,
    expect,
    only_distorch,
    refuses,
    served,
    version,
    without_compilers,
    works,
)


def clone(pack: Path) -> None:
    """What people do first; the state is the last commit."""
    run("git", "clone", "--quiet", "--no-hardlinks", ROOT, pack)


def source(setting: Setting) -> None:
    """See the top of the file."""
    python = environment(setting.work / "env", setting.python, torch_alone=True)
    before = listing(python)
    run(python, ROOT / "install.py", cwd=setting.work)  # which is what ComfyUI-Manager runs
    program = (
        "import distorch._load as load, torch; "
        "assert load.core().built_with_torch == torch.__version__; load.load_operators(); "
        "print('      built against torch', torch.__version__, load.__file__)"
    )
    told = run(python, "-c", program, cwd=setting.work)
    expect(str(setting.work) in told, "the package of the fresh environment", told)
    say(told.rstrip().rpartition(" ")[0])
    only_distorch(before, python)


def cloned(setting: Setting) -> None:
    """See the top of the file."""
    python = setting.environment()
    comfyui = setting.comfyui(python)
    before = listing(python)
    clone(comfyui.pack)
    setting.requirements(comfyui)
    only_distorch(before, python)
    works(comfyui)


def manager(setting: Setting) -> None:
    """See the top of the file."""
    python = setting.environment()
    run(python, "-m", "pip", "install", "--quiet", "comfyui-manager==4.3")
    comfyui = setting.comfyui(python)
    run("git", "init", "--quiet", comfyui.folder)  # the Manager looks for ComfyUI's own repository
    before = listing(python)
    bare = setting.work / "served" / "DisTorch"
    run("git", "clone", "--quiet", "--bare", "--no-hardlinks", ROOT, bare)
    run("git", "update-server-info", cwd=bare)
    with served(bare.parent) as address:
        told = run(
            *(python, "-m", "cm_cli", "install", f"{address}/DisTorch", "--mode", "cache"),
            env={**setting.index(), "COMFYUI_PATH": str(comfyui.folder)},
        )
    expect("[INSTALLED]" in told, "cm-cli says that it is installed", told[-3000:])
    only_distorch(before, python)
    works(comfyui)


def portable(setting: Setting) -> None:
    """See the top of the file."""
    top = setting.work / "Für ComfyUI" / "ComfyUI_windows_portable"
    top.mkdir(parents=True)
    python = environment(top / "python_embeded", setting.python)
    comfyui = setting.comfyui(python, "--windows-standalone-build", beside=top)
    before = listing(python)
    clone(comfyui.pack)
    command = ("-s", "-m", "pip", "install", "-r", "ComfyUI/custom_nodes/DisTorch/requirements.txt")
    run(python, *command, cwd=top, env=setting.index())
    only_distorch(before, python)
    works(comfyui)
    told = run(
        python, "-s", "-m", "distorch", "doctor", "--comfyui", "ComfyUI", cwd=top, status=None
    )
    expect("broken" not in told, "nothing broken for the doctor", told)


def folder(setting: Setting) -> None:
    """See the top of the file."""
    python = setting.environment()
    before = listing(python)
    find = ("--no-index", "--find-links", setting.wheels, "distorch")
    run(python, "-m", "pip", "install", *find)
    only_distorch(before, python)
    told = run(python, "-m", "distorch", "doctor", cwd=setting.work)
    expect(f"distorch core        {version()}" in told, "the core's row", told)
    say(f"      {next(t for t in told.splitlines() if 'distorch core' in t)}")


def upgrade(setting: Setting) -> None:
    """See the top of the file."""
    python = setting.environment()
    comfyui = setting.comfyui(python)
    clone(comfyui.pack)
    pins, new = comfyui.pack / "requirements.txt", (comfyui.pack / "requirements.txt").read_text()
    pins.write_text(new.replace(version(), "0.0.1"))
    old = wheel_of_version(setting.wheel(python), "0.0.1", setting.work / "old")
    run(python, "-m", "pip", "install", "--no-index", old)
    with comfyui.start():
        first = comfyui.plan()
        expect("0.50" in first, "a plan by the old package", first)
        pins.write_text(new)
        setting.requirements(comfyui)
        told = run(python, "-m", "distorch", "--version", cwd=setting.work).strip()
        expect(told == f"distorch {version()}", "the new package is there", told)
        expect(comfyui.plan() == first, "the running one works on", comfyui.said())
        expect("models" in comfyui.get("/distorch/models"), "the tab as well", comfyui.said())
    say("      the running ComfyUI worked on with the old package; after its next start:")
    works(comfyui)
    # The package alone went back: the folder says so, and its nodes stay.
    run(python, "-m", "pip", "install", "--no-index", old)
    refuses(comfyui, f"needs the package distorch {version()}, and 0.0.1 is installed")


def uninstall(setting: Setting) -> None:
    """See the top of the file."""
    python = setting.environment()
    comfyui = setting.comfyui(python)
    with comfyui.start():
        nodes = set(comfyui.get("/object_info"))
    before, files = listing(python), contents(comfyui.folder)
    clone(comfyui.pack)
    setting.requirements(comfyui)
    works(comfyui)
    run(python, "-m", "pip", "uninstall", "--yes", "distorch")
    shutil.rmtree(comfyui.pack)
    expect(listing(python) == before, "the environment as before", listing(python) ^ before)
    after = contents(comfyui.folder)
    changed = sorted(k for k in {*files, *after} if files.get(k) != after.get(k))
    expect(not changed, "ComfyUI's files as before", changed)
    with comfyui.start():
        expect(set(comfyui.get("/object_info")) == nodes, "ComfyUI's nodes as before")
        expect(not comfyui.said(), "no word of DisTorch", comfyui.said())
    say(f"      {len(files)} files, {len(nodes)} nodes and the environment are as before")


def bare(setting: Setting) -> None:
    """See the top of the file."""
    python = setting.environment()
    comfyui = setting.comfyui(python)
    clone(comfyui.pack)
    before = listing(python)
    nothing = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": ""}
    run(
        python,
        "-m",
        "pip",
        "install",
        "-r",
        comfyui.pack / "requirements.txt",
        env=nothing,
        status=1,
    )
    told = run(
        *(python, "install.py"), cwd=comfyui.pack, status=1,
        env={**nothing, "PATH": without_compilers(setting.work / "path"), "CXX": "", "CC": ""},
    )  # fmt: skip
    sentence = told.strip().splitlines()[-1]
    expect(
        "no wheel of it was found, and it could not be built here" in sentence, "one sentence", told
    )
    say(f"      install.py: {sentence}")
    expect(listing(python) == before, "nothing was installed", listing(python) - before)
    refuses(comfyui, f"package distorch {version()} is not installed: type ")


def old_torch(setting: Setting) -> None:
    """See the top of the file."""
    python = setting.environment()
    comfyui = setting.comfyui(python)
    clone(comfyui.pack)
    # torch's own files are lent; only the version that pip and the pack read is an older one.
    told_as = site_of(python) / "torch-2.9.1.dist-info"
    told_as.mkdir()
    (told_as / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 2.9.1\n")
    before = listing(python)
    said = run(python, "install.py", cwd=comfyui.pack, env=setting.index(), status=1).strip()
    expect(
        said.startswith("DisTorch needs torch 2.10 or later, and 2.9.1 is here"), "a sentence", said
    )
    expect("\n" not in said and listing(python) == before, "nothing was installed", said)
    setting.requirements(comfyui)
    only_distorch(before, python)  # so torch is the one that was there
    refuses(
        comfyui, "DisTorch needs torch 2.10 or later, and 2.9.1 is here, which is left as it is"
    )
    for old in sorted(Path.home().glob(".pyenv/versions/3.9.*/bin/python")):
        said = run(old, "install.py", cwd=comfyui.pack, status=1).strip()
        expect(
            said.startswith("DisTorch needs Python 3.10 or later, and this is 3.9"),
            "a sentence",
            said,
        )
        say(f"      {said}")


WAYS: dict[str, Callable[[Setting], None]] = {
    "source": source, "clone": cloned, "manager": manager, "portable": portable, "folder": folder,
    "upgrade": upgrade, "uninstall": uninstall, "bare": bare, "oldtorch": old_torch,
}  # fmt: skip


def main() -> int:
    """Try the ways that are named, each in a folder of its own; the first that fails ends it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    first = next(filter(None, os.environ.get("COMFYUI_PATH", "").split(os.pathsep)), None)
    parser.add_argument("ways", nargs="+", metavar="WAY", choices=[*WAYS, "all"])
    parser.add_argument(
        "--python", type=Path, default=os.environ.get("COMFYUI_PYTHON", sys.executable)
    )
    parser.add_argument("--comfyui", type=Path, default=first)
    parser.add_argument("--wheels", type=Path, default=ROOT / "dist")
    args = parser.parse_args()
    for name in WAYS if "all" in args.ways else args.ways:
        begin = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="distorch-install-") as work:
            say(f"{name}:")
            checkout = args.comfyui and Path(args.comfyui).resolve()
            WAYS[name](
                Setting(
                    Path(work).resolve(),
                    Path(os.path.abspath(args.python)),  # noqa: PTH100 - a link must stay one
                    checkout,
                    args.wheels.resolve(),
                )
            )
        say(f"ok    {name}, {time.monotonic() - begin:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
