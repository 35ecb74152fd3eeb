# SPDX-License-Identifier: Apache-2.0
"""The last sample in Prometheus' text form, over HTTP, for a server without the pack (which has /distorch/metrics)."""

from __future__ import annotations

import os
import socket
import socketserver
import threading
import time
from collections import deque
from http.server import BaseHTTPRequestHandler
from typing import Any

from distorch.tools.monitor.recorder import Event
from distorch.tools.monitor.sample import Gap, Sample

RECENT = 60.0  # seconds: as long as Prometheus usually takes between two scrapes, or longer
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# metric -> (type, help)
_METRICS = {
    "distorch_monitor_up": ("gauge", "1 while the last look found a source that answered."),
    "distorch_monitor_source": ("gauge", "1 for the source of the last sample."),
    "distorch_monitor_samples_total": ("counter", "Samples since the start."),
    "distorch_monitor_gaps_total": ("counter", "Looks that no source answered."),
    "distorch_monitor_last_sample_timestamp_seconds": ("gauge", "When the last sample was taken."),
    "distorch_monitor_used_bytes": ("gauge", "Memory in use, of all processes."),
    "distorch_monitor_free_bytes": ("gauge", "Memory that can be had."),
    "distorch_monitor_total_bytes": ("gauge", "Memory of the device; 0: unknown."),
    "distorch_monitor_recent_peak_bytes": ("gauge", f"The most in use in the last {RECENT:g} s."),
    "distorch_monitor_peak_bytes": ("gauge", "The most in use since the start."),
    "distorch_monitor_model_bytes": ("gauge", "A model's part on a device."),
}


class PrometheusSink:
    """Serves http://HOST:PORT/metrics from threads of its own until it is closed."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        """Begin to serve; port 0 takes a free one. Raises OSError when the port cannot be had."""
        self._lock = threading.Lock()
        self._sample: Sample | None = None
        self._up = False
        self._samples = self._gaps = 0
        self._peaks: dict[str, int] = {}
        self._recent: deque[tuple[float, dict[str, int]]] = deque()
        self._server = _server_class(host)((host, port), _handler(self))
        self.port = int(self._server.server_address[1])
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{self.port}/metrics"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.1,), name="distorch-prometheus", daemon=True
        )
        try:
            self._thread.start()
        except BaseException:
            self._server.server_close()
            raise

    def take(self, event: Event) -> None:
        """Remember the event."""
        with self._lock:
            if isinstance(event, Gap):
                self._up = False
                self._gaps += 1
            elif isinstance(event, Sample):
                self._up = True
                self._samples += 1
                self._sample = event
                highest = {d.device: d.highest for d in event.devices}
                for device, size in highest.items():
                    self._peaks[device] = max(size, self._peaks.get(device, 0))
                now = time.monotonic()
                self._recent.append((now, highest))
                while self._recent[0][0] < now - RECENT:
                    self._recent.popleft()

    def close(self) -> None:
        """End the server."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    def text(self) -> str:
        """Return the metrics. Thread safe."""
        with self._lock:
            values = self._values()
        lines = []
        for name, (kind, about) in _METRICS.items():
            rows = values.get(name, [])
            if rows:
                lines += [f"# HELP {name} {about}", f"# TYPE {name} {kind}"]
                lines += [f"{name}{labels} {value}" for labels, value in rows]
        return "\n".join(lines) + "\n"

    def _values(self) -> dict[str, list[tuple[str, str]]]:
        def metric(name: str) -> str:
            return f"distorch_monitor_{name}"

        values: dict[str, list[tuple[str, str]]] = {
            metric("up"): [("", str(int(self._up)))],
            metric("samples_total"): [("", str(self._samples))],
            metric("gaps_total"): [("", str(self._gaps))],
        }
        sample = self._sample
        if sample is None:
            return values
        values[metric("source")] = [(_labels(source=sample.source), "1")]
        values[metric("last_sample_timestamp_seconds")] = [("", f"{sample.time:.3f}")]
        since = time.monotonic() - RECENT
        for d in sample.devices:
            labels = _labels(device=d.device, name=d.name)
            recent = [h.get(d.device, 0) for t, h in self._recent if t >= since]
            for name, size in (
                ("used_bytes", d.used),
                ("free_bytes", d.free),
                ("total_bytes", d.total),
                ("recent_peak_bytes", max(recent, default=d.highest)),
                ("peak_bytes", self._peaks[d.device]),
            ):
                values.setdefault(metric(name), []).append((labels, str(size)))
        held: dict[str, int] = {}
        for model in sample.models:
            for device, size in model.bytes.items():
                labels = _labels(model=model.name, type=model.type, device=device)
                held[labels] = held.get(labels, 0) + size
        values[metric("model_bytes")] = [(labels, str(size)) for labels, size in held.items()]
        return values


def _labels(**labels: str) -> str:
    parts = []
    for name, value in labels.items():
        escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        parts.append(f'{name}="{escaped}"')
    return "{" + ",".join(parts) + "}"


def _server_class(host: str) -> type[socketserver.ThreadingTCPServer]:
    class Server(socketserver.ThreadingTCPServer):
        # Not http.server's, which asks a name server for the host's full name.
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        allow_reuse_address = os.name != "nt"  # there it would share the port
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            """A client that went away is no news, and the terminal is the live view's."""

    return Server


def _handler(sink: PrometheusSink) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = 10  # of a client that says nothing

        def do_GET(self) -> None:
            found = self.path.partition("?")[0] == "/metrics"
            body = sink.text().encode() if found else b"see /metrics\n"
            self.send_response(200 if found else 404)
            self.send_header("Content-Type", CONTENT_TYPE if found else "text/plain")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing: the terminal is the live view's."""

    return Handler
