# SPDX-License-Identifier: Apache-2.0
"""One real ComfyUI server (`main.py --cpu`) with simulated devices and the pack of this checkout."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import torch

GIB = 2**30
# How many times longer than usual to wait: for an emulator, for a machine that does much else.
PATIENCE = float(os.environ.get("DISTORCH_TEST_PATIENCE", "1"))
_PACK = (
    *("__init__.py", "install.py", "requirements.txt", "pyproject.toml"),
    *("example_workflows", "nodes", "patches", "web"),
)
_EXTRA_PATHS = "distorch_test:\n    custom_nodes: {}\n"


def repository_root() -> pathlib.Path:
    """The checkout that holds this file."""
    return pathlib.Path(__file__).resolve().parents[4]


def staged() -> pathlib.Path:
    """Where the build puts the Python packages."""
    return repository_root() / "build" / "dev" / "python"


@dataclasses.dataclass(frozen=True)
class Version:
    """A ComfyUI checkout, with DynamicVRAM on or off."""

    path: pathlib.Path
    dynamic: bool

    @property
    def name(self) -> str:
        return f"{self.path.name}{'-dynamic' if self.dynamic else ''}"

    @property
    def number(self) -> tuple[int, ...]:
        """The version as ComfyUI states it. For test data only: the pack itself never asks."""
        text = (self.path / "comfyui_version.py").read_text()
        return tuple(int(part) for part in text.split('"')[1].split("."))


def versions(dynamic: bool | None = None) -> list[Version]:
    """Each checkout of `COMFYUI_PATH`; those that know DynamicVRAM twice, with it on first.

    `dynamic` keeps those with it on (True) or off (False).
    """
    found = []
    for part in filter(None, os.environ.get("COMFYUI_PATH", "").split(os.pathsep)):
        path = pathlib.Path(part)
        if not (path / "main.py").exists():
            raise FileNotFoundError(f"COMFYUI_PATH names {part}, which holds no main.py")
        if "class ModelPatcherDynamic" in (path / "comfy/model_patcher.py").read_text():
            found.append(Version(path, True))
        found.append(Version(path, False))
    return [v for v in found if dynamic is None or v.dynamic == dynamic]


class ComfyError(RuntimeError):
    """A workflow that was refused, or failed; the message is ComfyUI's."""


@dataclasses.dataclass
class Result:
    """What a workflow left: `outputs` by node id, `values` by the name given to DistorchTestSave."""

    prompt_id: str
    outputs: dict[str, Any]
    values: dict[str, Any]
    seconds: float


# A function, so that no name of the server's namespace goes on holding a model.
LET_GO = """
def _let_go():
    import sys
    for name, module in list(sys.modules.items()):
        if name.endswith("patches.ejecting.keep"):
            for model in module.managed():
                module.release(model)

_let_go()
"""


