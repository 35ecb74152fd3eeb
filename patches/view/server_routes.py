# SPDX-License-Identifier: Apache-2.0
"""The REST interface: who holds the memory, and giving it back. Described in docs/openapi.json.

Only HTTP is dealt with here; what a request may be is checked by `request_checks`. What the routes do is the `Backend`'s.
No route takes a path of a file: `plan` takes the name of one in ComfyUI's model folders.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from aiohttp import web

from .request_checks import (
    BODY_LIMIT,
    PLAN_FIELDS,
    RequestError,
    UnknownModelError,
    check_fields,
    check_query,
    query_integer,
    query_text,
    read_body,
)

PROFILER_PATH = "/swissarmyknife/profiler/loaded_models"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Backend(Protocol):
    """What the routes ask for. Called in worker threads, so everything must be thread safe."""

    def models(self) -> dict[str, Any]: ...
    def devices(self) -> dict[str, Any]: ...
    def placements(self) -> dict[str, Any]: ...
    def history(self, seconds: int, prompt: str | None = None) -> dict[str, Any]: ...
    def metrics(self) -> str: ...
    def profiler(self) -> dict[str, Any]: ...
    def report(self, ticket: int) -> dict[str, Any] | None: ...
    def flag(self, model_id: int, eject: bool) -> dict[str, Any]: ...
    def eject(self, ids: list[int] | None, let_go: bool = False) -> dict[str, Any]: ...
    def free(self, unload_models: bool, free_memory: bool) -> dict[str, Any]: ...
    def clear_cache(self, devices: list[str] | None) -> dict[str, Any]: ...
    def parse(self, text: str) -> dict[str, Any]: ...
    def plan(self, asked: dict[str, Any]) -> dict[str, Any]: ...
    def measure_links(self) -> dict[str, Any]: ...
    def watch(self, client: str, what: str) -> dict[str, Any]: ...


class Gate:
    """A Backend that can be taken from behind routes: aiohttp's router never gives one back.

    Without one, each route answers 404. `tables`: where routes to it are registered already.
    """

    def __init__(self) -> None:
        self.backend: Backend | None = None
        self.tables: list[web.RouteTableDef] = []

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def ask(*arguments: Any) -> Any:
            if self.backend is None:
                raise RequestError(404, "the memory view is not installed")
            return getattr(self.backend, name)(*arguments)

        return ask


def make_routes(backend: Backend) -> dict[tuple[str, str], Handler]:
    """Return the handlers by (method, path)."""
    return {**_reading_routes(backend), **_changing_routes(backend)}


def _reading_routes(backend: Backend) -> dict[tuple[str, str], Handler]:
    def plain(action: Callable[[], dict[str, Any]]) -> Handler:
        async def handle(_request: web.Request) -> web.Response:
            return web.json_response(await _in_thread(action))

        return _guarded(handle)

    async def history(request: web.Request) -> web.Response:
        check_query(request, "seconds", "prompt")
        seconds = query_integer(request, "seconds", 600, 7 * 24 * 3600)
        prompt = query_text(request, "prompt")
        return web.json_response(await _in_thread(backend.history, seconds, prompt))

    async def report(request: web.Request) -> web.Response:
        check_query(request, "ticket")
        ticket = query_integer(request, "ticket", None, 2**53 - 1)
        found = await _in_thread(backend.report, ticket)
        if found is None:
            raise RequestError(404, "there is no such ticket", "ticket")
        return web.json_response(found)

    async def metrics(_request: web.Request) -> web.Response:
        text = await _in_thread(backend.metrics)
        return web.Response(text=text, content_type="text/plain", charset="utf-8")

    return {
        ("GET", "/distorch/models"): plain(backend.models),
        ("GET", "/distorch/devices"): plain(backend.devices),
        ("GET", "/distorch/placements"): plain(backend.placements),
        ("GET", "/distorch/history"): _guarded(history),
        ("GET", "/distorch/report"): _guarded(report),
        ("GET", "/distorch/metrics"): _guarded(metrics),
        ("GET", PROFILER_PATH): plain(backend.profiler),
    }


def _changing_routes(backend: Backend) -> dict[tuple[str, str], Handler]:
    async def flag(request: web.Request) -> web.Response:
        body = await read_body(request)
        check_fields(body, {"id": "integer", "eject": "boolean"}, ("id", "eject"))
        return web.json_response(await _in_thread(backend.flag, body["id"], body["eject"]))

    async def eject(request: web.Request) -> web.Response:
        body = await read_body(request)
        check_fields(body, {"ids": "integers", "let_go": "boolean"})
        arguments = (body.get("ids"), body.get("let_go", False))
        return web.json_response(await _in_thread(backend.eject, *arguments), status=202)

    async def free(request: web.Request) -> web.Response:
        body = await read_body(request)
        check_fields(body, {"unload_models": "boolean", "free_memory": "boolean"})
        arguments = (body.get("unload_models", False), body.get("free_memory", False))
        return web.json_response(await _in_thread(backend.free, *arguments), status=202)

    async def clear_cache(request: web.Request) -> web.Response:
        body = await read_body(request)
        check_fields(body, {"devices": "names"})
        found = await _in_thread(backend.clear_cache, body.get("devices"))
        return web.json_response(found, status=202)

    async def parse(request: web.Request) -> web.Response:
        body = await read_body(request)
        check_fields(body, {"text": "text"}, ("text",))
        return web.json_response(await _in_thread(backend.parse, body["text"]))

    async def plan(request: web.Request) -> web.Response:
        body = await read_body(request)
        check_fields(body, PLAN_FIELDS)
        if ("id" in body) == ("model" in body):
            raise RequestError(400, "give either id or model", "id")
        return web.json_response(await _in_thread(backend.plan, body))

    async def links(request: web.Request) -> web.Response:
        check_fields(await read_body(request), {})
        return web.json_response(await _in_thread(backend.measure_links), status=202)

    async def watch(request: web.Request) -> web.Response:
        body = await read_body(request)
        check_fields(body, {"client": "name", "what": "level"}, ("client", "what"))
        return web.json_response(await _in_thread(backend.watch, body["client"], body["what"]))

    handlers = {"flag": flag, "eject": eject, "free": free, "clear_cache": clear_cache,
                "parse": parse, "plan": plan, "links": links, "watch": watch}  # fmt: skip
    return {("POST", f"/distorch/{name}"): _guarded(h) for name, h in handlers.items()}


def _guarded(handler: Handler) -> Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        try:
            return await handler(request)
        except RequestError as error:
            return error.response()
        except UnknownModelError as error:
            return RequestError(409, str(error)).response()

    return handle


async def _in_thread(action: Callable[..., Any], *arguments: Any) -> Any:
    return await asyncio.get_running_loop().run_in_executor(None, action, *arguments)


def add_to_table(routes: web.RouteTableDef, backend: Backend) -> None:
    """Register all routes but the profiler's in ComfyUI's table, before its server starts."""
    for (method, path), handler in make_routes(backend).items():
        if path != PROFILER_PATH:
            routes.route(method, path)(handler)


def add_profiler_route(routes: web.RouteTableDef, backend: Backend) -> bool:
    """Register the profiler's route unless another pack has; to be called after all packs."""
    for route in routes:
        if getattr(route, "path", "") == PROFILER_PATH:
            return False
    routes.get(PROFILER_PATH)(make_routes(backend)[("GET", PROFILER_PATH)])
    return True


def make_app(backend: Backend) -> web.Application:
    """Return an application with these routes alone, for tests and for tools."""
    app = web.Application(client_max_size=16 * BODY_LIMIT)
    for (method, path), handler in make_routes(backend).items():
        app.router.add_route(method, path, handler)
    return app
