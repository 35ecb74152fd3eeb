# SPDX-License-Identifier: Apache-2.0
"""The pack opens no connection inside ComfyUI, where no route leads out: it starts, places, runs, shows, unloads."""

from __future__ import annotations

import json
import os
import pathlib
import socket
import subprocess
import sys

import pytest
from comfy_harness import ComfyServer, python_environment, staged, versions
from comfy_harness.workflows import wan
from no_network import alone

pytestmark = [pytest.mark.comfy, pytest.mark.timeout(580)]

INSIDE = "DISTORCH_TEST_INSIDE_NAMESPACE"
# From before the first line of ComfyUI on: who asks for a name or a connection, and of what.
RECORDER = """
import json, os, sys, traceback
_EVENTS = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "urllib.Request")
def _note(event, args):
    if event in _EVENTS:
        files = [frame.filename for frame in traceback.extract_stack()]
        line = json.dumps([event, repr(args[1:] if event == "socket.connect" else args), files])
        descriptor = os.open(os.environ["DISTORCH_TEST_CONNECTIONS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(descriptor, (line + "\\n").encode())
        os.close(descriptor)
sys.addaudithook(_note)
"""
CONNECT = """
import socket
try:
    socket.create_connection(("192.0.2.1", 80), timeout=5).close()
    result = "connected"
except OSError as error:
    result = type(error).__name__ + ": " + str(error)
"""


def _loopback_up() -> None:
    import fcntl
    import struct

    set_flags, up = 0x8914, 1  # SIOCSIFFLAGS, IFF_UP
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, set_flags, struct.pack("16sh", b"lo", up))


def _asked(recorded: pathlib.Path) -> list[tuple[str, str, list[str]]]:
    return [tuple(json.loads(line)) for line in recorded.read_text().splitlines()]


@pytest.mark.parametrize("version", versions() or [None], ids=lambda v: v.name if v else "none")
def test_the_pack_asks_nobody(
    version: object,
    comfy_models: pathlib.Path,
    tmp_path: pathlib.Path,
    request: pytest.FixtureRequest,
) -> None:
    if version is None:
        pytest.skip("COMFYUI_PATH is not set")
    words = alone()
    if words and INSIDE not in os.environ:
        again = [sys.executable, "-m", "pytest", "-q", "-n0", f"--basetemp={tmp_path / 'inside'}"]
        ended = subprocess.run(
            [*words, *again, request.node.nodeid],
            cwd=request.config.rootpath,
            env={**os.environ, INSIDE: "1"},
            capture_output=True,
            text=True,
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        assert "1 passed" in ended.stdout
        return
    if words:
        _loopback_up()
    (tmp_path / "models").symlink_to(comfy_models)
    recorder, recorded = tmp_path / "recorder", tmp_path / "connections.txt"
    recorder.mkdir()
    (recorder / "sitecustomize.py").write_text(RECORDER)
    comfy = ComfyServer(
        version,
        tmp_path,
        environment={
            "PYTHONPATH": python_environment(recorder)["PYTHONPATH"],
            "DISTORCH_TEST_CONNECTIONS": str(recorded),
        },
    )
    try:
        result = comfy.run(wan("sim:0,4mb;sim:1,5mb;cpu,*", 2))
        assert "wan" in result.values
        for path in ("models", "devices", "placements", "history"):
            comfy.get(f"/distorch/{path}")
        comfy.free()
        before = len(_asked(recorded)) if recorded.exists() else 0
        told = comfy.evaluate(CONNECT)
    finally:
        comfy.stop()
    asked = _asked(recorded)
    # The recorder records: this connection is in it, and leads nowhere.
    assert (
        sum(event == "socket.connect" and "192.0.2.1" in what for event, what, _ in asked[before:])
        == 1
    )
    assert told.startswith("OSError")
    pack = (str(tmp_path / "packs/DisTorch"), str(staged()))
    ours = [each for each in asked[:before] if any(file.startswith(pack) for file in each[2])]
    assert ours == []