class ComfyServer:
    """A running server; `stop()` ends it. Not for use by several threads at once."""

    def __init__(
        self,
        version: Version,
        base: pathlib.Path,
        *,
        capacities: Sequence[int] = (8 * GIB, 8 * GIB, 8 * GIB),
        arguments: Sequence[str] = (),
        environment: dict[str, str] | None = None,
        packs: Sequence[pathlib.Path] = (),
    ) -> None:
        """Starts it in `base` (made if missing; models go to `base/models/...`).

        Args:
            version: which ComfyUI.
            base: its base directory.
            capacities: bytes of each simulated device; none for the processor alone. ComfyUI keeps 1.2 GB free for itself.
            arguments: more arguments of `main.py`.
            environment: more environment variables.
            packs: more custom node folders to copy in.
        """
        self.version, self.base = version, base
        self.port = _free_port()
        self.log_path = base / "server.log"
        self._install(packs)
        self.capacities = tuple(capacities)
        config = {"capacities": list(capacities), "dynamic": version.dynamic}
        settings = {"DISTORCH_TEST_CONFIG": json.dumps(config), **(environment or {})}
        # What it does everywhere but on Windows, where it keeps 600 MiB.
        reserved = ("--reserve-vram", str(400 / 1024)) if capacities else ()
        with self.log_path.open("w") as log:
            self._process = subprocess.Popen(
                [*self._command(), *reserved, *arguments],
                cwd=version.path,
                env={**python_environment(), **settings},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            self._wait_until_ready(180 * PATIENCE)
        except BaseException:
            self.stop()
            raise

    def _install(self, packs: Sequence[pathlib.Path]) -> None:
        setup = self.base / "custom_nodes" / "distorch_test_setup"
        pack = self.base / "packs" / "DisTorch"
        for folder in ("models", "input", "output", "temp", "user"):
            (self.base / folder).mkdir(parents=True, exist_ok=True)
        shutil.copytree(pathlib.Path(__file__).parents[1] / "setup_pack", setup, dirs_exist_ok=True)
        pack.mkdir(parents=True, exist_ok=True)
        for name in _PACK:
            source = repository_root() / name
            if source.is_dir():
                shutil.copytree(source, pack / name, dirs_exist_ok=True)
            elif source.exists():
                shutil.copy(source, pack / name)
        for other in packs:
            shutil.copytree(other, self.base / "packs" / other.name, dirs_exist_ok=True)
        (self.base / "extra_paths.yaml").write_text(_EXTRA_PATHS.format(self.base / "packs"))

    def _command(self) -> list[str]:
        python = os.environ.get("COMFYUI_PYTHON", sys.executable)
        return [
            *(python, "main.py", "--cpu", "--port", str(self.port), "--disable-auto-launch"),
            *("--base-directory", str(self.base), "--use-pytorch-cross-attention"),
            *("--extra-model-paths-config", str(self.base / "extra_paths.yaml")),
            *("--database-url", f"sqlite:///{self.base / 'comfyui.db'}"),
        ]

    def _wait_until_ready(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise ComfyError(f"ComfyUI ended at start:\n{self.log()[-4000:]}")
            try:
                self.get("/system_stats")
                return
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.2)
        raise ComfyError(f"ComfyUI did not start in {seconds} s:\n{self.log()[-4000:]}")

    def request(self, path: str, body: object | None = None) -> Any:
        """GET without a body, else POST of it as JSON; the answer's JSON, or None when empty."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", data, {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=120 * PATIENCE) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            raise ComfyError(error.read().decode()) from None
        return json.loads(text) if text else None

    def get(self, path: str) -> Any:
        """GET of JSON."""
        return self.request(path)

    def evaluate(self, code: str) -> Any:
        """Runs Python in the server; the answer is what it leaves in `result` (as JSON)."""
        answer = self.request("/distorch_test/eval", {"code": code})
        if "error" in answer:
            raise ComfyError(answer["error"])
        return answer["result"]

    def run(
        self, workflow: dict[str, Any], timeout: float = 240, *, client: str | None = None
    ) -> Result:
        """Queues a workflow in API form and waits. Raises ComfyError when refused or failed.

        `client`: who is told of it over the websocket.
        """
        start = time.monotonic()
        body = {"prompt": workflow, "client_id": client or uuid.uuid4().hex}
        queued = self.request("/prompt", body)
        prompt_id = queued["prompt_id"]
        while time.monotonic() - start < timeout * PATIENCE:
            history = self.get(f"/history/{prompt_id}").get(prompt_id)
            if history:
                return self._finished(prompt_id, history, time.monotonic() - start)
            if self._process.poll() is not None:
                raise ComfyError(f"ComfyUI died:\n{self.log()[-4000:]}")
            time.sleep(0.05)
        raise ComfyError(f"the workflow did not end in {timeout} s:\n{self.log()[-4000:]}")

    def _finished(self, prompt_id: str, history: dict[str, Any], seconds: float) -> Result:
        if history["status"]["status_str"] != "success":
            errors = [m[1] for m in history["status"]["messages"] if m[0] == "execution_error"]
            raise ComfyError(errors[0]["exception_message"] if errors else str(history["status"]))
        values = {}
        for output in history["outputs"].values():
            for name in output.get("saved", []):
                values[name] = torch.load(self.base / "output" / f"{name}.pt")
        return Result(prompt_id, history["outputs"], values, seconds)

    def free(
        self, *, unload_models: bool = True, free_memory: bool = True, let_go: bool = True
    ) -> None:
        """POST /free as ComfyUI-Manager sends it, then waits until the worker has done it.

        `let_go` flags every managed model first, as `keep_loaded` off does: then nothing is kept.
        """
        if let_go:
            self.evaluate(LET_GO)
        mark = self.worker_events()
        self.request("/free", {"unload_models": unload_models, "free_memory": free_memory})
        self.wait_for_flags(mark)

    def worker_events(self) -> int:
        """How often the worker has asked for flags and for work since this was asked first."""
        return int(self.evaluate(_WATCH_WORKER))

    def wait_for_flags(self, mark: int) -> None:
        """Waits until the worker has acted on flags that were set since there were `mark` of its events."""
        for _ in range(400):
            events = self.evaluate("result = _worker_events")[mark:]
            if "flags" in events and "get" in events[events.index("flags") :]:
                return
            time.sleep(0.05)
            self.evaluate(_WAKE_WORKER.format(mark=mark))
        raise ComfyError("the worker did not act on its flags")

    def log(self) -> str:
        """All that the server printed."""
        return self.log_path.read_text(errors="replace")

    def stop(self) -> None:
        """Ends the server and waits for it."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


#: Starts a server of a test's own: capacities of its devices, and arguments of `ComfyServer`.
Start = Callable[..., ComfyServer]


# The worker reads the flags, acts on them, and only then asks the queue for more work.
_WATCH_WORKER = """
import server as _server
_queue = _server.PromptServer.instance.prompt_queue
if "_worker_events" not in globals():
    _worker_events = []
    _get_flags, _get = _queue.get_flags, _queue.get
    def _noted_flags(*args, **kwargs):
        flags = _get_flags(*args, **kwargs)
        if flags:
            _worker_events.append("flags")
        return flags
    def _noted_get(*args, **kwargs):
        _worker_events.append("get")
        return _get(*args, **kwargs)
    _queue.get_flags, _queue.get = _noted_flags, _noted_get
result = len(_worker_events)
"""


# A flag that is set while the worker collects garbage wakes nobody: ComfyUI loses that notification.
_WAKE_WORKER = """
if "flags" not in _worker_events[{mark}:]:
    with _queue.mutex:
        _queue.not_empty.notify()
"""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def python_environment(*before: pathlib.Path) -> dict[str, str]:
    """This process's, with the staged Python packages of the build on the path, after the folders `before`."""
    paths = [*map(str, before), str(staged()), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
