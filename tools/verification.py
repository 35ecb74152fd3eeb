#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs every way to free memory in real ComfyUI and writes what happened into docs/verification.md.

For each ComfyUI in COMFYUI_PATH, with DynamicVRAM on and off: none, one or all of two models flagged (`keep_loaded` off),
freed by the Manager's button, `POST /free`, the unload node or `force_full_system_cleanup`, between two prompts and in the
middle of one. Each cell is compared with what it should be; one that differs ends the run with status 1.
"""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import json
import pathlib
import sys
import tempfile
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [
    str(ROOT / "tests" / "python" / "comfy"),
    str(ROOT / "tests" / "python" / "support"),
]

from comfy_harness import ComfyServer, Workflow, models, versions  # noqa: E402
from comfy_harness.server import Version  # noqa: E402

PAGE = ROOT / "docs" / "verification.md"
KEPT = ROOT / "build" / "verification"  # what each ComfyUI has shown: a run may be of one alone
FILES = ("wan.safetensors", "wan_second.safetensors")
STRING = "sim:0,5mb;sim:1,5mb;cpu,*"
FLAGGED = {"none": (), "one": FILES[1:], "all": FILES}
WAYS = ("Manager's button", "POST /free", "unload node", "force_full_system_cleanup")
WHEN = ("between prompts", "during a prompt")
MB = 2**20

# Runs in the server. Holds nothing of a model when it is done.
LOOK = """
def _verification_look():
    import gc, sys, torch
    keep = next(m for n, m in list(sys.modules.items()) if n.endswith(".keep") and hasattr(m, "managed"))
    gc.collect()
    found = {}
    for model in keep.managed():
        placed = model._distorch_placed
        tensors = [(n, id(t), str(t.device)) for n, t in model.named_parameters()]
        sizes = {}
        for t in model.parameters():
            sizes[str(t.device)] = sizes.get(str(t.device), 0) + t.nbytes
        found[placed.request.file] = {
            "tensors": tensors, "bytes": sizes,
            "host": sum(t.original.nbytes for b in placed.blocks for t in b.tensors)}
    return {"devices": {f"sim:{i}": torch.sim.memory_allocated(i) for i in range(2)}, "models": found}
"""
NOW = LOOK + "\nresult = _verification_look()\n"
CLEANUP = """
import sys
_old = next(m for n, m in list(sys.modules.items()) if n.endswith(".model_management_mgpu"))
_old.force_full_system_cleanup("verification")
"""
ASK = """
import json, urllib.request
urllib.request.urlopen(urllib.request.Request(
    "http://127.0.0.1:{port}/free", json.dumps({body!r}).encode(), {{"Content-Type": "application/json"}}))
