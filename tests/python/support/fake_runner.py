# SPDX-License-Identifier: Apache-2.0
"""A server that plays ComfyUI's queue and websocket besides the memory routes of `fake_comfy`.

    with FakeRunner([FakeDevice("sim:0")]) as server:
        server.plays = [Play(), Play(cached={"1"}), Play(fails="2")]   # one a prompt; the last one stays
        server.prompts                                                 # what was queued, in order

It follows ComfyUI 0.33: which messages go to whom, in which order, what /history keeps, that an interruption is noticed
between two steps of a node, and that a restart forgets queue and history.
"""

from __future__ import annotations

import asyncio
import json
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import WSMsgType, web
from fake_comfy import GARBAGE, FakeComfy, FakeDevice, Request

PROMPT = {
    "1": {"class_type": "UNETLoader", "inputs": {"unet_name": "wan.safetensors"}},
    "2": {"class_type": "KSampler", "inputs": {"model": ["1", 0], "seed": 7}},
    "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0]}, "_meta": {"title": "Keep it"}},
}


@dataclass
class Play:
    """What the server does with one prompt.

    Attributes:
        seconds: how long each node takes, in `steps` steps, which are told as progress when there are several.
        cached: nodes that come from the cache; "all" for all of them.
        fails: the node that raises, with `error` (class, message).
        refuse: the body of a refusal with status 400.
        node_errors: refused outputs of a workflow that is queued all the same.
        rise: bytes by device while the nodes run.
        leak: bytes by device that stay afterwards.
        deaf: interruptions are not noticed.
        mute: nothing is sent by websocket.
        drop: the websocket is closed when this node begins.
        garbage: these texts are sent before each node.
        forget: /history does not keep the prompt.
        at: called (in the server's thread) when a node begins.
    """

    seconds: float = 0.0
    steps: int = 1
    cached: set[str] | str = field(default_factory=set)
    fails: str = ""
    error: tuple[str, str] = ("RuntimeError", "no such luck")
    refuse: dict[str, Any] | None = None
    node_errors: dict[str, Any] = field(default_factory=dict)
    rise: dict[str, int] = field(default_factory=lambda: {"sim:0": 8 * 2**30})
    leak: dict[str, int] = field(default_factory=dict)
    deaf: bool = False
    mute: bool = False
    drop: str = ""
    garbage: tuple[str, ...] = ()
    forget: bool = False
    at: Callable[[str], None] = lambda node: None


@dataclass
class Queued:
    prompt_id: str
    prompt: dict[str, Any]
    client: str
    play: Play


