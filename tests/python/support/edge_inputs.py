# SPDX-License-Identifier: Apache-2.0
"""What comes from outside, changed at random: files of models, answers of servers and programs, settings.

Each edge is a function of bytes that may refuse them in the one way it promises, and otherwise has to give something
that holds together. The suite gives them changed seeds for a moment, `make fuzz-edges` inputs by Atheris for minutes.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import random
import struct
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pack_import import Pack

from distorch import gguf_header, model_files, safetensors_header
from distorch.tools.e2e.events import Tracker
from distorch.tools.e2e.workflow import Node
from distorch.tools.monitor import answers, gpus
from distorch.tools.monitor.answers import AnswerError

Check = Callable[[bytes], None]


@dataclass(frozen=True)
class Edge:
    """`seeds` are good inputs; `check` raises for bytes that are treated in a way nobody promised."""

    name: str
    seeds: tuple[bytes, ...]
    check: Check


_folder = pathlib.Path(tempfile.mkdtemp(prefix="distorch-edges-"))


def _file(name: str, data: bytes) -> pathlib.Path:
    path = _folder / name
    path.write_bytes(data)
    return path


def _string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def _gguf_seed() -> bytes:
    values = _string(b"general.architecture") + struct.pack("<I", 8) + _string(b"llama")
    values += _string(b"tokens") + struct.pack("<IIQ", 9, 8, 2) + _string(b"a") + _string(b"b")
    values += _string(b"general.alignment") + struct.pack("<II", 4, 32)
    row = _string(b"blk.0.w") + struct.pack("<IQQIQ", 2, 8, 4, 0, 0)
    return b"GGUF" + struct.pack("<IQQ", 3, 1, 3) + values + row + bytes(256)


def _gguf(data: bytes) -> None:
    path = _file("edge.gguf", data)
    with contextlib.suppress(gguf_header.GgufError):
        header = gguf_header.read_header(path)
        if sum(t.bytes for t in header.tensors) > len(data):
            raise AssertionError("tensors larger than the file")
        if any(t.bytes < 0 for t in header.tensors):
            raise AssertionError("a tensor of less than nothing")


def _safetensors_seed() -> bytes:
    header = json.dumps(
        {
            "__metadata__": {"format": "pt"},
            "a": {"dtype": "F16", "shape": [2, 2], "data_offsets": [0, 8]},
            "b": {"dtype": "F32", "shape": [], "data_offsets": [8, 12]},
        }
    ).encode()
    return struct.pack("<Q", len(header)) + header + bytes(12)


def _safetensors(data: bytes) -> None:
    with contextlib.suppress(safetensors_header.SafetensorsError):
        header = safetensors_header.read_header(_file("edge.safetensors", data))
        at = 0
        for tensor in header.tensors:
            if tensor.begin != at or tensor.end < tensor.begin:
                raise AssertionError("tensors with holes or one over the other")
            at = tensor.end
        if at + 8 + header.header_bytes != len(data):
            raise AssertionError("tensors outside of the file")


def _index(data: bytes) -> None:
    _file("part.safetensors", _safetensors_seed())
    path = _file("edge.safetensors.index.json", data)
    with contextlib.suppress(ValueError):
        for name in model_files._indexed(path):
            if pathlib.PurePath(name).name != name:
                raise AssertionError(f"{name!r} is in another folder")
        model_files.tensor_sizes(path)


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def _stats(data: bytes) -> None:
    with contextlib.suppress(AnswerError):
        for device in answers.system_stats(_json(data)):
            if min(device.used, device.free, device.total) < 0:
                raise AssertionError("less than no memory")


def _history(data: bytes) -> None:
    answer = _json(data)
    times = [time for time, _ in answers.history_samples(answer)]
    if times != sorted(times):
        raise AssertionError("samples out of order")
    answers.runs(answer)
    answers.queue(answer)


def _smi(data: bytes) -> None:
    with contextlib.suppress(AnswerError):
        for gpu in gpus._parse_smi(data.decode("utf-8", "replace")):
            gpu.sample("cuda:0")


def _messages(data: bytes) -> None:
    tracker = Tracker("p", {"1": Node("1", "KSampler", "KSampler")})
    for i, line in enumerate(data.splitlines()):
        message = _json(line)
        if isinstance(message, dict):
            tracker.feed(message, float(i))
            tracker.read_history(message, float(i))


_pack: list[Pack] = []


def _load(name: str) -> Any:
    if not _pack:
        _pack.append(Pack())
    return _pack[0].load(name)


def _settings(data: bytes) -> None:
    module = _load("patches.settings")
    path = _file("comfy.settings.json", data)
    settings = module.Settings(lambda: [path])
    settings.look()
    for name, value in settings.values().items():
        if not module.CHOICES[name].accepts(value):
            raise AssertionError(f"{name} is {value!r}")


def _body(data: bytes) -> None:
    module = _load("patches.view.server_routes")
    body = _json(data)
    if isinstance(body, dict):
        for fields in ({"ids": "integers", "let_go": "boolean"}, {"devices": "names"}):
            with contextlib.suppress(module.RequestError):
                module.check_fields(body, fields)
                json.dumps(body)


_DEVICE = {"name": "cuda:0 NVIDIA A : cudaMallocAsync", "type": "cuda", "index": 0,
           "vram_total": 8589934592, "vram_free": 4294967296, "torch_vram_total": 1048576,
           "torch_vram_free": 4096}  # fmt: skip
_RUN = {"prompt": "p", "started": 1.5, "ended": 2.5, "status": "done", "peak": {"cuda:0": 5},
        "nodes": [{"node": "1", "kind": "K", "started": 1.6, "loaded": [{"name": "m", "bytes": {"cpu": 3}}]}]}  # fmt: skip
_SAMPLE = {"time": 1.0, "devices": {"cuda:0": {"used": 5, "total": 9, "peak": 6}}}


def _dump(*values: object) -> tuple[bytes, ...]:
    return tuple(json.dumps(value).encode() for value in values)


EDGES = (
    Edge("gguf", (_gguf_seed(),), _gguf),
    Edge("safetensors", (_safetensors_seed(),), _safetensors),
    Edge("index", _dump({"weight_map": {"a": "part.safetensors", "b": "part.safetensors"}}), _index),
    Edge("system_stats", _dump({"devices": [_DEVICE, {"total_mem_mb": 8, "used_mem_mb": 2}]}), _stats),
    Edge("history", _dump({"samples": [_SAMPLE, _SAMPLE], "runs": [_RUN],
                           "queue_running": [[1, "p", {"1": {}}]], "queue_pending": []}), _history),
    Edge("nvidia-smi", (b"GPU-1, NVIDIA A, 8192, 100, 8000\nGPU-2, B, C, 24, [N/A], 3\n",), _smi),
    Edge("messages", (b"\n".join(_dump(
        {"type": "executing", "data": {"prompt_id": "p", "node": "1"}},
        {"type": "progress", "data": {"prompt_id": "p", "value": 1, "max": 2}},
        {"type": "execution_error", "data": {"prompt_id": "p", "node_id": "1"}},
        {"status": {"messages": [["execution_cached", {"nodes": ["1"]}]]}})),), _messages),
    Edge("settings", _dump({"DisTorch.reserve_gb": 1.5, "DisTorch.strict": True,
                            "DisTorch.log_level": "DEBUG", "Other.x": [1]}), _settings),
    Edge("body", _dump({"ids": [1, 2], "let_go": True}, {"devices": ["cuda:0"]}), _body),
)  # fmt: skip

TOKENS = (
    b"null", b"true", b"-1", b"1e999", b"NaN", b"9007199254740993", b"9" * 5000, b'""', b"[]", b"{}",
    b'"\\ud800"', b'"\\u0000"', b'"../x"', b"[" * 2000, b"\xff\xff\xff\xff\xff\xff\xff\xff", b"\0" * 8,
    b"\x1b[2J", b"<script>", b"\xc3", b"\xd9\xa1", b",", b":", b"\n",
)  # fmt: skip


def mutated(seed: bytes, rng: random.Random) -> bytes:
    """Return a seed with one to four changes: bytes, pieces that go, come twice, or are something else."""
    data = bytearray(seed)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data) + 1)
        end = min(len(data), at + rng.choice([0, 1, 1, 4, 8, 32]))
        kind = rng.randrange(5)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del data[at:end]
        elif kind == 2:
            data[at:end] = rng.choice(TOKENS)
        elif kind == 3:
            data[at:at] = data[at:end]
        else:
            data[at:end] = rng.randbytes(end - at)
    return bytes(data)


def run(edge: Edge, count: int, first: int = 0) -> None:
    """Check `count` changed seeds. Raises AssertionError with the bytes that were treated wrongly."""
    for number in range(first, first + count):
        rng = random.Random(f"{edge.name} {number}")
        data = mutated(rng.choice(edge.seeds), rng)
        try:
            edge.check(data)
        except Exception as error:
            raise AssertionError(
                f"{edge.name} {number}: {type(error).__name__}: {error}: {data[:300]!r}"
            ) from error
