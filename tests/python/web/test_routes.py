# SPDX-License-Identifier: Apache-2.0
"""The REST interface: its description, its refusals, and what it passes on."""

from __future__ import annotations

import asyncio
import io
import json
import pathlib
import threading
from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest
import stand_in
from stand_in import StandInBackend, serve

ROOT = pathlib.Path(__file__).resolve().parents[3]
SCHEMA = json.loads((ROOT / "docs/openapi.json").read_text())
POSTS = ("flag", "eject", "free", "clear_cache", "parse", "watch")
GOOD = {"flag": {"id": 1, "eject": True}, "eject": {"ids": [1]}, "free": {"unload_models": True},
        "clear_cache": {}, "parse": {"text": "cuda:0,1gb"},
        "watch": {"client": "a", "what": "tab"}}  # fmt: skip


def asked(
    path: str, *, backend: Any = None, method: str = "POST", **options: Any
) -> tuple[int, Any]:
    async def run() -> tuple[int, Any]:
        async with (
            serve(backend or StandInBackend()) as server,
            aiohttp.ClientSession() as session,
            session.request(method, server.url + path, **options) as answer,
        ):
            text = await answer.text()
            return answer.status, json.loads(text) if text.startswith("{") else text

    return asyncio.run(run())


@pytest.mark.parametrize("name", POSTS)
@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
    ],
    ids=["cross-site", "same-site", "origin", "null", "port"],
)
def test_a_page_of_another_site_is_refused(name: str, headers: dict[str, str]) -> None:
    backend = StandInBackend()
    status, body = asked(f"/distorch/{name}", backend=backend, json=GOOD[name], headers=headers)
    assert status == 403
    assert body == {"error": "this request comes from another site"}
    assert backend.calls == []


@pytest.mark.parametrize("site", ["same-origin", "none"])
def test_a_page_of_this_server_is_served(site: str) -> None:
    status, body = asked("/distorch/eject", json={"ids": [2]}, headers={"Sec-Fetch-Site": site})
    assert status == 202
    assert body["models"] == [2]


@pytest.mark.parametrize("name", POSTS)
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_over_one_mebibyte_is_refused(name: str, chunked: bool) -> None:
    text = json.dumps({"text": "x" * (1024 * 1024)}).encode()

    async def pieces():
        for start in range(0, len(text), 65536):
            yield text[start : start + 65536]

    status, body = asked(
        f"/distorch/{name}",
        data=pieces() if chunked else io.BytesIO(text),
        headers={"Content-Type": "application/json"},
    )
    assert status == 413
    assert body == {"error": "the body is larger than 1048576 bytes"}


@pytest.mark.parametrize(
    ("kind", "data", "status", "message"),
    [
        ("text/plain", b"{}", 415, "the body must be application/json"),
        ("application/x-www-form-urlencoded", b"ids=1", 415, "the body must be application/json"),
        ("application/json", b"{", 400, "the body is not JSON"),
        ("application/json", b"\xff\xfe", 400, "the body is not JSON"),
        ("application/json", b"[" * 100_000, 400, "the body is not JSON"),
        ("application/json", b"[1]", 400, "the body must be a JSON object"),
        ("application/json", b"null", 400, "the body must be a JSON object"),
    ],
)
def test_only_a_json_object_is_read(kind: str, data: bytes, status: int, message: str) -> None:
    answer = asked("/distorch/eject", data=data, headers={"Content-Type": kind})
    assert answer == (status, {"error": message})


def test_a_body_that_is_encoded_otherwise_is_refused() -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    message = "the body is not encoded as its header says"
    assert asked("/distorch/eject", data=b"{}", headers=headers) == (400, {"error": message})


@pytest.mark.parametrize(
    ("name", "body", "field", "message"),
    [
        ("eject", {"ids": [1], "let_go": 1}, "let_go", "let_go must be true or false"),
        ("eject", {"ids": 1}, "ids", "ids must be a list of at most 1000 whole numbers"),
        ("eject", {"ids": ["1"]}, "ids", "ids must be a list of at most 1000 whole numbers"),
        ("eject", {"ids": [True]}, "ids", "ids must be a list of at most 1000 whole numbers"),
        ("eject", {"ids": [1.5]}, "ids", "ids must be a list of at most 1000 whole numbers"),
        ("eject", {"ids": [-1]}, "ids", "ids must be a list of at most 1000 whole numbers"),
        ("eject", {"ids": [1] * 1001}, "ids", "ids must be a list of at most 1000 whole numbers"),
        ("eject", {"path": "/etc/passwd"}, "path", "unknown field; known are: ids, let_go"),
        ("flag", {"id": 1}, "eject", "eject is missing"),
        ("flag", {"id": 1, "eject": 1}, "eject", "eject must be true or false"),
        ("free", {"unload_models": "yes"}, "unload_models", "unload_models must be true or false"),
        (
            "clear_cache",
            {"devices": [1]},
            "devices",
            "devices must be a list of at most 64 device names",
        ),
        ("parse", {"text": "x" * 16001}, "text", "text must be text of at most 16000 characters"),
        ("parse", {}, "text", "text is missing"),
        (
            "watch",
            {"client": "a", "what": "all"},
            "what",
            "what must be one of nothing, badges, tab",
        ),
    ],
)
def test_a_wrong_field_is_named(name: str, body: Any, field: str, message: str) -> None:
    backend = StandInBackend()
    answer = asked(f"/distorch/{name}", backend=backend, json=body)
    assert answer == (400, {"error": message, "field": field})
    assert backend.calls == []


