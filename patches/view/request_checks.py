# SPDX-License-Identifier: Apache-2.0
"""What a request to the memory view may be: its origin, size and types. What is refused, and how that is said."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web

from .watchers import LEVELS

BODY_LIMIT = 1024 * 1024
TEXT_LIMIT = 16000  # characters of an allocation string
NAME_LIMIT = 100  # characters of a device's name
PARTS = ("model", "text encoder", "VAE", "whole file")  # of a checkpoint, as preview.PARTS
# Why a model cannot be moved off the GPU. The page has these sentences in other languages (web/texts.json).
IN_RAM = "It is in RAM already"
FOREIGN = "It was not loaded through ComfyUI: only the node that holds it can let it go"
FILE_LIMIT = 500  # characters of a model file's name in ComfyUI's folders


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
    try:
        async for chunk in request.content.iter_chunked(64 * 1024):
            body += chunk
            if len(body) > BODY_LIMIT:
                raise RequestError(413, f"the body is larger than {BODY_LIMIT} bytes")
    except web.RequestPayloadError:
        raise RequestError(400, "the body is not encoded as its header says") from None
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
    "name": (_text_of(FILE_LIMIT), f"text of at most {FILE_LIMIT} characters"),
    "part": (lambda value: value in PARTS, f"one of {', '.join(PARTS)}"),
    "level": (lambda value: value in LEVELS, f"one of {', '.join(LEVELS)}"),
    "text": (_text_of(TEXT_LIMIT), f"text of at most {TEXT_LIMIT} characters"),
    "integers": (_list_of(_is_integer, 1000), "a list of at most 1000 whole numbers"),
    "names": (_list_of(_text_of(NAME_LIMIT), 64), "a list of at most 64 device names"),
}


PLAN_FIELDS = {
    **{"id": "integer", "model": "name", "part": "part", "text": "text"},
    **{"compute": "name", "virtual_bytes": "integer", "donor": "name"},
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


def check_query(request: web.Request, *names: str) -> None:
    """Raise RequestError 400 for a parameter that is none of `names`."""
    for given in request.query:
        if given not in names:
            raise RequestError(400, f"unknown parameter; known are: {', '.join(names)}", given)


def query_text(request: web.Request, name: str) -> str | None:
    """Return a parameter, None without it; RequestError 400 where it is too long."""
    text = request.query.get(name)
    if text is not None and len(text) > NAME_LIMIT:
        raise RequestError(400, f"{name} must be text of at most {NAME_LIMIT} characters", name)
    return text


def query_integer(request: web.Request, name: str, default: int | None, most: int) -> int:
    """Return a parameter that is a whole number up to `most`; RequestError 400 for any other."""
    text = request.query.get(name)
    if text is None and default is not None:
        return default
    whole = text is not None and text.isascii() and text.isdigit() and len(text) < 17
    if text is None or not whole or int(text) > most:
        raise RequestError(400, f"{name} must be a whole number from 0 to {most}", name)
    return int(text)
