# SPDX-License-Identifier: Apache-2.0
"""A server with the pack's own routes and page files, over a backend that the test controls."""

from __future__ import annotations

import contextlib
import copy
import importlib
import pathlib
import sys
import time
from collections.abc import AsyncIterator
from types import ModuleType
from typing import Any

from aiohttp import WSMsgType, web

from distorch import allocation, memory, plan_view

ROOT = pathlib.Path(__file__).resolve().parents[3]
GB = 2**30


def load_patches(name: str) -> ModuleType:
    """A module of patches/ ("view.server_routes"), by path as ComfyUI does (the root never goes on sys.path)."""
    if "distorch_pack_patches" not in sys.modules:
        package = ModuleType("distorch_pack_patches")
        package.__path__ = [str(ROOT / "patches")]
        sys.modules["distorch_pack_patches"] = package
    return importlib.import_module(f"distorch_pack_patches.{name}")


routes = load_patches("view.server_routes")
checks = load_patches("view.request_checks")


def row(
    id: int, name: str, type: str, bytes: dict[str, int], layers: int, **more: Any
) -> memory.Row:
    defaults: dict[str, Any] = {
        "class_name": "Module", "modules": layers + 5, "parameters": sum(bytes.values()) // 2,
        "dtype": "float16", "loaded_since": time.time() - 130 * id,
    }  # fmt: skip
    return memory.Row(id=id, name=name, type=type, bytes=bytes, owned=bytes, layers=layers,
                    **{**defaults, **more})  # fmt: skip