class FakeRunner(FakeComfy):
    """The server; a context manager. Runs in a thread with an event loop of its own."""

    def __init__(self, devices: list[FakeDevice] | None = None) -> None:
        super().__init__(devices)
        self.plays: list[Play] = []
        self.prompts: list[Queued] = []
        self.freed = 0
        self.interrupts: list[str | None] = []
        self.sockets_opened = 0
        self.accept_sockets = True
        self.reports: list[str] | None = (
            None  # the pack's answers about a free, in turn; None: no pack
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._forget()

    def _forget(self) -> None:
        self._pending: list[Queued] = []
        self._running: Queued | None = None
        self._history: dict[str, Any] = {}
        self._interrupted = False
        self._sockets: dict[str, web.WebSocketResponse] = {}

    # -- life ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        self._down.clear()
        self._forget()
        ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._ending = asyncio.Event()
        self._thread = threading.Thread(target=self._serve, args=(self._loop, ready), daemon=True)
        self._thread.start()
        assert ready.wait(10)

    def stop(self) -> None:
        if self._loop is None:
            return
        self._down.set()
        assert self._thread is not None
        self._loop.call_soon_threadsafe(self._ending.set)
        self._thread.join(10)
        assert not self._thread.is_alive()
        self._loop = None

    def restart_soon(self, down: float = 0.0) -> None:
        """Restart from a thread of its own; returns at once, so that the server may ask for it itself."""
        threading.Thread(target=self.restart, args=(down,), daemon=True).start()

    def _serve(self, loop: asyncio.AbstractEventLoop, ready: threading.Event) -> None:
        asyncio.set_event_loop(loop)
        try:
            loop.run_until_complete(self._main(ready))
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()

    async def _main(self, ready: threading.Event) -> None:
        self._arrived = asyncio.Event()
        app = web.Application()
        app.router.add_get("/ws", self._socket)
        app.router.add_route("*", "/{path:.*}", self._route)
        runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", self.port, reuse_address=True)
        await site.start()
        self.port = runner.addresses[0][1]
        worker = asyncio.create_task(self._work())
        ready.set()
        await self._ending.wait()
        worker.cancel()
        for socket in list(self._sockets.values()):
            await socket.close()
        await runner.cleanup()
        await asyncio.gather(worker, return_exceptions=True)

    # -- routes --------------------------------------------------------------------------------------------------

    async def _socket(self, request: web.Request) -> web.StreamResponse:
        if not self.accept_sockets:
            return web.Response(status=503)
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        client = request.query.get("clientId") or uuid.uuid4().hex
        self._sockets[client] = socket
        self.sockets_opened += 1
        await self._send(client, "status", {"status": {"exec_info": {"queue_remaining": 0}}})
        try:
            async for message in socket:
                if message.type == WSMsgType.ERROR:
                    break
        finally:
            if self._sockets.get(client) is socket:
                del self._sockets[client]
        return socket

    async def _route(self, request: web.Request) -> web.Response:
        body = await request.read()
        query = dict(request.query)
        self.requests.append(Request(0.0, request.method, request.path, query, body))
        if self.delay:
            await asyncio.sleep(self.delay)
        fault = self.fault_for(request.path)
        if fault == "delay":
            await asyncio.sleep(30)
        if fault == "error500":
            return web.Response(status=500, text="Internal Server Error")
        if fault is not None:
            return web.Response(body=GARBAGE[fault], content_type="application/json")
        status, found = self.answer(request.method, request.path, query, body)
        if isinstance(found, (str, bytes)):
            return web.Response(
                status=status, text=found if isinstance(found, str) else found.decode()
            )
        return web.json_response(found, status=status)

    def answer(self, method: str, path: str, query: dict[str, str], body: bytes) -> tuple[int, Any]:
        sent = json.loads(body) if body else {}
        if method == "POST" and path == "/prompt":
            return self._queue(sent)
        if method == "POST" and path == "/queue":
            self._pending = [q for q in self._pending if q.prompt_id not in sent.get("delete", [])]
            return 200, ""
        if method == "POST" and path == "/interrupt":
            self.interrupts.append(sent.get("prompt_id"))
            self._interrupted = self._running is not None
            return 200, ""
        if method == "POST" and path == "/free":
            self.freed += 1
            return 200, ""
        if self.reports is not None and path == "/distorch/free":
            self.freed += 1
            return 202, {"ticket": self.freed, "when": "now", "will": "free", "models": []}
        if self.reports is not None and path == "/distorch/report":
            state = self.reports.pop(0) if len(self.reports) > 1 else self.reports[0]
            return 200, {"ticket": self.freed, "kind": "free", "state": state}
        if path == "/queue":
            rows = [
                [self._row(q) for q in row]
                for row in ([self._running], self._pending)
                if row[:1] != [None]
            ]
            running, pending = (rows if self._running else [[], *rows])[:2]
            return 200, {"queue_running": running, "queue_pending": pending}
        if path.startswith("/history/"):
            key = path.rpartition("/")[2]
            return 200, {key: self._history[key]} if key in self._history else {}
        return super().answer(method, path, query, body)

    @staticmethod
    def _row(queued: Queued) -> list[Any]:
        return [1, queued.prompt_id, queued.prompt, {"client_id": queued.client}, []]

    def _queue(self, sent: dict[str, Any]) -> tuple[int, Any]:
        play = (
            (self.plays.pop(0) if len(self.plays) > 1 else self.plays[0]) if self.plays else Play()
        )
        if play.refuse is not None:
            return 400, play.refuse
        queued = Queued(sent["prompt_id"], sent["prompt"], sent["client_id"], play)
        self.prompts.append(queued)
        self._pending.append(queued)
        self._arrived.set()
        return 200, {"prompt_id": queued.prompt_id, "number": 1, "node_errors": play.node_errors}

    # -- the worker ----------------------------------------------------------------------------------------------

    async def _send(self, client: str, kind: str, data: dict[str, Any] | str) -> None:
        socket = self._sockets.get(client)
        if socket is not None and not socket.closed:
            text = data if isinstance(data, str) else json.dumps({"type": kind, "data": data})
            await socket.send_str(text)

    async def _work(self) -> None:
        while True:
            while not self._pending:
                self._arrived.clear()
                await self._arrived.wait()
            self._running, self._interrupted = self._pending.pop(0), False
            queued = self._running
            messages = await self._execute(queued)
            good = messages[-1][0] == "execution_success"
            status = {
                "status_str": "success" if good else "error",
                "completed": good,
                "messages": messages,
            }
            if not queued.play.forget:
                self._history[queued.prompt_id] = {
                    "prompt": self._row(queued),
                    "outputs": {},
                    "status": status,
                }
            self._running = None
            if not queued.play.mute:
                about = {"node": None, "prompt_id": queued.prompt_id}
                await self._send(queued.client, "executing", about)

    async def _execute(self, queued: Queued) -> list[list[Any]]:
        """Play it; returns the messages that /history keeps."""
        play, messages = queued.play, []

        async def say(kind: str, keep: bool = True, **data: Any) -> None:
            data = {**data, "prompt_id": queued.prompt_id}
            if keep:
                messages.append([kind, data])
            if not play.mute:
                await self._send(queued.client, kind, data)

        cached = set(queued.prompt) if play.cached == "all" else set(play.cached)
        await say("execution_start")
        await say("execution_cached", nodes=sorted(cached))
        nodes = [n for n in queued.prompt if n not in cached]
        self._change(play.rise if nodes else {}, 1)
        for node in nodes:
            about = {"node_id": node, "node_type": queued.prompt[node]["class_type"]}
            play.at(node)
            if play.drop == node:
                await self._sockets[queued.client].close()
            for text in play.garbage:
                await self._send(queued.client, "", text)
            await say("executing", False, node=node, display_node=node)
            for step in range(play.steps):
                await asyncio.sleep(play.seconds / play.steps)
                if self._interrupted and not play.deaf:
                    self._change(play.rise, -1)
                    await say("execution_interrupted", **about, executed=[])
                    return messages
                if play.steps > 1:
                    await say("progress", False, node=node, value=step + 1, max=play.steps)
            if play.fails == node:
                self._change(play.rise, -1)
                kind, words = play.error
                await say("execution_error", **about, executed=[], exception_type=kind,
                          exception_message=words, traceback=[])  # fmt: skip
                return messages
        self._change(play.rise if nodes else {}, -1)
        self._change(play.leak if nodes else {}, 1)
        await say("execution_success")
        return messages

    def _change(self, sizes: dict[str, int], sign: int) -> None:
        for d in self.devices:
            d.used += sign * sizes.get(d.device, 0)
