# SPDX-License-Identifier: Apache-2.0
"""A server that plays ComfyUI's memory routes, well or badly, as the test says.

    with FakeComfy([FakeDevice("cuda:0", total=24 * GB, used=8 * GB)]) as server:
        server.form = "mb"            # how /system_stats answers; FORMS
        server.history = history([...])   # None: the pack is not there (404)
        server.fault = "garbage"      # FAULTS; on every path, or only on server.faulty_paths
        server.restart(down=0.5)      # the same port again

A subclass adds routes: override `answer(method, path, query, body)` and fall back to super's. Every request is kept in
`requests`. Handlers run in threads of their own; a fault that blocks ends when the server stops.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, urlsplit

MB = 2**20
GB = 2**30


@dataclass
class FakeDevice:
    """One device; change `used` while the server runs."""

    device: str = "cuda:0"
    total: int = 24 * GB
    used: int = 8 * GB
    name: str = "NVIDIA GeForce RTX 4090"
    torch_total: int = 4 * GB
    torch_free: int = 1 * GB

    @property
    def kind(self) -> str:
        return self.device.partition(":")[0]

    @property
    def index(self) -> int | None:
        _, colon, index = self.device.partition(":")
        return int(index) if colon else None


def _today(d: FakeDevice) -> dict[str, Any]:
    return {
        "name": f"{d.device} {d.name} : cudaMallocAsync", "type": d.kind, "index": d.index,
        "vram_total": d.total, "vram_free": d.total - d.used,
        "torch_vram_total": d.torch_total, "torch_vram_free": d.torch_free,
    }  # fmt: skip


def _bytes(d: FakeDevice) -> dict[str, Any]:
    return {"name": d.name, "vram_used": d.used, "vram_free": d.total - d.used,
            "vram_total": d.total}  # fmt: skip


def _megabytes(d: FakeDevice) -> dict[str, Any]:
    return {"name": d.name, "used_mem_mb": d.used // MB, "free_mem_mb": (d.total - d.used) // MB,
            "total_mem_mb": d.total // MB}  # fmt: skip


def _used_and_free(d: FakeDevice) -> dict[str, Any]:
    return {"vram_used": d.used, "vram_free": d.total - d.used}


# How /system_stats describes a device.
FORMS: dict[str, Callable[[FakeDevice], dict[str, Any]]] = {
    "today": _today,  # ComfyUI since 2023
    "bytes": _bytes,
    "mb": _megabytes,
    "used_and_free": _used_and_free,
    "both": lambda d: {**_megabytes(d), **_today(d)},
}

GARBAGE: dict[str, bytes] = {
    "empty": b"",
    "garbage": b"\x00\xff\xfe<html>not JSON",
    "html": b"<!doctype html><title>ComfyUI</title>",
    "list": b"[1, 2, 3]",
    "null": b"null",
    "no_devices": b'{"system": {}, "devices": []}',
    "devices_is_text": b'{"devices": "cuda:0", "samples": "none"}',
    "wrong_types": b'{"devices": [{"type": 5, "index": "x", "vram_total": "lots", "vram_free": null}],'
    b' "samples": [{"time": "now", "devices": []}, 7, null]}',
    "negative": b'{"devices": [{"type": "cuda", "index": 0, "vram_total": -5, "vram_free": -7}],'
    b' "samples": [{"time": 1, "devices": {"cuda:0": {"used": -1, "total": -1}}}]}',
    "not_finite": b'{"devices": [{"type": "cuda", "index": 0, "vram_total": NaN, "vram_free": Infinity}],'
    b' "samples": [{"time": NaN, "devices": {"cuda:0": {"used": 1e999, "total": NaN}}}]}',
    "deep": b"[" * 100_000,
    "cut": b'{"devices": [{"type": "cuda", "ind',
}

FAULTS = (
    *GARBAGE,
    "error500",
    "delay",
    "drip",
    "hang",
    "close",
    "short",
    "huge",
    "redirect",
    "no_http",
)


def device_history(devices: Iterable[FakeDevice], peak: int | None = None) -> dict[str, Any]:
    """The map of devices of one sample of /distorch/history; `peak`: the first one's."""
    found = {}
    for i, d in enumerate(devices):
        found[d.device] = {
            "used": d.used, "total": d.total, "allocated": d.used // 2, "reserved": d.used * 3 // 4,
            "peak": peak if peak is not None and i == 0 else d.used,
        }  # fmt: skip
    return found


def history(
    samples: list[dict[str, Any]], runs: list[dict[str, Any]] | None = None
) -> dict[str, Any]:
    """The body of /distorch/history."""
    return {"seconds": 60, "interval": 1.0, "samples": samples, "runs": runs or []}


def node_run(node: str, kind: str, started: float, ended: float | None = None,
             peak: dict[str, int] | None = None, loaded: list[dict[str, Any]] | None = None) -> dict[str, Any]:  # fmt: skip
    return {"node": node, "kind": kind, "started": started, "ended": ended, "peak": peak or {},
            "loaded": loaded or []}  # fmt: skip


def prompt_run(prompt: str, started: float, nodes: list[dict[str, Any]], ended: float | None = None,
               status: str = "running", peak: dict[str, int] | None = None) -> dict[str, Any]:  # fmt: skip
    return {"prompt": prompt, "started": started, "ended": ended, "status": status,
            "peak": peak or {}, "nodes": nodes}  # fmt: skip


