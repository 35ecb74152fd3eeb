# SPDX-License-Identifier: Apache-2.0
"""docs/errors.md is what the sources say, each message of it is asked for by a test, and here are those of no other test."""

from __future__ import annotations

import argparse
import asyncio
import builtins
import importlib.util
import json
import os
import pathlib
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

import distorch_sim
import pytest
import torch
from fake_comfy import FakeComfy

from distorch import _load, model_files
from distorch.tools.cli import e2e, quantities
from distorch.tools.demo import setting
from distorch.tools.e2e.client import Client, UnreachableError
from distorch.tools.monitor import BackgroundMonitor, answers, gpus, http_json, sources

ROOT = pathlib.Path(__file__).resolve().parents[3]
PRELOADED = pathlib.Path(distorch_sim.__file__).parent / "libos_faults.so"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("errors_tool", ROOT / "tools/errors.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = made
    spec.loader.exec_module(made)
    return made


def test_the_page_is_what_the_sources_say(tool: ModuleType) -> None:
    found = tool.messages()
    assert (ROOT / "docs/errors.md").read_text(encoding="utf-8") == tool.page(found)
    assert len(found) > 250


def test_each_message_is_asked_for_by_a_test(tool: ModuleType) -> None:
    strings = "\0".join(tool.asked())
    assert [m for m in tool.messages() if not tool.is_asked(m, strings)] == []


def test_a_message_that_nobody_asks_for_is_seen(tool: ModuleType) -> None:
    code = 'absl::Status F() {\n  return absl::InternalError(absl::StrCat("qwx", a, " never " "was said"));\n}\n'
    (message,) = tool.cc_messages("a.cc", code)
    assert (message.line, message.kind, message.text) == (2, "Internal", "qwx… never was said")
    assert not tool.is_asked(message, "something else that a test says")
    assert tool.is_asked(message, "it has never was said in it")
    (message,) = tool.py_messages("a.py", 'raise ValueError(f"{x} is qwx\\n" + y)')
    assert (message.kind, message.text) == ("ValueError", "… is qwx\n…")


# Of the C++ library, by its bindings.

C = _load.core()
ROWS: list[tuple[str, type[Exception], str, Callable[[], Any]]] = [
    ("no donor", ValueError, "0 bytes or more, and at least one donor",
     lambda: C.Spec.virtual_vram("cuda:0", 1, [])),
    ("order", ValueError, "unknown order 'mixed'; expected auto, contiguous or strided",
     lambda: C.Options(order="mixed")),
    ("a donor that is none", ValueError, "not the name of a device: 'my disk'; expected one as cuda:0 or cpu",
     lambda: C.decide_modes(C.StepProfile(), [("layers.0", "my disk", 1)], [], "cuda:0", "", 2)),
    ("a mode that is none", ValueError, "mode must be auto, stream or migrate, not 'swap'",
     lambda: C.decide_modes(C.StepProfile(), [], [("cuda:1", 1.0, "", "swap")], "cuda:0", "", 2)),
    ("devices of a placement", ValueError, "no device is called 'my disk'",
     lambda: C.Placement(["cpu", "my disk"], 0, [], [])),
    ("tensors of a placement", IndexError, "a tensor's block, first name or device",
     lambda: C.Placement(["cpu"], 0, [], [(0, 0, 0, [1], True, True)])),
    ("what to unload", ValueError, 'of is "flagged", "these" or "all but"',
     lambda: C.ManagedModels(lambda devices: {}, lambda devices: None).unload("some", [], "", False)),
    ("a size on the command line", argparse.ArgumentTypeError, "'big' is no size; expected one such as 64MB",
     lambda: quantities.size("big")),
    ("a port on the command line", argparse.ArgumentTypeError, "'x' is no port; expected 9100 or 0.0.0.0:9100",
     lambda: quantities.address("x")),
    ("a number on the command line", argparse.ArgumentTypeError, "'some words' is no number",
     lambda: e2e._not_negative("some words")),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "words", "call"), [r[1:] for r in ROWS], ids=[r[0] for r in ROWS])
def test_a_wrong_argument_is_told(
    kind: type[Exception], words: str, call: Callable[[], Any]
) -> None:
    with pytest.raises(kind) as told:
        call()
    assert str(told.value) == words


def test_an_unknown_way_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from fake_cuda import FakeCuda

    with pytest.raises(
        ValueError, match="unknown way 'fast'; expected 'direct', 'peer', 'driver' or"
    ):
        FakeCuda(1).router.adopt(0, 1, "fast", 1.0)


def test_operators_that_cannot_be_loaded_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> None:
        raise OSError("no such symbol")

    load: Any = _load.load_operators.__wrapped__  # what was loaded stays
    monkeypatch.setattr(torch.ops, "load_library", refuse)
    with pytest.raises(_load.LoadError, match=r"operators \(libdistorch_ops\)"):
        load()


