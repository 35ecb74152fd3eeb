# SPDX-License-Identifier: Apache-2.0
"""The help pages as ComfyUI serves them, beside the nodes as it knows them."""

from __future__ import annotations

import urllib.request

from .server import ComfyServer


def fetch(comfy: ComfyServer, path: str) -> str:
    """The text that ComfyUI serves at a path."""
    with urllib.request.urlopen(f"http://127.0.0.1:{comfy.port}{path}", timeout=30) as answer:
        return str(answer.read().decode())


def described(page: str, heading: str) -> list[str]:
    """The names in the list below a heading."""
    part = page.split(f"## {heading}\n")[1].split("\n#")[0]
    lines = [line for line in part.splitlines() if line.startswith(("- `", "- **"))]
    return [line[2:].partition(": ")[0].strip("`*") for line in lines]


def compare(comfy: ComfyServer) -> int:
    """Asserts that each node of ours has a page with its inputs and outputs, in order; returns how many there are."""
    ours = {
        name: info
        for name, info in comfy.get("/object_info").items()
        if info["python_module"].endswith("DisTorch")
    }
    for name, info in ours.items():
        page = fetch(comfy, f"/extensions/DisTorch/docs/{name}.md")
        inputs = [n for part in ("required", "optional") for n in info["input"].get(part, {})]
        assert described(page, "Inputs") == inputs, name
        assert described(page, "Outputs") == info["output_name"], name
    return len(ours)
