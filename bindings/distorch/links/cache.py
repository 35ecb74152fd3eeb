# SPDX-License-Identifier: Apache-2.0
"""The file with what was measured: `$XDG_CACHE_HOME/distorch/links.json`, or `~/.cache/distorch/links.json`.

On Windows `%LOCALAPPDATA%\\distorch\\links.json`.

It is replaced at once. What cannot be read, has
another schema, or comes from another driver or torch counts as not there.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from distorch.links import identity
from distorch.printable import logger
from distorch.whole_file import read_whole, write_whole

SCHEMA = 1

_log = logger("distorch")
_lock = threading.Lock()  # guards _read
_read: dict[str, tuple[int, dict[str, Any]]] = {}  # path -> (its time of change, contents)


def cache_path() -> Path:
    """Return where the file is, or would be."""
    names = ("XDG_CACHE_HOME", "LOCALAPPDATA") if os.name == "nt" else ("XDG_CACHE_HOME",)
    folders = [Path(os.environ.get(name, "")) for name in names]
    folder = next((f for f in folders if f.is_absolute()), Path.home() / ".cache")
    return folder / "distorch" / "links.json"


def _versions() -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "driver": identity.machine().driver,
        "torch": identity.torch_version(),
    }


def load() -> dict[str, Any]:
    """Return the file's contents, or {} where nothing in it holds for this driver and torch."""
    path = cache_path()
    try:
        changed = path.stat().st_mtime_ns
        with _lock:
            known = _read.get(str(path))
            if known is None or known[0] != changed:
                known = (changed, _checked(json.loads(read_whole(path))))
                _read[str(path)] = known
    except (OSError, ValueError, KeyError, TypeError) as error:
        if not isinstance(error, FileNotFoundError):
            _log.info("%s is not used: %s", path, error)
        return {}
    contents = known[1]
    return contents if all(contents.get(k) == v for k, v in _versions().items()) else {}


def _checked(contents: Any) -> dict[str, Any]:
    """Return the contents with every field of every row of the right type. Raises what is wrong with them."""
    if contents["schema"] != SCHEMA:
        raise ValueError(f"schema {contents['schema']}, not {SCHEMA}")
    rows = [
        {
            "source": str(row["source"]),
            "target": str(row["target"]),
            "memory": str(row["memory"]),
            "gbps": float(row["gbps"]),
            "way": str(row["way"]),
            "peer_access": None if row["peer_access"] is None else bool(row["peer_access"]),
            "kind": str(row["kind"]),
            "bytes": int(row["bytes"]),
            "measured": str(row["measured"]),
        }
        for row in contents["links"]
    ]
    return {**{k: contents[k] for k in ("schema", "driver", "torch")}, "links": rows}


def save(rows: Iterable[Mapping[str, Any]]) -> Path:
    """Write rows (of `_checked`'s fields, ends by key), keeping those of other pairs. Raises OSError."""
    path = cache_path()
    rows = [dict(row) for row in rows]
    new = {(row["source"], row["target"], row["memory"]) for row in rows}
    kept = [
        row
        for row in load().get("links", [])
        if (row["source"], row["target"], row["memory"]) not in new
    ]
    text = json.dumps({**_versions(), "links": kept + rows}, indent=1) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text)
    with _lock:
        _read.pop(str(path), None)  # two writes within the clock's step look alike
    return path


def rows_by_ends() -> dict[tuple[str, str, str], dict[str, Any]]:
    """Return the valid rows by (source key, target key, memory)."""
    return {(r["source"], r["target"], r["memory"]): r for r in load().get("links", [])}


def cached_gbps(source: str, target: str) -> float:
    """Return the measured GB/s from `source` to `target`, or 0.0; the host's memory is pinned where it can be.

    Nothing is measured, and no device is initialised. A few microseconds once the file was read.
    """
    if source == target or not cache_path().exists():
        return 0.0
    rows = rows_by_ends()
    for memory in ("pinned", "pageable") if "cpu" in (source, target) else ("device",):
        row = rows.get((identity.key_of(source), identity.key_of(target), memory))
        if row is not None:
            return float(row["gbps"])
    return 0.0


def cached_ways() -> list[tuple[int, int, str, float]]:
    """Return the ways that were measured between this process's CUDA devices: (source, target, way, GB/s).

    The host is -1 and stands for pageable memory.
    """
    numbers = {str(device.uuid): index for index, device in identity.machine().nvml.items()}
    numbers["cpu"] = -1
    return [
        (numbers[row["source"]], numbers[row["target"]], row["way"], row["gbps"])
        for row in load().get("links", [])
        if row["memory"] in ("device", "pageable")
        and row["way"] in ("direct", "peer", "driver", "staged")
        and row["source"] in numbers
        and row["target"] in numbers
    ]