def example_rows() -> list[memory.Row]:
    """Five models on two GPUs and in RAM."""
    return [
        row(1, "Wan2_2-T2V-A14B-HIGH", "checkpoint",
            {"cuda:0": 9 * GB, "cuda:1": 12 * GB, "cpu": 6 * GB}, 1145, class_name="WAN22",
            file="diffusion_models/Wan2_2-T2V-A14B-HIGH.safetensors", managed=True, compute="cuda:0",
            streamed=6 * GB, migrated=12 * GB, architecture="wan-2.2"),
        row(2, "umt5-xxl-enc", "clip", {"cuda:1": 6 * GB}, 242, class_name="UMT5XXlModel",
            file="text_encoders/umt5-xxl-enc.safetensors"),
        row(3, "VACE-Depth", "model", {"cuda:0": GB // 2}, 45, class_name="VaceDepth"),
        row(4, "wan_2.1_vae", "vae", {"cuda:0": GB // 4}, 97, class_name="WanVAE",
            file="vae/wan_2.1_vae.safetensors"),
        row(5, "DepthAnythingV2", "depth", {"cpu": GB}, 310, class_name="DepthAnythingV2", offloaded=GB),
    ]  # fmt: skip


def example_runs(now: float) -> list[dict[str, Any]]:
    """A prompt that ended and one that runs."""
    loaded = [{"name": "Wan2_2-T2V-A14B-HIGH", "type": "checkpoint", "bytes": {"cuda:0": 9 * GB}}]
    nodes = [
        {"node": "1", "kind": "UNETLoader", "started": now - 250, "ended": now - 240,
         "peak": {"cuda:0": 3 * GB}, "growth": {"cuda:0": GB}, "loaded": []},
        {"node": "7", "kind": "KSampler", "started": now - 240, "ended": now - 120,
         "peak": {"cuda:0": 23 * GB, "cuda:1": 18 * GB},
         "growth": {"cuda:0": 14 * GB, "cuda:1": 6 * GB}, "loaded": loaded},
    ]  # fmt: skip
    return [
        {"prompt": "a1", "started": now - 250, "ended": now - 118, "status": "success",
         "peak": {"cuda:0": 23 * GB, "cuda:1": 18 * GB}, "nodes": nodes},
        {"prompt": "b2", "started": now - 20, "ended": None, "status": "running",
         "peak": {"cuda:0": 12 * GB},
         "nodes": [{**nodes[0], "started": now - 20, "ended": now - 19},
                   {**nodes[1], "started": now - 19, "ended": None, "peak": {"cuda:0": 12 * GB},
                    "loaded": []}]},
    ]  # fmt: skip


def plan_of(text: str) -> dict[str, Any]:
    """As the pack's route answers, of the example's placed model."""
    gib = [(d.device, d.total, d.link_gbps) for d in PLAN_DEVICES]
    try:
        plan = allocation.make_plan(
            text, PLAN_BLOCKS, PLAN_DEVICES, "cuda:0", allocation.Options(slots=None)
        )
    except allocation.AllocationError as error:
        return {
            "ok": False,
            "message": error.message,
            "caret": error.caret,
            "expected": error.expected,
        }
    except allocation.PlanError as error:
        return {"ok": False, "message": error.message}
    machine = [{"device": d, "total": total, "free": total} for d, total, _ in gib]
    return {"ok": True, **plan_view.view(plan, PLAN_DEVICES, 1.0).as_json(), "machine": machine}


PLAN_DEVICES = [
    allocation.Device("cuda:0", 24 * GB, 24 * GB),
    allocation.Device("cuda:1", 24 * GB, 24 * GB, link_gbps=20.0),
    allocation.Device("cpu", 64 * GB, 64 * GB, link_gbps=12.0),
]
PLAN_BLOCKS = [
    allocation.Block(f"blocks.{i}.{part}", 27 * GB // 80, f"blocks.{i}")
    for i in range(40)
    for part in ("attn", "ffn")
]


ACTIVITY = {
    "load": 37, "temperature": 61, "power": 215.4, "power_limit": 450.0,
    "pcie_received": 9 * GB, "pcie_sent": 20 * 2**20,
    "processes": [{"pid": 11, "name": "python3", "bytes": 15 * GB, "own": True},
                  {"pid": 912, "name": "firefox", "bytes": GB // 2, "own": False},
                  {"pid": 913, "name": "", "bytes": None, "own": False}],
}  # fmt: skip


class StandInBackend:
    """Answers from `rows`; ejecting takes a row's accelerator bytes at once."""

    def __init__(self) -> None:
        self.rows = example_rows()
        self.flags: dict[int, bool] = {}
        self.kept = {1, 5}
        self.nodes: dict[int, str] = {}
        self.reports: dict[int, dict[str, Any]] = {}
        self.calls: list[tuple[Any, ...]] = []
        self.watched: list[tuple[str, str]] = []
        self.activity = {"cuda:0": dict(ACTIVITY)}

    def models(self) -> dict[str, Any]:
        found = []
        for r in sorted(self.rows, key=lambda r: -r.total):
            loaded = any(d != "cpu" for d in r.bytes) and r.id != 3
            ram = all(d == "cpu" for d in r.bytes)
            why = "" if loaded else checks.IN_RAM if ram else checks.FOREIGN
            eject = self.flags.get(r.id, False)
            told = {"eject": eject, "ejectable": loaded, "why_not": why, "kept": r.id in self.kept,
                    "node": self.nodes.get(r.id, "")}  # fmt: skip
            found.append({**r.as_json(), **told})
        return {"models": found, "scan_ms": 1.5}

    def devices(self) -> dict[str, Any]:
        views = []
        for device, name, total in (
            ("cuda:0", "NVIDIA GeForce RTX 4090", 24 * GB),
            ("cuda:1", "NVIDIA GeForce RTX 4090", 24 * GB),
            ("cpu", "RAM", 64 * GB),
        ):
            models = sum(r.bytes.get(device, 0) for r in self.rows)
            tensors, unused, other = (0, 0, 11 * GB) if device == "cpu" else (GB, 2 * GB, GB // 2)
            free = total - models - tensors - unused - other
            views.append({"device": device, "name": name, "total": total, "free": free,
                          "models": models, "tensors": tensors, "unused": unused,
                          "other": other, "activity": self.activity.get(device)})  # fmt: skip
        return {"devices": views}

    def placements(self) -> dict[str, Any]:
        if all(r.id != 1 for r in self.rows):
            return {"placements": []}
        how = {"cuda:0": "resident", "cuda:1": "migrated", "cpu": "streamed"}
        devices = ["cuda:0"] * 14 + ["cuda:1"] * 18 + ["cpu"] * 8
        return {"placements": [{
            "key": 1, "name": "Wan2_2-T2V-A14B-HIGH", "file": "wan.safetensors", "compute": "cuda:0",
            "requested": "cuda:0,9gb;cuda:1,12gb;cpu,*", "state": "placed",
            "blocks": [{"name": f"blocks.{i}", "device": d, "how": how[d], "bytes": 27 * GB // 40,
                        "reason": "", "waits": ""} for i, d in enumerate(devices)],
            "bytes": {"cuda:0": 9 * GB, "cuda:1": 12 * GB, "cpu": 6 * GB},
            "streaming": "8 groups are streamed, 6144.00 MB a step; 18 groups run on cuda:1",
            "streamed_bytes": 6 * GB, "staging_bytes": 2 * GB, "model": 1,
            "caps": {"cuda:0": 11 * GB, "cuda:1": 12 * GB, "cpu": 64 * GB}, "pinned_bytes": 6 * GB,
            "notes": ["cuda:0 has 11.00 GB free (less its reserve), its entry asks for 12.00 GB: its cap is lowered to 11.00 GB"],
            "predicted_step_ms": 1030.0, "measured_step_ms": 1084.2,
        }]}  # fmt: skip

    def history(self, seconds: int, prompt: str | None = None) -> dict[str, Any]:
        now = time.time()
        shape = [0.1, 0.1, 0.35, 0.5, 0.5, 0.9, 0.55, 0.52, 0.5, 0.5]
        samples = []
        for i, share in enumerate(shape):
            devices = {}
            for v in self.devices()["devices"]:
                used = int(share * v["total"])
                peak = min(v["total"], used + (2 * GB if i == 5 and v["device"] != "cpu" else 0))
                held = 0 if v["device"] == "cpu" else used // 2
                devices[v["device"]] = {"used": used, "total": v["total"], "allocated": held,
                                        "reserved": held, "peak": peak}  # fmt: skip
            samples.append({"time": now - 270 + i * 30, "devices": devices})
        runs = [r for r in example_runs(now) if prompt in (None, r["prompt"])]
        return {"seconds": seconds, "interval": 1.0, "samples": samples, "runs": runs}

    def metrics(self) -> str:
        return (
            "# HELP distorch_up 1 while the pack runs.\n# TYPE distorch_up gauge\ndistorch_up 1\n"
        )

    def profiler(self) -> dict[str, Any]:
        return memory.profiler_form(self.rows)

    def report(self, ticket: int) -> dict[str, Any] | None:
        return self.reports.get(ticket)

    def flag(self, model_id: int, eject: bool) -> dict[str, Any]:
        self._known(model_id)
        self.calls.append(("flag", model_id, eject))
        self.flags[model_id] = eject
        return {"id": model_id, "eject": eject}

    def eject(self, ids: list[int] | None, let_go: bool = False) -> dict[str, Any]:
        for model_id in ids or ():
            self._known(model_id)
        self.calls.append(("let_go" if let_go else "eject", ids))
        if let_go:
            self.kept -= set(ids or ())
        chosen = [i for i, on in self.flags.items() if on] if ids is None else ids
        freed: dict[str, int] = {}
        for index, r in enumerate(self.rows):
            if r.id in chosen:
                for device, size in r.bytes.items():
                    if device != "cpu":
                        freed[device] = freed.get(device, 0) + size
                kept = copy.deepcopy(r)
                object.__setattr__(kept, "bytes", {"cpu": r.total})
                object.__setattr__(kept, "offloaded", r.total)
                self.rows[index] = kept
        return self._ticket("eject", freed, "unload the models", list(chosen))

    def free(self, unload_models: bool, free_memory: bool) -> dict[str, Any]:
        self.calls.append(("free", unload_models, free_memory))
        if unload_models:
            self.rows = []
        return self._ticket("free", {}, "free models", [])

    def clear_cache(self, devices: list[str] | None) -> dict[str, Any]:
        self.calls.append(("clear_cache", devices))
        for device in devices or ():
            if device not in ("cuda:0", "cuda:1", "cpu"):
                raise routes.UnknownModelError(f"there is no device {device!r}")
        return self._ticket("clear_cache", {}, "clear the caches", [])

    def parse(self, text: str) -> dict[str, Any]:
        return {"ok": True, "normal": text}

    def plan(self, asked: dict[str, Any]) -> dict[str, Any]:
        self.calls.append(("plan", asked.get("text")))
        return plan_of(asked.get("text", ""))

    def measure_links(self) -> dict[str, Any]:
        self.calls.append(("links",))
        return self._ticket("links", {}, "measure the links", [])

    def watch(self, client: str, what: str) -> dict[str, Any]:
        self.watched.append((client, what))
        return {"client": client, "what": what}

    def _known(self, model_id: int) -> None:
        if all(r.id != model_id for r in self.rows):
            raise routes.UnknownModelError(f"no live model has the id {model_id}")

    def _ticket(
        self, kind: str, freed: dict[str, int], will: str, models: list[int]
    ) -> dict[str, Any]:
        ticket = len(self.reports) + 1
        before = {v["device"]: v["total"] - v["free"] for v in self.devices()["devices"]}
        before = {d: n + freed.get(d, 0) for d, n in before.items()}
        names = [r.name for r in self.rows if r.id in models]
        self.reports[ticket] = {"ticket": ticket, "kind": kind, "state": "done", "asked": time.time(),
                                "before": before, "after": {d: n - freed.get(d, 0) for d, n in before.items()},
                                "freed": freed, "freed_total": sum(freed.values()), "details": {"names": names},
                                "error": ""}  # fmt: skip
        return {"ticket": ticket, "kind": kind, "asked": time.time(), "when": "now", "will": will,
                "models": models}  # fmt: skip


class StandIn:
    """The running server. `push()` sends the state to every page, as ComfyUI's websocket would."""

    def __init__(self, backend: Any) -> None:
        self.backend, self.url = backend, ""
        self.sent = 0  # messages to the page; of several pages, to all together
        self._sockets: set[web.WebSocketResponse] = set()

    def app(self) -> web.Application:
        app = web.Application(client_max_size=16 * 2**20)
        for prefix in ("", "/api"):
            for (method, path), handler in routes.make_routes(self.backend).items():
                app.router.add_route(method, prefix + path, handler)
        page = pathlib.Path(__file__).parent / "page"
        app.router.add_get("/ws", self._socket)
        app.router.add_get("/", self._index)
        app.router.add_static("/scripts", page / "scripts")
        app.router.add_static("/extensions/DisTorch", ROOT / "web")
        return app

    async def _index(self, _request: web.Request) -> web.FileResponse:
        return web.FileResponse(pathlib.Path(__file__).parent / "page/index.html")

    async def _socket(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        self._sockets.add(socket)
        await self.push()  # before the page's extensions are set up
        async for message in socket:
            if message.type == WSMsgType.ERROR:
                break
        self._sockets.discard(socket)
        return socket

    async def send(self, kind: str, data: dict[str, Any]) -> None:
        for socket in list(self._sockets):
            await socket.send_json({"type": kind, "data": data})
            self.sent += 1

    async def push(self) -> None:
        b = self.backend
        await self.send("distorch.update", {**b.models(), **b.devices(), **b.placements()})


@contextlib.asynccontextmanager
async def serve(backend: Any) -> AsyncIterator[StandIn]:
    """Serves on a free port of this machine."""
    stand_in = StandIn(backend)
    runner = web.AppRunner(stand_in.app(), shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    stand_in.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield stand_in
    finally:
        await runner.cleanup()
