# SPDX-License-Identifier: Apache-2.0
"""One GET that ends by its deadline whatever the server does, and yields JSON or a reason.

The time limit of a socket holds for a single read: a server that sends a byte now and then would never meet it. Here the
limit is on the whole exchange, and the answer's size is bounded.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import math
import socket
import ssl
import threading
import time
from typing import Any
from urllib.parse import SplitResult, urlsplit

MAX_BYTES = 16 * 1024 * 1024


class FetchError(Exception):
    """No answer that can be used; the message says why. `status` is HTTP's, 0 when there was none."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class TooLargeError(FetchError):
    """The answer is larger than MAX_BYTES."""


class _TimedSocket(io.RawIOBase):
    """What http.client reads a response from: every read waits only for what is left of the time."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._sock, self._deadline = sock, deadline

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._sock.settimeout(remaining(self._deadline))
        return self._sock.recv_into(buffer)


def remaining(deadline: float) -> float:
    """Return the seconds until `deadline` (monotonic). Raises TimeoutError when there are none."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def split_address(url: str) -> SplitResult:
    """Return the parts of a server's address, http:// where no scheme is given. Raises ValueError."""
    wrong = ValueError(f"{url!r} is no address; expected one such as http://127.0.0.1:8188")
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a port out of range, brackets that do not match
        raise wrong from None
    if not usable or parts.query or parts.fragment:
        raise wrong
    return parts


class JsonClient:
    """Fetches JSON below one address. `get` may be called from one thread at a time, `close` from any."""

    def __init__(self, url: str, timeout: float = 2.0) -> None:
        """Raises ValueError for an address that is none."""
        parts = split_address(url)
        self.host = parts.hostname or ""
        self._name = f"[{self.host}]" if ":" in self.host else self.host
        self.timeout = timeout
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._port = parts.port or (443 if self._tls else 80)
        self._base = parts.path.rstrip("/")
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._closed = False

    def get(self, path: str, most: float = math.inf) -> Any:
        """Return what `path` answers. Raises FetchError within `timeout`, and `most`, seconds (a slow name server aside)."""
        limit = min(self.timeout, most)
        deadline = time.monotonic() + limit
        try:
            with contextlib.closing(self._connect(deadline)) as sock:
                return _parse(self._exchange(sock, path, deadline))
        except TimeoutError:
            raise FetchError(f"no answer within {limit:g} s") from None
        except ConnectionRefusedError:
            raise FetchError("connection refused") from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            words = str(error) or type(error).__name__
            raise FetchError(f"cannot be read: {words}"[:200]) from None
        finally:
            with self._lock:
                self._socket = None

    def close(self) -> None:
        """End the exchange that is under way, and refuse later ones."""
        with self._lock:
            self._closed = True
            if self._socket is not None:
                with contextlib.suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)

    def _connect(self, deadline: float) -> socket.socket:
        sock = socket.create_connection((self.host, self._port), timeout=remaining(deadline))
        try:
            if self._tls is not None:
                sock = self._tls.wrap_socket(sock, server_hostname=self.host)
            with self._lock:
                if self._closed:
                    raise FetchError("closed")
                self._socket = sock
        except BaseException:
            sock.close()
            raise
        return sock

    def _exchange(self, sock: socket.socket, path: str, deadline: float) -> bytes:
        request = (
            f"GET {self._base}{path} HTTP/1.1\r\nHost: {self._name}:{self._port}\r\n"
            "Accept: application/json\r\nConnection: close\r\nUser-Agent: distorch\r\n\r\n"
        )
        sock.settimeout(remaining(deadline))
        sock.sendall(request.encode("ascii"))
        timed: Any = _TimedSocket(sock, deadline)
        response = http.client.HTTPResponse(timed, method="GET")
        response.begin()
        if response.status != 200:
            raise FetchError(f"HTTP {response.status}", response.status)
        body = response.read(MAX_BYTES + 1)
        if len(body) > MAX_BYTES:
            raise TooLargeError(f"the answer is larger than {MAX_BYTES} bytes")
        if response.length:
            raise FetchError("the answer ends too early")
        return body


def _parse(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise FetchError("the answer is no JSON") from None