"""
BODY = {
    "Manager's button": {"unload_models": True, "free_memory": True},
    "POST /free": {"unload_models": True},
}


@dataclasses.dataclass
class Cell:
    """What one run showed; bytes by device, models by file."""

    flagged: str
    way: str
    when: str
    before: dict[str, Any]
    after: dict[str, Any]
    log: list[str]

    @property
    def stayed(self) -> list[str]:
        """Models with the very same tensors on the same devices."""
        was, now = self.before["models"], self.after["models"]
        return [
            file for file in was if file in now and was[file]["tensors"] == now[file]["tensors"]
        ]

    @property
    def unloaded(self) -> list[str]:
        """Models that have no byte on an accelerator any more."""
        now = self.after["models"]
        return [f for f in self.before["models"] if f not in now or set(now[f]["bytes"]) == {"cpu"}]

    def faults(self) -> list[str]:
        """What is not as it should be."""
        leave = set(FILES) if self.way == "unload node" else set(FLAGGED[self.flagged])
        wrong = []
        if set(self.unloaded) != leave:
            wrong.append(f"unloaded {self.unloaded}, not {sorted(leave)}")
        if set(self.stayed) != set(FILES) - leave:
            wrong.append(f"the same tensors have {self.stayed}")
        if leave == set(FILES) and any(self.after["devices"].values()):
            wrong.append(f"{self.after['devices']} are still held")
        if not leave and self.after["devices"] != self.before["devices"]:
            wrong.append("the devices hold something else than before")
        return wrong


def workflow(flagged: str, extra: str, code: str) -> Workflow:
    """Both models are loaded and sampled; then the code runs, or the unload node between two looks."""
    w = Workflow()
    prompt, latent = w.conditioning(8, 4096), w.latent(1, 16, 1, 8, 8)
    value: Any = latent
    for file in FILES:
        model = w.add(
            "UNETLoaderDisTorch2MultiGPU",
            unet_name=file,
            weight_dtype="default",
            compute_device="sim:0",
            expert_mode_allocations=STRING,
            eject_models=False,
            keep_loaded=file not in FLAGGED[flagged],
        )
        value = w.sample(model, prompt, value, steps=1)
    if extra:
        value = w.add("DistorchTestRun", value=value, code=note("before") + code)
        if extra == "unload node":
            value = w.add("DisTorchUnload", value=value, unload="everything")
            value = w.add("DistorchTestRun", value=value, code=note("after"))
    return w.save(value, "out")


def note(name: str) -> str:
    """Code for a node that keeps a look under a name."""
    return f"{LOOK}\nimport torch\ntorch.distorch_verification_{name} = _verification_look()\n"


def run(server: ComfyServer, flagged: str, way: str, when: str) -> Cell:
    """One cell, on a server that holds no model of ours."""
    server.free()
    if when == "between prompts":
        server.run(workflow(flagged, "", ""))
        before, mark = server.evaluate(NOW), len(server.log())
        if way == "unload node":
            w = Workflow()
            value = w.add("DisTorchUnload", value=w.latent(1, 4, 8, 8), unload="everything")
            server.run(w.save(value, "out"))
        elif way == "force_full_system_cleanup":
            server.evaluate(CLEANUP)
        else:
            server.free(let_go=False, **{"unload_models": False, "free_memory": False, **BODY[way]})
        after = server.evaluate(NOW)
    else:
        mark = len(server.log())
        code = "" if way == "unload node" else CLEANUP if way[0] == "f" else ""
        if way in BODY:
            code = ASK.format(port=server.port, body=BODY[way])
        events = server.worker_events()
        server.run(workflow(flagged, way, code))
        noted = "result = torch.distorch_verification_{}"
        before = server.evaluate(noted.format("before"))
        if way == "unload node":
            after = server.evaluate(noted.format("after"))
        else:
            server.wait_for_flags(events)
            after = server.evaluate(NOW)
    lines = [line for line in server.log()[mark:].splitlines() if is_about_it(line)]
    return Cell(flagged, way, when, before, after, lines)


def is_about_it(line: str) -> bool:
    """Whether a line of the log tells of freeing."""
    words = ("free: ", "full cleanup", "given back", "unloaded ", "gave back")
    return any(word in line for word in words)


def shown(sizes: dict[str, int]) -> str:
    """Megabytes by device."""
    return ", ".join(f"{device} {size / MB:.2f}" for device, size in sizes.items())


def host(look: dict[str, Any]) -> str:
    """Megabytes of host copies."""
    return f"{sum(row['host'] for row in look['models'].values()) / MB:.2f}"


def row_of(cell: Cell) -> str:
    """A line of the page's table."""
    short = {FILES[0]: "A", FILES[1]: "B"}
    names = [
        "".join(sorted(short[f] for f in files)) or "none" for files in (cell.unloaded, cell.stayed)
    ]
    lines = list(dict.fromkeys(clean(line) for line in cell.log))
    return " | ".join(
        [
            f"| {cell.flagged}",
            cell.way,
            cell.when,
            f"{shown(cell.before['devices'])} → {shown(cell.after['devices'])}",
            f"{host(cell.before)} → {host(cell.after)}",
            *names,
            "<br>".join(lines) + " |",
        ]
    )