def library_of(folder: pathlib.Path, name: str, *functions: str) -> pathlib.Path:
    """A library with functions that answer 100."""
    code = "".join(f"int {function}(void) {{ return 100; }}\n" for function in functions)
    (folder / "a.c").write_text(code or "int nothing;\n")
    command = [os.environ.get("CC", "cc"), "-shared", "-fPIC", "-o", folder / name, folder / "a.c"]
    subprocess.run(command, check=True)
    return folder / name


def test_a_driver_that_does_not_work_is_told(tmp_path: pathlib.Path) -> None:
    with pytest.raises(RuntimeError, match="CUDA lacks ") as told:
        C.TransferRouter("libc.so.6", "libc.so.6")
    names = str(told.value).removeprefix("CUDA lacks ").partition(":")[0].split(", ")
    path = str(library_of(tmp_path, "libcuda_stand_in.so", *names))
    words = (
        "cuInit failed with CUDA error 100: run nvidia-smi to see whether the driver works at all"
    )
    with pytest.raises(RuntimeError, match=words):
        C.TransferRouter(path, path)


def test_a_driver_that_is_too_old_is_told(tmp_path: pathlib.Path) -> None:
    library_of(tmp_path, "libnvidia-ml.so.1")
    script = "from distorch import _load\nprint(_load.core().nvml_devices()[2])"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "LD_LIBRARY_PATH": str(tmp_path)},
        capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    words = "libnvidia-ml.so.1 lacks a function of NVML: the driver is too old\n"
    assert done.stdout.endswith(words), done.stderr


def test_no_thread_is_told() -> None:
    """In a process of its own: what refuses threads stands before the C library."""
    script = (
        "import ctypes\nfrom distorch import _load\nC = _load.core()\nsampler = C.MemorySampler(1.0, 10)\n"
        "ctypes.CDLL(None).os_faults_arm(3, 1, True)\ntry:\n    sampler.start()\n"
        "except RuntimeError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "LD_PRELOAD": str(PRELOADED)},
        capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.stdout.startswith("the system gives no thread for distorch-memory: "), done.stderr


# Of the programs.


def test_a_file_that_cannot_be_written_is_told(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r" is a folder$"):
        e2e._check_target(tmp_path)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ValueError, match=f"the folder {tmp_path} cannot be written to$"):
        e2e._check_target(tmp_path / "a.json")


def test_an_index_with_a_long_name_is_told(tmp_path: pathlib.Path) -> None:
    index = tmp_path / "a.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "n" * 300}}))
    with pytest.raises(ValueError, match="it names a file by more than 255 characters"):
        model_files.tensor_sizes(index)


def test_the_demo_without_devices_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *rest: Any) -> Any:
        if name == "distorch_sim":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(
        setting.DemoError, match="there is no GPU, and the simulated one is not built"
    ):
        setting.choose_setting(1 << 20)


def test_nvidia_smi_that_cannot_be_run_is_told(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nvidia-smi").write_bytes(b"no program")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(answers.AnswerError, match="nvidia-smi cannot be run: Exec format error"):
        gpus.smi_gpus()


def answered(*pieces: bytes) -> Any:
    """What a JsonClient makes of one answer, piece by piece."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            with listening.accept()[0] as connection:
                connection.recv(65536)
                for piece in pieces:
                    connection.sendall(piece)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            return http_json.JsonClient(f"http://127.0.0.1:{listening.getsockname()[1]}").get("/")
        finally:
            thread.join()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{", "the answer ends too early"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{", "the answer is no JSON"),
    ],
)
def test_an_answer_that_is_none_is_told(answer: bytes, words: str) -> None:
    with pytest.raises(http_json.FetchError, match=words):
        answered(answer)


def test_a_monitor_runs_once() -> None:
    with FakeComfy() as server:
        monitor = BackgroundMonitor(sources.open_sources(server.url, 1.0, local=False))
        monitor.start()
        try:
            with pytest.raises(RuntimeError, match="a monitor runs once"):
                monitor.start()
        finally:
            monitor.stop()


class Answers:
    """A client with one answer for all."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def get(self, path: str, most: float = 0) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        ({"samples": []}, answers.AnswerError, "no sample in the answer"),
        (http_json.FetchError("HTTP 404", 404), sources.RestError, "the pack is not there"),
    ],
)
def test_a_history_that_is_none_is_told(answer: Any, kind: type[Exception], words: str) -> None:
    client: Any = Answers(answer)
    with pytest.raises(kind, match=words):
        sources.HistorySource(client).read()


@pytest.mark.parametrize(
    ("call", "status", "found", "words"),
    [
        (Client.free, 500, {}, "POST /free: HTTP 500"),
        (Client.version, 200, None, "/system_stats: the answer is no JSON"),
    ],
)
def test_a_server_that_answers_otherwise_is_told(
    call: Callable[[Client], Any], status: int, found: Any, words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    async def exchange(*_: Any) -> tuple[int, Any]:
        return status, found

    client = Client("http://127.0.0.1:8188")
    monkeypatch.setattr(client, "_exchange", exchange)
    with pytest.raises(UnreachableError) as told:
        asyncio.run(call(client))
    assert str(told.value) == words