class LiveHistory:
    """A /distorch/history that makes a sample of the devices as they are at each request."""

    def __init__(self, server: FakeComfy) -> None:
        self._server = server
        self.samples: list[dict[str, Any]] = []
        self.runs: list[dict[str, Any]] = []
        self.peak: int | None = None  # of the first device, for the next sample only

    def __call__(self, query: dict[str, str]) -> dict[str, Any]:
        now = time.time()
        devices = device_history(self._server.devices, self.peak)
        self.peak = None
        self.samples.append({"time": now, "devices": devices})
        since = now - float(query.get("seconds", 600))
        runs = [r for r in self.runs if query.get("prompt") in (None, r["prompt"])]
        return history([s for s in self.samples if s["time"] >= since], runs)


@dataclass
class Request:
    time: float
    method: str
    path: str
    query: dict[str, str]
    body: bytes = field(repr=False, default=b"")


class FakeComfy:
    """The server; a context manager. Attributes may be changed at any time, from any thread."""

    def __init__(self, devices: list[FakeDevice] | None = None, port: int = 0) -> None:
        self.devices = devices if devices is not None else [FakeDevice()]
        self.form = "today"
        self.history: dict[str, Any] | Callable[[dict[str, str]], dict[str, Any]] | None = None
        self.models: list[dict[str, Any]] | None = None
        self.queue: dict[str, Any] = {"queue_running": [], "queue_pending": []}
        self.fault: str | None = None
        self.faulty_paths: set[str] | None = None  # None: all
        self.delay = 0.0  # seconds before every answer
        self.requests: list[Request] = []
        self.port = port
        self._server: ThreadingHTTPServer | None = None
        self._thread: threading.Thread | None = None
        self._down = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def live_history(self) -> LiveHistory:
        """Answer /distorch/history with the devices as they are; returns what to steer it by."""
        self.history = LiveHistory(self)
        return self.history

    def __enter__(self) -> FakeComfy:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Listen, on the same port as before."""
        self._down.clear()
        deadline = time.monotonic() + 10
        while True:
            try:
                self._server = _Server(("127.0.0.1", self.port), _handler(self))
                break
            except OSError:  # a connection of before still has the port
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.02,), daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Stop listening and cut every connection."""
        if self._server is None:
            return
        self._down.set()
        self._server.shutdown()
        self._server.cut()
        self._server.server_close()
        assert self._thread is not None
        self._thread.join(5)
        self._server = None

    def restart(self, down: float = 0.0) -> None:
        """Stop, stay away for `down` seconds, come back."""
        self.stop()
        time.sleep(down)
        self.start()

    def answer(self, method: str, path: str, query: dict[str, str], body: bytes) -> tuple[int, Any]:
        """Return (status, body): bytes, text, or what becomes JSON."""
        if method != "GET":
            return 405, "method not allowed"
        if path == "/system_stats":
            system = {
                "os": "posix",
                "comfyui_version": "0.33.0",
                "ram_total": 64 * GB,
                "ram_free": 50 * GB,
            }
            return 200, {"system": system, "devices": [FORMS[self.form](d) for d in self.devices]}
        if path == "/distorch/history" and self.history is not None:
            return 200, self.history(query) if callable(self.history) else self.history
        if path == "/distorch/models" and self.models is not None:
            return 200, {"models": self.models, "scan_ms": 0.1}
        if path == "/queue":
            return 200, self.queue
        return 404, "404: Not Found"

    def wait(self, seconds: float) -> None:
        """Wait as a slow server does; ends early when the server stops."""
        self._down.wait(seconds)

    def fault_for(self, path: str) -> str | None:
        """The fault to play on `path`."""
        if self.fault is None or (self.faulty_paths is not None and path not in self.faulty_paths):
            return None
        return self.fault


class _Server(ThreadingHTTPServer):
    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, *args: Any) -> None:
        self._open: set[socket.socket] = set()
        super().__init__(*args)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""

    def cut(self) -> None:
        for request in list(self._open):
            with contextlib.suppress(OSError):
                request.shutdown(socket.SHUT_RDWR)


def _handler(server: FakeComfy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do_GET(self) -> None:
            self._respond("GET")

        def do_POST(self) -> None:
            self._respond("POST")

        def _respond(self, method: str) -> None:
            parts = urlsplit(self.path)
            query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            server.requests.append(Request(time.time(), method, parts.path, query, body))
            if server.delay:
                server.wait(server.delay)
            fault = server.fault_for(parts.path)
            if fault is None:
                self._send(*server.answer(method, parts.path, query, body))
            else:
                self._misbehave(fault)

        def _send(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
            if isinstance(body, str):
                body = body.encode()
            if not isinstance(body, bytes):
                body = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def _misbehave(self, fault: str) -> None:
            self.close_connection = True
            if fault in GARBAGE:
                self._send(200, GARBAGE[fault])
            elif fault == "error500":
                self._send(500, "Internal Server Error")
            elif fault == "redirect":
                self._send(302, "", {"Location": "http://127.0.0.1:1/"})
            elif fault == "delay":
                server.wait(30)
            elif fault == "drip":  # a byte now and then: no single read times out
                head = b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"
                for i in range(600):
                    self.wfile.write(head[i : i + 1] or b" ")
                    server.wait(0.05)
            elif fault == "hang":  # the head, then nothing
                self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{")
                server.wait(30)
            elif fault == "short":  # fewer bytes than promised
                self.wfile.write(b'HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{"devices":')
            elif fault == "huge":
                self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n[0")
                with contextlib.suppress(OSError):
                    for _ in range(1000):
                        self.wfile.write(b",0" * 100_000)
            elif fault == "no_http":
                self.wfile.write(b"SSH-2.0-OpenSSH_9.2\r\n")
            elif fault != "close":
                raise ValueError(f"no such fault: {fault}")

    return Handler
