# SPDX-License-Identifier: Apache-2.0
"""Runs workflows on a ComfyUI server again and again and says whether anything of it grows.

    python tools/soak.py workflow.json [more.json ...] --cycles 1000
    python tools/soak.py workflow.json --interrupt-every 5 --pid 4711

Needs nothing but Python. The workflows are those that "Export (API)" writes; seeds in them are raised each cycle, so that
nothing comes from ComfyUI's cache, and what it remembers of them is deleted from its history. After each cycle everything is freed (`/free`), and what the devices hold, the
process' own memory, its open files and its threads are read: the last three where the server runs on this machine
(Linux), as its process is found by its port or told by --pid. At the end each figure of the last cycle is compared with
that of the last warm-up cycle. Exit status: 0 nothing grew, 1 something did or a workflow failed, 2 no server.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import pathlib
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterator
from typing import Any

PROC = pathlib.Path("/proc")
MOST_RSS = 1.01  # of the process' own memory at the end of the warm-up
SETTLE_SECONDS = 15.0  # that the worker gets to give everything back
LIMIT_SECONDS = 600.0  # for one workflow


class ServerError(Exception):
    """The server cannot be asked, or refused; the message says why."""


class Server:
    """What is asked of a server."""

    def __init__(self, url: str, pid: int | None) -> None:
        self._url = url.rstrip("/")
        self.pid = pid or process_on(urllib.parse.urlsplit(self._url).port or 80)

    def ask(self, path: str, body: object | None = None) -> Any:
        """GET, or POST of a body; returns the JSON of the answer, None where there is none."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self._url + path, data, {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            raise ServerError(f"{path}: HTTP {error.code}: {error.read()[:300]!r}") from None
        except OSError as error:
            raise ServerError(f"{self._url}{path}: {error}") from None
        return json.loads(text) if text else None

    def run(self, prompt: dict[str, Any], interrupt_after: float | None) -> str:
        """Run a workflow to its end; returns "success", "interrupted" or what went wrong."""
        queued = self.ask("/prompt", {"prompt": prompt, "client_id": uuid.uuid4().hex})
        number, begin, told = queued["prompt_id"], time.monotonic(), False
        while time.monotonic() - begin < LIMIT_SECONDS:
            entry = self.ask(f"/history/{number}").get(number)
            if entry is not None and entry.get("status", {}).get("completed") is not None:
                self.ask("/history", {"delete": [number]})  # ComfyUI keeps 10,000 of them
                return _outcome(entry["status"])
            if (
                interrupt_after is not None
                and not told
                and time.monotonic() - begin > interrupt_after
            ):
                self.ask("/interrupt", {"prompt_id": number})
                told = True
            time.sleep(0.05)
        return f"not done after {LIMIT_SECONDS:.0f} s"

    def free(self) -> None:
        """Have everything given back that may be."""
        self.ask("/free", {"unload_models": True, "free_memory": True})


def _outcome(status: dict[str, Any]) -> str:
    if status.get("status_str") == "success":
        return "success"
    for name, data in status.get("messages", []):
        if name == "execution_interrupted":
            return "interrupted"
        if name == "execution_error":
            return str(data.get("exception_message", "an error")).strip()
    return "an error"


@dataclasses.dataclass(frozen=True)
class Figures:
    """What the server holds. Of the process: None where it is not on this machine."""

    devices: dict[str, int]
    rss: int | None = None
    files: int | None = None
    threads: int | None = None


def look(server: Server) -> Figures:
    """Read all of it now: the process first, as the connection that asks for the rest is one of its files."""
    process: dict[str, int] = {}
    if server.pid is not None:
        folder = PROC / str(server.pid)
        fields = dict(
            line.split(":", 1)
            for line in (folder / "status").read_text().splitlines()
            if ":" in line
        )
        process["rss"] = 1024 * int(fields["VmRSS"].split()[0])
        process["files"] = sum(1 for _ in (folder / "fd").iterdir())
        process["threads"] = int(fields["Threads"])
    devices = {}
    for position, row in enumerate(server.ask("/system_stats")["devices"]):
        if row.get("type") != "cpu":
            name = f"{row.get('type')}:{row.get('index', position)}"
            devices[name] = int(row["vram_total"]) - int(row["vram_free"])
    return Figures(devices, **process)


def settled(server: Server, pause: float) -> Figures:
    """Look until three looks `pause` seconds apart find the devices alike, SETTLE_SECONDS at most: the worker may be slow."""
    end = time.monotonic() + SETTLE_SECONDS
    last, alike = look(server), 1
    while alike < 3 and time.monotonic() < end:
        time.sleep(pause)
        now = look(server)
        alike = alike + 1 if now.devices == last.devices else 1
        last = now
    return last