def clean(line: str) -> str:
    """A line of the log without colours and level, and short names for the files."""
    text = line.split("\x1b[0m ")[-1].removeprefix("[INFO] ").replace("|", "/")
    for file, name in zip(FILES, "AB", strict=True):
        text = text.replace(f"WAN21 ({file})", name)
    return text.split("; to let go of one")[0].strip()


HEAD = """# Verification of freeing memory

Made by `make verification` on {date}; not by hand. Two models, A and B, lie on two simulated devices and the host
(`{string}`). Of the two none, one (B) or all are flagged (`keep_loaded` off). Then memory is freed in each way, between two
prompts and in the middle of one, in real ComfyUI on simulated devices; no real GPU has been used.

- *Manager's button*: `POST /free` with both flags, as its "free model and node cache" sends it. *POST /free*: with
  `unload_models` alone. *unload node*: DisTorch Unload, `everything`; flags do not matter to it. The first two and
  `force_full_system_cleanup` act when the prompt has ended.
- Devices and host in MB. Host: the models' host copies, one each, also of what lies on a device.
- *stayed*: with the very same tensors on the same devices. A model that was unloaded and is kept, or held by the node
  cache, has its host copy still. A flagged one that the node cache alone holds goes when a prompt without it begins: that of
  the unload node between prompts is one.

{cells} cells, {faults} not as they should be.
"""
COLUMNS = "| flagged | by | when | devices | host | unloaded | stayed | log |\n|---|---|---|---|---|---|---|---|"


def verify(version: Version, base: pathlib.Path) -> dict[str, Any]:
    """All cells of one ComfyUI: lines of the page's table, and what is not as it should be."""
    server = ComfyServer(version, base)
    lines, faults = [], []
    try:
        for flagged, way, when in itertools.product(FLAGGED, WAYS, WHEN):
            cell = run(server, flagged, way, when)
            lines.append(row_of(cell))
            for fault in cell.faults():
                faults.append(f"{flagged} flagged, {way}, {when}: {fault}")
                print(f"FAIL  {version.name}: {faults[-1]}", *cell.log, sep="\n      ", flush=True)
    finally:
        server.stop()
    number = ".".join(map(str, version.number))
    title = f"## ComfyUI {number}, DynamicVRAM {'on' if version.dynamic else 'off'}"
    today = datetime.datetime.now(tz=datetime.timezone.utc).date().isoformat()
    return {"title": title, "date": today, "lines": lines, "faults": faults}


def main() -> int:
    """Run all, keep what each ComfyUI showed, and write the page of all that is kept; returns the exit status."""
    if not versions():
        print("COMFYUI_PATH names no ComfyUI: see tests/python/comfy/README.md")
        return 2
    KEPT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        made = pathlib.Path(folder)
        models.write_all(made / "models")
        for version in versions():
            base = made / version.name
            base.mkdir()
            (base / "models").symlink_to(made / "models")
            found = verify(version, base)
            (KEPT / f"{version.name}.json").write_text(json.dumps(found))
            print(f"{len(found['lines'])} cells of {version.name}", flush=True)
    kept = [json.loads(path.read_text()) for path in KEPT.glob("*.json")]
    kept.sort(key=lambda row: [-int(n) for n in row["title"].split()[2].strip(",").split(".")])
    cells, faults = (sum(len(row[key]) for row in kept) for key in ("lines", "faults"))
    parts = ["\n".join([row["title"], "", COLUMNS, *row["lines"]]) for row in kept]
    dates = ", ".join(sorted({row["date"] for row in kept}))
    head = HEAD.format(date=dates, string=STRING, cells=cells, faults=faults)
    PAGE.write_text("\n\n".join([head.strip(), *parts]) + "\n", encoding="utf-8")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
