# SPDX-License-Identifier: Apache-2.0
"""For check_install.py: what shows that an installation works, or says well why it does not."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

from fresh_comfyui import ROOT, ComfyUI, listing, say

COMPILERS = ("g++", "c++", "gcc", "cc", "clang++", "clang", "cmake", "ninja")


def expect(found: bool, what: str, shown: object = "") -> None:
    """End with what was expected and what was there instead."""
    if not found:
        raise SystemExit(f"expected: {what}\nfound: {shown}")


def version() -> str:
    """Of this checkout."""
    line = next(
        t for t in (ROOT / "pyproject.toml").read_text().splitlines() if t.startswith("version")
    )
    return line.split('"')[1]


def works(comfyui: ComfyUI) -> None:
    """The pack is there and its compiled core reads and plans a model."""
    with comfyui.start():
        nodes, text = comfyui.nodes(), comfyui.plan()
        expect("UNETLoaderDisTorch2MultiGPU" in nodes, "the pack's nodes", sorted(nodes))
        expect("cpu" in text and "0.50" in text, "a plan of 0.5 MB on cpu", text)
        expect("models" in comfyui.get("/distorch/models"), "the tab's route", comfyui.said())
    expect(any(f"{len(nodes)} nodes" in t for t in comfyui.said()), "one line", comfyui.said())
    say(f"      {len(nodes)} nodes, a plan by the compiled core, the tab's route")


def only_distorch(before: set[str], python: Path) -> None:
    """pip brought nothing but the package."""
    added = listing(python) - before
    own = {"distorch", f"distorch-{version()}.dist-info"}
    expect(own <= added and all(n in own or n == "distorch.libs" for n in added), str(own), added)
    say(f"      added to the environment: {', '.join(sorted(added))}")


def refuses(comfyui: ComfyUI, why: str) -> None:
    """ComfyUI starts as ever, the nodes keep their ids, and say why they do not run."""
    with comfyui.start():
        nodes, text = comfyui.nodes(), comfyui.plan()
    expect("UNETLoaderDisTorch2MultiGPU" in nodes, "the ids", sorted(nodes))
    expect(why in text, f"the prompt is refused: {why}", text)
    errors = [line for line in comfyui.log.read_text(errors="replace").splitlines() if why in line]
    expect(bool(errors), f"a line in the log: {why}", comfyui.said())
    expect("Traceback" not in comfyui.log.read_text(errors="replace"), "no traceback")
    say(f"      {len(nodes)} nodes stay and say: {errors[0].partition('DisTorch')[2][:110]}…")


def contents(folder: Path) -> dict[str, str]:
    """The files of a ComfyUI but its caches, logs and database, each with a hash."""
    own = ("user", "temp", "output")
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
        and "__pycache__" not in path.parts
        and path.relative_to(folder).parts[0] not in own
    }


def without_compilers(path: Path) -> str:
    """A PATH with what a system has, and no compiler, cmake or ninja."""
    path.mkdir()
    for place in ("/bin", "/usr/bin"):
        for tool in Path(place).iterdir():
            compiler = any(
                tool.name.startswith((name, f"x86_64-linux-gnu-{name}")) for name in COMPILERS
            )
            if not compiler and not (path / tool.name).exists():
                (path / tool.name).symlink_to(tool)
    return str(path)


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """A folder over HTTP on this machine."""
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Says nothing of each request."""

    def log_message(self, *_args: object) -> None:
        """Nothing."""