def process_on(port: int) -> int | None:
    """The process of this machine that listens on a port, if it may be looked into."""
    sockets = set()
    for table in ("tcp", "tcp6"):
        try:
            rows = (PROC / "net" / table).read_text().splitlines()[1:]
        except OSError:
            continue
        for fields in map(str.split, rows):
            if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                sockets.add(f"socket:[{fields[9]}]")
    for folder in PROC.glob("[0-9]*") if sockets else ():
        try:
            if any(str(file.readlink()) in sockets for file in (folder / "fd").iterdir()):
                return int(folder.name)
        except OSError:
            continue
    return None


def seeded(prompt: dict[str, Any], cycle: int) -> dict[str, Any]:
    """The workflow with other seeds."""
    changed = copy.deepcopy(prompt)
    for node in changed.values():
        for key in ("seed", "noise_seed"):
            if isinstance(node.get("inputs", {}).get(key), int):
                node["inputs"][key] += cycle
    return changed


def grown(before: Figures, after: Figures, known: int = 0) -> Iterator[str]:
    """What is more than it was, a line each; `known`: bytes by which others have grown the process meanwhile."""
    for device in sorted(before.devices.keys() | after.devices.keys()):
        was, now = before.devices.get(device, 0), after.devices.get(device, 0)
        if now > was:
            yield f"{device}: {now - was} bytes more are held than after the warm-up"
    if before.rss and after.rss and after.rss - known > MOST_RSS * before.rss:
        yield f"the process: {(after.rss - known) / before.rss - 1:+.2%} of its memory"
    for name in ("files", "threads"):
        was, now = getattr(before, name), getattr(after, name)
        if was is not None and now is not None and now > was:
            yield f"{name}: {was} before, {now} now"


def soak(server: Server, options: argparse.Namespace) -> int:
    """Run all cycles; returns the exit status."""
    prompts = [json.loads(path.read_text(encoding="utf-8")) for path in options.workflows]
    before: Figures | None = None
    warm = min(options.warm, options.cycles - 1)
    ends: dict[str, int] = {}
    for cycle in range(1, options.cycles + 1):
        every = options.interrupt_every
        stop = options.interrupt_after if every and cycle % every == 0 else None
        for path, prompt in zip(options.workflows, prompts, strict=True):
            end = server.run(seeded(prompt, cycle), stop)
            ends[end] = ends.get(end, 0) + 1
            if end not in ("success", "interrupted"):
                sys.stdout.write(f"cycle {cycle}, {path.name}: {end}\n")
                return 1
        server.free()
        now = settled(server, options.pause)
        if cycle == warm or options.cycles == 1:
            before = now
        if cycle in (1, options.cycles) or cycle % options.every == 0:
            sys.stdout.write(f"cycle {cycle}: {line_of(now)}\n")
            sys.stdout.flush()
    assert before is not None
    found = list(grown(before, now, options.known_growth * (options.cycles - warm)))
    sys.stdout.write("".join(f"GREW {line}\n" for line in found))
    count = ", ".join(f"{n} {end}" for end, n in sorted(ends.items()))
    sys.stdout.write(
        f"{options.cycles} cycles ({count}): {'something' if found else 'nothing'} grew\n"
    )
    return 1 if found else 0


def line_of(figures: Figures) -> str:
    """The figures on one line."""
    words = [f"{device} {size} bytes" for device, size in figures.devices.items()]
    if figures.rss is not None:
        words.append(f"process {figures.rss / 2**20:.1f} MB")
        words.append(f"{figures.files} files, {figures.threads} threads")
    return ", ".join(words)


def main() -> int:
    """Run it; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("workflows", nargs="+", type=pathlib.Path, metavar="WORKFLOW.json")
    parser.add_argument("--url", default="http://127.0.0.1:8188", help="default: %(default)s")
    parser.add_argument("--cycles", type=int, default=1000, help="default: %(default)s")
    parser.add_argument(
        "--warm", type=int, default=20, help="cycles before figures count: %(default)s"
    )
    parser.add_argument("--every", type=int, default=50, help="a line each so many cycles")
    parser.add_argument("--interrupt-every", type=int, default=0, help="interrupt each N-th cycle")
    parser.add_argument("--interrupt-after", type=float, default=0.3, help="seconds: %(default)s")
    parser.add_argument(
        "--pause", type=float, default=1.0, help="between looks, seconds: %(default)s"
    )
    parser.add_argument(
        "--known-growth",
        type=int,
        default=0,
        metavar="BYTES",
        help="by which others are known to grow the process in a cycle: safetensors 0.8 keeps some 32 a tensor",
    )
    parser.add_argument("--pid", type=int, help="of the server's process")
    options = parser.parse_args()
    if options.cycles < 1:
        parser.error("--cycles must be 1 or more")
    try:
        return soak(Server(options.url, options.pid), options)
    except ServerError as error:
        sys.stderr.write(f"soak: {error}\n")
        return 2


if __name__ == "__main__":
    sys.exit(main())
