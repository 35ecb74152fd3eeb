# SPDX-License-Identifier: Apache-2.0
"""The header reader beside the format's reference implementation."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from distorch.safetensors_header import SafetensorsError, read_header


def write(path: Path, header: object, data: bytes = b"") -> Path:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def test_reads_what_the_reference_writes(tmp_path: Path) -> None:
    tensors = {
        "a.weight": torch.zeros(3, 4, dtype=torch.bfloat16),
        "b": torch.zeros(5, dtype=torch.float8_e4m3fn),
        "empty": torch.zeros(0, 7),
        "ünïcode": torch.zeros((), dtype=torch.int64),
    }
    path = tmp_path / "x.safetensors"
    save_file(tensors, path, metadata={"model_type": "Wan2_2", "modelspec.title": 'a "b"'})
    header = read_header(path)
    found = {t.name: (t.dtype, t.shape, t.end - t.begin) for t in header.tensors}
    assert found == {
        "a.weight": ("BF16", (3, 4), 24),
        "b": ("F8_E4M3", (5,), 5),
        "empty": ("F32", (0, 7), 0),
        "ünïcode": ("I64", (), 8),
    }
    assert header.metadata == {"model_type": "Wan2_2", "modelspec.title": 'a "b"'}
    assert header.header_bytes + 8 + 37 == path.stat().st_size


@pytest.mark.parametrize(
    ("entry", "data", "message"),
    [
        (
            {"dtype": "F32", "shape": [4194305, 4194305, 211106198978564], "data_offsets": [0, 4]},
            4,
            "a",
        ),
        ({"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}, 4, "a"),
        ({"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}, 4, "F99"),
        ({"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, 3, "end"),
    ],
    ids=["overflow", "size", "dtype", "truncated"],
)
def test_refuses_what_lies(tmp_path: Path, entry: object, data: int, message: str) -> None:
    path = write(tmp_path / "x.safetensors", {"a": entry}, bytes(data))
    with pytest.raises(SafetensorsError, match=message):
        read_header(path)


def test_a_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"none\.safetensors"):
        read_header(tmp_path / "none.safetensors")
