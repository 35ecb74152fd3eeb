# SPDX-License-Identifier: Apache-2.0
"""For check_install.py: a fresh environment, a fresh copy of ComfyUI in it, and that ComfyUI running."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
# What torch and its imports are made of: all that an environment has in which the package is to be built.
TORCH = (
    *("torch", "functorch", "torchgen", "torch-*.dist-info", "typing_extensions*", "numpy", "numpy.libs", "numpy-*"),
    *("filelock*", "fsspec*", "sympy*", "mpmath*", "networkx*", "jinja2*", "markupsafe*"),
    *("nvidia", "nvidia_*", "triton*", "cuda", "cuda_*"),
)  # fmt: skip


def run(
    *command: str | Path,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    status: int | None = 0,
) -> str:
    """Run a command with none of the caller's Python settings; returns what it said. Raises if it ends otherwise."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "COMFYUI"))}
    result = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**clean, **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if status is not None and result.returncode != status:
        raise SystemExit(
            f"{' '.join(map(str, command))} ended with {result.returncode}:\n{result.stdout[-4000:]}"
        )
    return result.stdout


def site_of(python: Path) -> Path:
    """The folder into which a Python installs."""
    return Path(
        run(python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])").strip()
    )


def listing(python: Path) -> set[str]:
    """What is installed there, by the names of files and folders."""
    return {path.name for path in site_of(python).iterdir()} - {"__pycache__"}


def environment(folder: Path, lender: Path, *, torch_alone: bool = False) -> Path:
    """A new environment; returns its Python. Packages of `lender`'s are seen in it: torch alone, or all of them."""
    run(lender, "-m", "venv", folder)
    python = folder / "bin" / "python"
    site = site_of(python)
    if torch_alone:
        for pattern in TORCH:
            for path in site_of(lender).glob(pattern):
                (site / path.name).symlink_to(path)
    else:
        told = run(
            lender,
            "-c",
            "import sys; print('\\n'.join(p for p in sys.path if 'site-packages' in p))",
        )
        (site / "lent.pth").write_text(told)
    return python


