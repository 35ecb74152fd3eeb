# SPDX-License-Identifier: Apache-2.0
"""The REST interface: who holds the memory, and giving it back. Described in docs/openapi.json.

Only HTTP is dealt with here: origin, size and types of a request, status and form of the
answer. What the routes do is the `Backend`'s. No route takes a path of a file.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol
from urllib.parse import urlsplit

from aiohttp import web

BODY_LIMIT = 1024 * 1024
TEXT_LIMIT = 16000  # characters of an allocation string
NAME_LIMIT = 100  # characters of a device's name
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


class RequestError(Exception):
    """A request that is refused: status, what is wrong, and the field that is."""

    def __init__(self, status: int, message: str, field: str = "") -> None:
        super().__init__(message)
        self.status, self.message, self.field = status, message, field

    def response(self) -> web.Response:
        """Return the answer that says so."""
        body = {"error": self.message, **({"field": self.field} if self.field else {})}
        return web.json_response(body, status=self.status)


class UnknownModelError(Exception):
    """An id that no live model has, or a model that cannot do what is asked."""


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


def is_same_origin(headers: Mapping[str, str]) -> bool:
    """Whether a request comes from a page of this server, or from no page at all.

    A browser says it in Sec-Fetch-Site; older ones send an Origin, which must then be the
    host that was asked. Programs send neither.
    """
    site = headers.get("Sec-Fetch-Site")
    if site is not None:
        return site in ("same-origin", "none")
    origin = headers.get("Origin")
    if origin is None:
        return True
    return urlsplit(origin).netloc.lower() == headers.get("Host", "").lower() != ""


async def read_body(request: web.Request) -> dict[str, Any]:
    """Return the JSON object of a POST. Raises RequestError: 403, 413, 415 or 400."""
    if not is_same_origin(request.headers):
        raise RequestError(403, "this request comes from another site")
    if (request.content_length or 0) > BODY_LIMIT:
        raise RequestError(413, f"the body is larger than {BODY_LIMIT} bytes")
    if request.content_type != "application/json":
        raise RequestError(415, "the body must be application/json")
    body = bytearray()
    async for chunk in request.content.iter_chunked(64 * 1024):
        body += chunk
        if len(body) > BODY_LIMIT:
            raise RequestError(413, f"the body is larger than {BODY_LIMIT} bytes")
    try:
        value = json.loads(body.decode("utf-8"))
    except (ValueError, RecursionError):
        raise RequestError(400, "the body is not JSON") from None
    if not isinstance(value, dict):
        raise RequestError(400, "the body must be a JSON object")
    return value


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def _text_of(most: int) -> Callable[[object], bool]:
    return lambda value: isinstance(value, str) and len(value) <= most


def _list_of(check: Callable[[object], bool], most: int) -> Callable[[object], bool]:
    return lambda value: isinstance(value, list) and len(value) <= most and all(map(check, value))


# kind -> (check, how it is called in a message)
KINDS: dict[str, tuple[Callable[[object], bool], str]] = {
    "boolean": (lambda value: isinstance(value, bool), "true or false"),
    "integer": (_is_integer, "a whole number from 0 to 2^53 - 1"),
    "text": (_text_of(TEXT_LIMIT), f"text of at most {TEXT_LIMIT} characters"),
    "integers": (_list_of(_is_integer, 1000), "a list of at most 1000 whole numbers"),
    "names": (_list_of(_text_of(NAME_LIMIT), 64), "a list of at most 64 device names"),
}


def check_fields(
    body: Mapping[str, Any], fields: Mapping[str, str], required: tuple[str, ...] = ()
) -> None:
    """Raise RequestError 400, which names the field, unless `body` has `fields` (name: kind) only."""
    for name, value in body.items():
        if name not in fields:
            known = ", ".join(fields) or "none"
            raise RequestError(400, f"unknown field; known are: {known}", name)
        check, description = KINDS[fields[name]]
        if not check(value):
            raise RequestError(400, f"{name} must be {description}", name)
    for name in required:
        if name not in body:
            raise RequestError(400, f"{name} is missing", name)


def _check_query(request: web.Request, *names: str) -> None:
    for given in request.query:
        if given not in names:
            raise RequestError(400, f"unknown parameter; known are: {', '.join(names)}", given)


def _query_text(request: web.Request, name: str) -> str | None:
    text = request.query.get(name)
    if text is not None and len(text) > NAME_LIMIT:
        raise RequestError(400, f"{name} must be text of at most {NAME_LIMIT} characters", name)
    return text


def _query_integer(request: web.Request, name: str, default: int | None, most: int) -> int:
    text = request.query.get(name)
    if text is None and default is not None:
        return default
    whole = text is not None and text.isascii() and text.isdigit() and len(text) < 17
    if text is None or not whole or int(text) > most:
        raise RequestError(400, f"{name} must be a whole number from 0 to {most}", name)
    return int(text)


def make_routes(backend: Backend) -> dict[tuple[str, str], Handler]:
    """Return the handlers by (method, path)."""
    return {**_reading_routes(backend), **_changing_routes(backend)}


def _reading_routes(backend: Backend) -> dict[tuple[str, str], Handler]:
    def plain(action: Callable[[], dict[str, Any]]) -> Handler:
        async def handle(_request: web.Request) -> web.Response:
            return web.json_response(await _in_thread(action))

        return _guarded(handle)

    async def history(request: web.Request) -> web.Response:
        _check_query(request, "seconds", "prompt")
        seconds = _query_integer(request, "seconds", 600, 7 * 24 * 3600)
        prompt = _query_text(request, "prompt")
        return web.json_response(await _in_thread(backend.history, seconds, prompt))

    async def report(request: web.Request) -> web.Response:
        _check_query(request, "ticket")
        ticket = _query_integer(request, "ticket", None, 2**53 - 1)
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

    handlers = {"flag": flag, "eject": eject, "free": free, "clear_cache": clear_cache,
                "parse": parse}  # fmt: skip
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
