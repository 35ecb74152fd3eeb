# SPDX-License-Identifier: Apache-2.0
"""ComfyUI's HTTP routes and websocket, with errors that say what happened. Needs aiohttp."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections import deque
from types import TracebackType
from typing import Any

import aiohttp

from distorch.tools.monitor.http_json import split_address

# A queued prompt is validated before it is answered, which imports and reads files on a cold server.
_QUEUE_SECONDS = 60.0
_ANSWER_SECONDS = 10.0
_RETRY_SECONDS = (0.1, 0.3, 1.0, 2.0)


class ServerError(Exception):
    """The server did not do what it was asked; the message says why."""


class UnreachableError(ServerError):
    """No usable answer: nobody listens, the connection broke, time ran out, or the answer was garbage."""


class RefusedError(ServerError):
    """ComfyUI refused the workflow. `node` is the first node it names, or None."""

    def __init__(self, message: str, node: str | None = None) -> None:
        super().__init__(message)
        self.node = node


def base_address(url: str) -> str:
    """Return `url` with its scheme and without a slash at its end. Raises ValueError."""
    return split_address(url).geturl().rstrip("/")


class Client:
    """One ComfyUI server. An async context manager; its methods may run together in one event loop."""

    def __init__(self, url: str) -> None:
        """Raises ValueError for an address that is none. Connects to nothing yet."""
        self.url = base_address(url)
        self.id = uuid.uuid4().hex
        self.others = 0
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Client:
        self._session = aiohttp.ClientSession()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def version(self) -> str:
        """Return ComfyUI's version, "" when it does not say. Raises UnreachableError."""
        found = await self._get("/system_stats")
        if not isinstance(found, dict) or not isinstance(found.get("devices"), list):
            raise UnreachableError("/system_stats is not ComfyUI's")
        system = found.get("system")
        return str(system.get("comfyui_version") or "") if isinstance(system, dict) else ""

    async def queue(self, prompt: dict[str, Any], prompt_id: str) -> tuple[str, str]:
        """Queue a workflow; return the id that the server gave it and what it says about outputs that it ignores.

        Raises RefusedError, UnreachableError.
        """
        body = {"prompt": prompt, "client_id": self.id, "prompt_id": prompt_id}
        status, found = await self._exchange("POST", "/prompt", body, _QUEUE_SECONDS)
        if status == 200 and isinstance(found, dict) and isinstance(found.get("prompt_id"), str):
            return found["prompt_id"], _node_errors(found.get("node_errors"))[0]
        if status == 400 and isinstance(found, dict) and "error" in found:
            raise _refusal(found)
        raise UnreachableError(f"POST /prompt: HTTP {status}, an answer that is not ComfyUI's")

    async def place(self, prompt_id: str) -> str:
        """Return "running", "pending" or "" (neither) for a prompt. Raises UnreachableError.

        `others` is then how many prompts of others the queue holds.
        """
        found = await self._get("/queue")
        if not isinstance(found, dict):
            raise UnreachableError("/queue is not ComfyUI's")
        places = []
        for key, word in (("queue_running", "running"), ("queue_pending", "pending")):
            rows = found.get(key)
            if not isinstance(rows, list):
                raise UnreachableError("/queue is not ComfyUI's")
            places += [(word, row[1]) for row in rows if isinstance(row, list) and len(row) > 1]
        self.others = sum(id_ != prompt_id for _, id_ in places)
        return next((word for word, id_ in places if id_ == prompt_id), "")

    async def finished(self, prompt_id: str) -> dict[str, Any] | None:
        """Return the history of a prompt that ended, None when there is none. Raises UnreachableError."""
        found = await self._get(f"/history/{prompt_id}")
        if not isinstance(found, dict):
            raise UnreachableError("/history is not ComfyUI's")
        entry = found.get(prompt_id)
        return entry if isinstance(entry, dict) else None

    async def abandon(self, prompt_id: str) -> None:
        """Take a prompt out of the queue, or interrupt it if it runs. No other prompt is touched.

        Raises UnreachableError.
        """
        await self._exchange("POST", "/queue", {"delete": [prompt_id]})
        if await self.place(prompt_id) == "running":  # old servers interrupt whatever runs
            await self._exchange("POST", "/interrupt", {"prompt_id": prompt_id})

    async def free(self) -> None:
        """Ask for models to be unloaded and the results of nodes to be forgotten. Raises UnreachableError."""
        status, _ = await self._exchange(
            "POST", "/free", {"unload_models": True, "free_memory": True}
        )
        if status != 200:
            raise UnreachableError(f"POST /free: HTTP {status}")

    async def free_with_pack(self, seconds: float) -> bool:
        """Do as `free`, and wait until it is done; False where the pack is not there, or fails.

        Raises UnreachableError, also when it is not done in `seconds`.
        """
        body = {"unload_models": True, "free_memory": True}
        status, found = await self._exchange("POST", "/distorch/free", body)
        if status != 202 or not isinstance(found, dict) or not isinstance(found.get("ticket"), int):
            return False
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            report = await self._get(f"/distorch/report?ticket={found['ticket']}")
            state = report.get("state") if isinstance(report, dict) else None
            if state in ("done", "failed"):
                return state == "done"
            await asyncio.sleep(0.1)
        raise UnreachableError(f"/distorch/free: not done within {seconds:g} s")

    async def _get(self, path: str) -> Any:
        status, found = await self._exchange("GET", path, None)
        if status != 200:
            raise UnreachableError(f"{path}: HTTP {status}")
        if found is None:
            raise UnreachableError(f"{path}: the answer is no JSON")
        return found

    async def _exchange(
        self, method: str, path: str, body: Any, seconds: float = _ANSWER_SECONDS
    ) -> tuple[int, Any]:
        """Return (status, JSON or None)."""
        assert self._session is not None, "used outside of its context"
        timeout = aiohttp.ClientTimeout(total=seconds)
        try:
            async with self._session.request(
                method, self.url + path, json=body, timeout=timeout
            ) as answer:
                return answer.status, _parsed(await answer.read())
        except asyncio.TimeoutError:
            raise UnreachableError(f"{path}: no answer within {seconds:g} s") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise UnreachableError(f"{path}: {str(error) or type(error).__name__}") from None

    async def listen(self, feed: Feed) -> None:
        """Put every message of the websocket into `feed`, connecting again whenever it breaks. Never returns."""
        assert self._session is not None, "used outside of its context"
        failures = 0
        while True:
            try:
                # The heartbeat notices a server that vanished without closing.
                async with self._session.ws_connect(
                    f"{self.url}/ws?clientId={self.id}",
                    heartbeat=20,
                    max_msg_size=0,
                    timeout=aiohttp.ClientWSTimeout(ws_close=2),
                ) as socket:
                    failures = 0
                    feed.opened()
                    async for message in socket:
                        if message.type == aiohttp.WSMsgType.TEXT:
                            feed.put(message.data)
            except (aiohttp.ClientError, OSError, asyncio.TimeoutError, ValueError):
                pass
            feed.closed()
            await asyncio.sleep(_RETRY_SECONDS[min(failures, len(_RETRY_SECONDS) - 1)])
            failures += 1