class ComfyUI:
    """A copy of a checkout, for one environment. `start()` runs it until the block ends."""

    def __init__(self, checkout: Path, folder: Path, python: Path, *arguments: str) -> None:
        self.folder, self.python = folder, python
        self.arguments = arguments
        skip = shutil.ignore_patterns(".git", "__pycache__", "tests", "tests-unit")
        shutil.copytree(checkout, folder, ignore=skip, symlinks=True)
        self.pack = folder / "custom_nodes" / "DisTorch"
        self.log = folder.parent / "comfyui.log"
        write_model(folder / "models" / "diffusion_models" / "small.safetensors")

    @contextlib.contextmanager
    def start(self) -> Iterator[ComfyUI]:
        """Wait until it answers; end it afterwards."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "COMFYUI"))}
        command = [self.python, "-s", self.folder / "main.py", "--cpu", "--disable-auto-launch"]
        with self.log.open("w") as log, subprocess.Popen(
            [*map(str, command), "--port", str(self.port), *self.arguments],
            cwd=self.folder.parent, env=clean, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
        ) as process:  # fmt: skip
            try:
                self._wait(process)
                yield self
            finally:
                process.terminate()

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            if process.poll() is not None:
                break
            with contextlib.suppress(OSError):
                self.get("/system_stats")
                return
            time.sleep(0.3)
        raise SystemExit(f"ComfyUI did not start:\n{self.log.read_text(errors='replace')[-4000:]}")

    def get(self, path: str, body: object | None = None) -> Any:
        """GET, or POST of a body, as JSON; raises SystemExit with what the server said to a wrong one."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", data, {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            return {"refused": error.read().decode()}

    def nodes(self) -> dict[str, Any]:
        """The pack's nodes, as the front end is told of them."""
        found = self.get("/object_info").items()
        return {k: v for k, v in found if v.get("python_module") == "custom_nodes.DisTorch"}

    def plan(self) -> str:
        """What the node DisTorch Plan says of the small model, or why it was refused."""
        inputs = {
            "file": "diffusion_models/small.safetensors", "compute_device": "cpu", "virtual_vram_gb": 0.0,
            "donor_device": "cpu", "expert_mode_allocations": "cpu,*",
        }  # fmt: skip
        prompt = {"1": {"class_type": "DisTorchPlan", "inputs": inputs}}
        queued = self.get("/prompt", {"prompt": prompt, "client_id": uuid.uuid4().hex})
        if "prompt_id" not in queued:
            return str(queued)
        for _ in range(600):
            history = self.get(f"/history/{queued['prompt_id']}").get(queued["prompt_id"])
            if history:
                outputs = history["outputs"].get("1", {})
                return "".join(outputs.get("text", [str(history["status"])]))
            time.sleep(0.1)
        raise SystemExit("the workflow did not end")

    def said(self) -> list[str]:
        """The lines of the log in which the pack says something."""
        lines = self.log.read_text(errors="replace").splitlines()
        return [line for line in lines if "DisTorch" in line and "seconds" not in line]


@dataclasses.dataclass
class Setting:
    """What a way is given: an empty folder, and where things come from."""

    work: Path
    python: Path
    checkout: Path | None
    wheels: Path

    def environment(self, name: str = "env") -> Path:
        """A fresh environment that borrows ComfyUI's requirements; returns its Python."""
        return environment(self.work / name, self.python)

    def comfyui(self, python: Path, *arguments: str, beside: Path | None = None) -> ComfyUI:
        """A fresh copy of ComfyUI."""
        if self.checkout is None:
            raise SystemExit("name a checkout of ComfyUI: --comfyui FOLDER, or COMFYUI_PATH")
        return ComfyUI(self.checkout, (beside or self.work) / "ComfyUI", python, *arguments)

    def wheel(self, python: Path) -> Path:
        """The wheel for that Python."""
        tag = run(python, "-c", "import sys; print('cp%d%d' % sys.version_info[:2])").strip()
        found = sorted(self.wheels.glob(f"distorch-*-{tag}-{tag}-*linux*.whl"))
        if not found:
            raise SystemExit(f"no wheel for {tag} in {self.wheels}: make wheels")
        return found[-1]

    def requirements(self, comfyui: ComfyUI) -> None:
        """What the README says to type."""
        pins = comfyui.pack / "requirements.txt"
        run(comfyui.python, "-m", "pip", "install", "-r", pins, env=self.index())

    def index(self) -> dict[str, str]:
        """pip finds packages in the folder of wheels and nowhere else."""
        return {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.wheels)}


def write_model(path: Path) -> None:
    """A diffusion model of 8 layers of 64 KB: names, sizes and zeros."""
    path.parent.mkdir(parents=True, exist_ok=True)
    size = 128 * 128 * 4
    header = {
        f"blocks.{i}.weight": {"dtype": "F32", "shape": [128, 128], "data_offsets": [i * size, (i + 1) * size]}
        for i in range(8)
    }  # fmt: skip
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(8 * size))


def wheel_of_version(wheel: Path, version: str, folder: Path) -> Path:
    """The same wheel under another version, as an older one would be."""
    old = wheel.name.split("-")[1]
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / wheel.name.replace(f"-{old}-", f"-{version}-", 1)
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(target, "w") as made:
        for entry in source.infolist():
            data = source.read(entry)
            if entry.filename.endswith("/METADATA"):
                data = data.replace(
                    f"\nVersion: {old}\n".encode(), f"\nVersion: {version}\n".encode()
                )
            if entry.filename == "distorch/_version.py":
                data = data.replace(old.encode(), version.encode())
            if entry.filename.endswith(
                "/RECORD"
            ):  # pip does not compare the hashes of a wheel's files
                data = data.replace(f"-{old}.dist".encode(), f"-{version}.dist".encode())
            made.writestr(entry.filename.replace(f"-{old}.dist", f"-{version}.dist"), data)
    return target


def say(text: str) -> None:
    """One line at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
