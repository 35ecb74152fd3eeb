# SPDX-License-Identifier: Apache-2.0
"""A corpus of hostile input (`support/hostile.py`) at every edge: nothing of it is run, read outside, obeyed or let in."""

from __future__ import annotations

import asyncio
import csv
import gzip
import io
import json
import logging
import os
import pathlib
import sys
import time
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

import aiohttp
import comfy_standin
import hostile
import pytest
from chromium import Page
from on_page import drawn, on_page
from pack_import import Pack, forget
from stand_in import GB, StandIn, StandInBackend, row, serve

from distorch import model_files, tables
from distorch.memory import scan_log
from distorch.printable import printable
from distorch.tools.monitor import Sample, answers, lines, plot
from distorch.tools.monitor.sample import PromptRun
from distorch.tools.monitor.sinks import Timeline

POSTS = ("flag", "eject", "free", "clear_cache", "parse", "plan", "links")
NONE = pathlib.Path("none")
WEBSOCKETS = 500
SLOW = 200


# Pickles under every name of a model file.


@pytest.mark.parametrize("name", hostile.pickles(NONE))
@pytest.mark.parametrize("ending", model_files.ENDINGS)
def test_a_pickle_is_never_run(tmp_path: pathlib.Path, ending: str, name: str) -> None:
    marker = tmp_path / "marker"
    (tmp_path / f"x{ending}").write_bytes(hostile.pickles(marker)[name])
    with pytest.raises((ValueError, OSError), match=r"^x|x\."):
        model_files.tensor_sizes(tmp_path / f"x{ending}")
    assert not marker.exists()


@pytest.mark.parametrize("ending", [*model_files.ENDINGS, model_files.INDEX])
@pytest.mark.parametrize("to", ["/dev/zero", "/dev/stdin", "a folder", "nothing", "itself", "fifo"])
def test_what_is_no_file_is_not_read(tmp_path: pathlib.Path, ending: str, to: str) -> None:
    path = tmp_path / f"x{ending}"
    (tmp_path / "a folder").mkdir()
    if to == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to(path if to == "itself" else to)
    words = r"^x.*: not a regular file$|No such file|Too many levels"
    with pytest.raises((OSError, ValueError), match=words):
        model_files.tensor_sizes(path)


# Names that lead elsewhere.

_opened: list[str] | None = None


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _opened is not None and isinstance(arguments[0], (str, bytes)):
        _opened.append(os.fsdecode(arguments[0]))


sys.addaudithook(_hook)


@pytest.fixture
def opened(tmp_path: pathlib.Path) -> Iterator[None]:
    """Nothing may be opened but below the test's folder, and what Python itself and the sources are."""
    global _opened
    _opened = []
    yield
    found, _opened = _opened, None
    folders = (tmp_path, sys.prefix, sys.base_prefix, pathlib.Path(__file__).parents[3])
    allowed = tuple(os.path.realpath(folder) for folder in folders)
    assert [path for path in found if not os.path.realpath(path).startswith(allowed)] == []


@pytest.fixture
def pack(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pack]:
    comfy = comfy_standin.StandIn()
    for name, module in comfy.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    made = Pack()
    for name, module in comfy.servers_modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    made.comfy = comfy  # type: ignore[attr-defined]
    yield made
    forget()