class Feed:
    """What came through the websocket, in order; None stands for "the connection changed: ask instead"."""

    def __init__(self) -> None:
        self.connected = False
        self.drops = 0
        self.garbage = 0
        self.first = asyncio.Event()  # set once a connection stood
        self._messages: deque[dict[str, Any] | None] = deque()
        self._arrived = asyncio.Event()

    def opened(self) -> None:
        """The connection stands."""
        self.connected = True
        self.first.set()
        self._add(None)

    def closed(self) -> None:
        """The connection broke, or could not be made."""
        if self.connected:
            self.drops += 1
            self._add(None)
        self.connected = False

    def put(self, text: str) -> None:
        """Keep a message; what is no ComfyUI message is counted and dropped."""
        found = _parsed(text)
        if isinstance(found, dict) and isinstance(found.get("type"), str):
            self._add(found)
        else:
            self.garbage += 1

    async def get(self, seconds: float) -> tuple[bool, dict[str, Any] | None]:
        """Return (something came, the message), waiting `seconds` at most."""
        if not self._messages:
            self._arrived.clear()
            await wait(self._arrived, seconds)
        return (True, self._messages.popleft()) if self._messages else (False, None)

    def _add(self, message: dict[str, Any] | None) -> None:
        self._messages.append(message)
        self._arrived.set()


async def wait(event: asyncio.Event, seconds: float) -> None:
    """Wait for an event, `seconds` at most.

    Not asyncio.wait_for: before Python 3.12 that loses a cancellation which comes together with the event.
    """
    waiting = asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait({waiting}, timeout=max(seconds, 0.001))
    finally:
        waiting.cancel()


def _parsed(text: str | bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _refusal(answer: dict[str, Any]) -> RefusedError:
    """What is wrong with the workflow: ComfyUI's own words, node by node."""
    error = answer["error"]
    words, node = _node_errors(answer.get("node_errors"))
    if isinstance(error, dict):
        info = error.get("extra_info")
        if node is None and isinstance(info, dict) and info.get("node_id") is not None:
            node = str(info["node_id"])
        if not words:
            words = ": ".join(str(error[k]) for k in ("message", "details") if error.get(k))
    return RefusedError(words or str(error), node)


def _node_errors(found: object) -> tuple[str, str | None]:
    """Return ("node 4 (KSampler): Value not in list: ...; ...", the first node)."""
    if not isinstance(found, dict) or not found:
        return "", None
    lines = []
    for node, about in found.items():
        if not isinstance(about, dict):
            continue
        reasons = about.get("errors")
        for reason in reasons if isinstance(reasons, list) else []:
            if isinstance(reason, dict):
                words = ": ".join(str(reason[k]) for k in ("message", "details") if reason.get(k))
                lines.append(f"node {node} ({about.get('class_type', '?')}): {words}")
    return "; ".join(lines), str(next(iter(found)))