WHOLE = "must be a whole number from 0 to"
UNKNOWN = "unknown parameter; known are:"


@pytest.mark.parametrize(
    ("path", "field", "message"),
    [
        ("/distorch/history?seconds=-1", "seconds", f"seconds {WHOLE} 604800"),
        ("/distorch/history?seconds=1e9", "seconds", f"seconds {WHOLE} 604800"),
        ("/distorch/history?seconds=604801", "seconds", f"seconds {WHOLE} 604800"),
        ("/distorch/history?file=../../etc/passwd", "file", f"{UNKNOWN} seconds, prompt"),
        ("/distorch/report", "ticket", f"ticket {WHOLE} 9007199254740991"),
        ("/distorch/report?ticket=x", "ticket", f"ticket {WHOLE} 9007199254740991"),
    ],
)
def test_a_wrong_parameter_is_named(path: str, field: str, message: str) -> None:
    assert asked(path, method="GET") == (400, {"error": message, "field": field})


def test_no_route_takes_a_path() -> None:
    for path, methods in SCHEMA["paths"].items():
        assert "{" not in path
        for method in methods.values():
            names = [p["name"] for p in method.get("parameters", [])]
            body = method.get("requestBody", {}).get("content", {}).get("application/json", {})
            names += body.get("schema", {}).get("properties", {})
            assert not {"path", "file", "filename", "folder", "url"} & set(names)


def test_an_unknown_model_or_device_is_said() -> None:
    assert asked("/distorch/eject", json={"ids": [99]}) == (
        409,
        {"error": "no live model has the id 99"},
    )
    assert asked("/distorch/clear_cache", json={"devices": ["cuda:9"]}) == (
        409,
        {"error": "there is no device 'cuda:9'"},
    )
    found = asked("/distorch/report?ticket=7", method="GET")
    assert found == (404, {"error": "there is no such ticket", "field": "ticket"})
    found = asked("/distorch/plan", json={"text": "auto"})
    assert found == (400, {"error": "give either id or model", "field": "id"})


def test_the_profiler_route_has_the_form_its_users_know() -> None:
    status, body = asked("/swissarmyknife/profiler/loaded_models", method="GET")
    assert status == 200
    assert body["success"] is True
    assert sorted(body["data"]) == ["0", "1"]
    first = body["data"]["0"]["models"][0]
    assert first["name"] == "Wan2_2-T2V-A14B-HIGH"
    assert first["vram_mb"] == 9216.0
    assert body["data"]["0"]["total_vram_mb"] == 9216.0 + 512.0 + 256.0


def test_the_profiler_route_gives_way_to_the_pack_that_has_it() -> None:
    from aiohttp import web

    table = web.RouteTableDef()
    assert stand_in.routes.add_profiler_route(table, StandInBackend()) is True
    assert stand_in.routes.add_profiler_route(table, StandInBackend()) is False
    assert [route.path for route in table] == ["/swissarmyknife/profiler/loaded_models"]


def test_every_route_is_described_and_every_description_is_a_route() -> None:
    described = {(m.upper(), path) for path, ms in SCHEMA["paths"].items() for m in ms}
    assert set(stand_in.routes.make_routes(StandInBackend())) == described


@pytest.fixture(scope="module")
def live_url() -> Iterator[str]:
    """A server in a thread of its own, for a client that is not asynchronous."""
    loop = asyncio.new_event_loop()
    ready: list[str] = []
    started, stop = threading.Event(), asyncio.Event()

    async def run() -> None:
        async with serve(StandInBackend()) as server:
            ready.append(server.url)
            started.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(run()))
    thread.start()
    assert started.wait(30)
    yield ready[0]
    loop.call_soon_threadsafe(stop.set)
    thread.join()
    loop.close()


try:
    import schemathesis
except ImportError as error:  # pragma: no cover
    raise ImportError("schemathesis is missing: pip install -r requirements/dev.txt") from error

from hypothesis import HealthCheck, settings  # noqa: E402

api = schemathesis.openapi.from_dict(SCHEMA)


@api.parametrize()
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_the_server_keeps_to_its_description(case: Any, live_url: str) -> None:
    case.call_and_validate(base_url=live_url)