@pytest.mark.parametrize("name", hostile.TRAVERSAL, ids=range(len(hostile.TRAVERSAL)))
def test_a_name_leads_nowhere_else(
    opened: None, pack: Any, tmp_path: pathlib.Path, name: str
) -> None:
    folders = pack.comfy.folders
    folders.folder_names_and_paths = {"checkpoints": ([str(tmp_path)], set())}

    def full_path(folder: str, name: str) -> str | None:  # as ComfyUI: below its folder
        path = tmp_path / os.path.normpath("/" + name).lstrip("/")
        return str(path) if os.path.isfile(path) else None  # noqa: PTH113 - never raises

    folders.get_full_path = full_path
    (tmp_path / "x.txt").write_text("no model")
    server = type(
        "Server", (), {"prompt_queue": pack.comfy.queue, "sockets": {}, "send_sync": print}
    )
    view = pack.load("patches.view.memory_view").MemoryView(server(), pack.comfy.mm)
    unknown = pack.load("patches.view.request_checks").UnknownModelError
    with pytest.raises(unknown, match="no model file"):
        view.plan({"model": name, "text": "cpu,*"})
    with pytest.raises(FileNotFoundError, match="no model file"):
        pack.load("patches.placing.preview").path_of(f"checkpoints/{name}")


@pytest.mark.parametrize("name", hostile.TRAVERSAL, ids=range(len(hostile.TRAVERSAL)))
def test_an_index_leads_nowhere_else(opened: None, tmp_path: pathlib.Path, name: str) -> None:
    index = tmp_path / "x.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises((ValueError, OSError)):
        model_files.tensor_sizes(index)


# Names that are shown.


class HostileBackend(StandInBackend):
    """Each text in every field that the tab shows."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = [
            row(i + 1, text, "checkpoint", {"cuda:0": GB}, 4, class_name=text, file=text, managed=True,
                architecture=text, base_model=text, metadata={"modelspec.title": text}, shares_with=(text,),
                compute="cuda:0")
            for i, text in enumerate(hostile.HTML)
        ]  # fmt: skip
        self.nodes = {r.id: r.name for r in self.rows}

    def placements(self) -> dict[str, Any]:
        found = super().placements()["placements"][0]
        return {"placements": [
            {**found, "key": i + 1, "model": i + 1, "name": text, "file": text, "requested": text, "notes": [text],
             "streaming": text, "blocks": [{**b, "name": text, "reason": text, "waits": text} for b in found["blocks"][:2]]}
            for i, text in enumerate(hostile.HTML)
        ]}  # fmt: skip


def test_html_is_shown_as_text() -> None:
    async def check(page: Page, server: StandIn) -> None:
        await page.wait_for(
            f"document.querySelectorAll('.dt-model').length === {len(hostile.HTML)}"
        )
        shown = "JSON.stringify([...document.querySelectorAll('.dt-model .dt-name')].map(n => n.textContent))"
        assert sorted(json.loads(await page.evaluate(shown))) == sorted(hostile.HTML)
        for ticket, text in enumerate(hostile.HTML, 1):
            await server.send("distorch.report", {
                "ticket": ticket, "kind": "eject", "state": "failed", "asked": time.time(), "before": {}, "after": {},
                "freed": {}, "freed_total": 0, "details": {"names": [text]}, "error": text,
            })  # fmt: skip
        await drawn(page, server)
        assert await page.evaluate("String(window.pwned)") == "undefined"
        bad = (
            "iframe,object,embed,base,meta[http-equiv],form,video,audio,img[src=x],math,template,[onerror],[onload],"
            "[onfocus],[ontoggle],[onbegin],[onmouseover],[href^=javascript],[formaction],script:not([src]):not([type])"
        )
        assert await page.evaluate(f"document.querySelectorAll({json.dumps(bad)}).length") == 0

    on_page(check, HostileBackend())


SVG = "{http://www.w3.org/2000/svg}"
PARTS = {SVG + tag for tag in ("svg", "title", "style", "rect", "text", "path", "line", "circle", "polygon", "polyline", "g",
                               "defs", "pattern", "tspan")}  # fmt: skip


@pytest.mark.parametrize("text", hostile.HTML, ids=range(len(hostile.HTML)))
def test_a_picture_has_nothing_but_its_own_parts(text: str) -> None:
    run = PromptRun(text, text, 1.0, 5.0, {}, ())
    timeline = Timeline(lines.Chosen(every=True), capacity=10)
    timeline.take(Sample(time=2.0, source="history", devices=answers.system_stats(
        {"devices": [{"name": f"cuda:0 {text}", "type": "cuda", "index": 0, "vram_total": 10, "vram_free": 4}]}
    ), runs=(run,)))  # fmt: skip
    tree = ElementTree.fromstring(plot.render_svg(timeline, text))
    for element in tree.iter():
        assert element.tag in PARTS
        assert not [name for name in element.attrib if name.startswith("on") or "href" in name]


def safe(text: str) -> bool:
    """Whether a terminal shows it and does no more."""
    return all(c.isprintable() or c == "\n" for c in text)


@pytest.mark.parametrize("text", hostile.TERMINAL, ids=range(len(hostile.TERMINAL)))
def test_a_terminal_is_given_nothing_to_obey(text: str, pack: Any) -> None:
    assert safe(answers.text(text))
    assert safe(printable(text))
    for logger in (tables.log, scan_log._log, pack.load("patches.placing.request").log):
        stream = io.StringIO()
        handler = logging.StreamHandler(stream)
        logger.addHandler(handler)
        try:
            logger.error("%s of %d", text, 3)
        finally:
            logger.removeHandler(handler)
        assert stream.getvalue().endswith(" of 3\n")
        assert safe(stream.getvalue())


@pytest.mark.parametrize("text", hostile.FORMULAS, ids=range(len(hostile.FORMULAS)))
def test_a_table_has_no_formula(text: str) -> None:
    device = {"name": text, "type": text, "index": 0, "vram_total": 10, "vram_free": 4}
    try:
        found = answers.system_stats({"devices": [device, {**device, "name": f"cuda:0 {text}"}]})
    except answers.AnswerError:
        return
    sample = Sample(time=1.0, source="system_stats", devices=found)
    written = lines.Csv(lines.Chosen(every=True))(sample)
    for cells in csv.reader(io.StringIO(written)):
        assert len(cells) == 7
        assert not [
            cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n"))
        ]


# Requests.

GOOD = {"flag": {"id": 1, "eject": True}, "eject": {"ids": [1]}, "free": {"unload_models": True}, "clear_cache": {},
        "parse": {"text": "cuda:0,1gb"}, "plan": {"id": 1, "text": "auto"}, "links": {}}  # fmt: skip
JSON = {"Content-Type": "application/json"}


def bodies() -> dict[str, tuple[bytes, dict[str, str], set[int]]]:
    """Bodies with their headers, and what may be answered."""
    bomb = gzip.compress(bytes(100 * 2**20))
    return {
        "large": (b'{"text":"' + b"x" * 2**20 + b'"}', {}, {413}),
        "spaces": (b" " * (2**20 + 1), {}, {413}),
        "deep list": (b"[" * 500_000, {}, {400}),
        "deep object": (b'{"a":' * 100_000, {}, {400}),
        "many digits": (b'{"id":' + b"9" * 100_000 + b"}", {}, {400}),
        "many keys": (b"{" + b",".join(b'"%d":1' % i for i in range(50_000)) + b"}", {}, {400}),
        "infinite": (b'{"id":Infinity,"ids":[NaN]}', {}, {400}),
        "half a character": (b'{"text":"\\ud800"}', {}, {200, 202, 400}),
        "UTF-16": ('{"id":1}'.encode("utf-16"), {}, {400}),
        "no text": (bytes(range(256)), {}, {400}),
        "a bomb": (bomb, {"Content-Encoding": "gzip"}, {400, 413}),
        "a form": (b"ids=1", {"Content-Type": "application/x-www-form-urlencoded"}, {415}),
        "a file": (b"--x--", {"Content-Type": "multipart/form-data; boundary=x"}, {415}),
    }


@pytest.mark.parametrize("name", POSTS)
def test_a_page_of_another_site_changes_nothing(name: str) -> None:
    backend = StandInBackend()

    async def run() -> list[int]:
        async with serve(backend) as server, aiohttp.ClientSession() as session:
            host, found = server.url.removeprefix("http://"), []
            for headers in hostile.CROSS_SITE:
                sent = {key: value.replace("{host}", host) for key, value in headers.items()}
                async with session.post(
                    f"{server.url}/distorch/{name}", json=GOOD[name], headers=sent
                ) as answer:
                    found.append(answer.status)
            return found

    assert asyncio.run(run()) == [403] * len(hostile.CROSS_SITE)
    assert backend.calls == []


def test_a_body_changes_nothing() -> None:
    backend, given = StandInBackend(), bodies()

    async def run() -> dict[tuple[str, str], int]:
        found = {}
        connector = aiohttp.TCPConnector(force_close=True)  # what is refused may end one
        async with (
            serve(backend) as server,
            aiohttp.ClientSession(connector=connector) as session,
        ):
            for kind, (body, headers, _) in given.items():
                for name in POSTS:
                    sent = {**JSON, **headers}
                    async with session.post(
                        f"{server.url}/distorch/{name}", data=io.BytesIO(body), headers=sent
                    ) as answer:
                        found[kind, name] = answer.status
        return found

    found = asyncio.run(run())
    wrong = {key: status for key, status in found.items() if status not in given[key[0]][2]}
    assert wrong == {}
    assert [call for call in backend.calls if call[0] not in ("plan",)] == []


def test_slow_clients_hold_nobody_up() -> None:
    async def run() -> float:
        async with serve(StandInBackend()) as server, aiohttp.ClientSession() as session:
            host, port = server.url.removeprefix("http://").split(":")
            slow = await asyncio.gather(
                *(asyncio.open_connection(host, int(port)) for _ in range(SLOW))
            )
            for i, (_, each) in enumerate(slow):
                head = b"POST /distorch/eject HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                each.write(head if i % 2 else head + b"Content-Length: 100\r\n\r\n{")
            begin = time.monotonic()
            async with session.get(f"{server.url}/distorch/models") as answer:
                assert answer.status == 200
            for _, each in slow:
                each.close()
            return time.monotonic() - begin

    assert asyncio.run(run()) < 5


def test_five_hundred_websockets_are_served() -> None:
    async def run() -> float:
        async with (
            serve(StandInBackend()) as server,
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session,
        ):
            push, server.push = server.push, _nothing  # type: ignore[method-assign]
            sockets = [await session.ws_connect(f"{server.url}/ws") for _ in range(WEBSOCKETS)]
            begin = time.monotonic()
            await push()
            for each in sockets:
                assert (await each.receive_json())["type"] == "distorch.update"
            async with session.get(f"{server.url}/distorch/devices") as answer:
                assert answer.status == 200
            seconds = time.monotonic() - begin
            await asyncio.gather(*(each.close() for each in sockets))
            return seconds

    assert asyncio.run(run()) < 10


async def _nothing() -> None:
    pass


CASES = {
    "pickles by another name": len(hostile.pickles(NONE)) * len(model_files.ENDINGS),
    "links and pipes": 6 * (len(model_files.ENDINGS) + 1),
    "names that lead elsewhere": 2 * len(hostile.TRAVERSAL),
    "HTML in the tab and in pictures": 2 * len(hostile.HTML),
    "what a terminal obeys": len(hostile.TERMINAL),
    "formulas": len(hostile.FORMULAS),
    "other sites": len(hostile.CROSS_SITE) * len(POSTS),
    "bodies": len(bodies()) * len(POSTS),
    "slow clients": SLOW,
    "websockets": WEBSOCKETS,
}


def test_the_corpus_is_large_enough() -> None:
    inputs = sum(CASES.values()) - SLOW - WEBSOCKETS
    print("\n".join(f"{count:5} {name}" for name, count in CASES.items()))
    print(f"{inputs} cases, {SLOW} slow clients, {WEBSOCKETS} websockets")
    assert inputs >= 500
