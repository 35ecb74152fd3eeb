# SPDX-License-Identifier: Apache-2.0
"""Headers of GGUF files: good ones, and those that lie."""

from __future__ import annotations

import pathlib
import struct

import gguf_writer as gguf
import pytest

from distorch.gguf_header import GgufError, TensorInfo, read_header

TENSORS = {
    "a.weight": ((64, 96), gguf.Q8_0),
    "a.bias": ((5,), gguf.F32),
    "b": ((2, 3, 4), gguf.F32),
}


def test_names_shapes_and_sizes_are_read(tmp_path: pathlib.Path) -> None:
    gguf.write(tmp_path / "x.gguf", TENSORS)
    header = read_header(tmp_path / "x.gguf")
    assert header.architecture == "wan"
    assert header.tensors == [
        TensorInfo("a.weight", (64, 96), 64 * 96 // 32 * 34),
        TensorInfo("a.bias", (5,), 32),  # 20 bytes, and the padding behind them
        TensorInfo("b", (2, 3, 4), 96),
    ]


def test_another_alignment_is_respected(tmp_path: pathlib.Path) -> None:
    value = gguf.string("general.alignment") + struct.pack("<II", gguf.U32, 128)
    text, size = gguf.header({"a": ((3,), gguf.F32)}, [value], alignment=128)
    (tmp_path / "x.gguf").write_bytes(text + bytes(size))
    assert read_header(tmp_path / "x.gguf").tensors == [TensorInfo("a", (3,), 128)]


def test_every_shorter_file_is_refused(tmp_path: pathlib.Path) -> None:
    gguf.write(tmp_path / "x.gguf", TENSORS)
    whole = (tmp_path / "x.gguf").read_bytes()
    begin = len(whole) - sum(t.bytes for t in read_header(tmp_path / "x.gguf").tensors)
    for length in range(begin):
        (tmp_path / "short.gguf").write_bytes(whole[:length])
        with pytest.raises(GgufError, match=r"short\.gguf: (too short|the file ends before)"):
            read_header(tmp_path / "short.gguf")


HUGE = 2**62
BAD = {
    "no GGUF file": b"GGML" + bytes(40),
    r"GGUF version 1 is not known \(2 and 3 are\)": b"GGUF"
    + struct.pack("<IQQ", 1, 0, 0)
    + bytes(8),
    "version 50331648 is not known": b"GGUF" + struct.pack(">IQQ", 3, 0, 0) + bytes(8),
    "ends before its header": b"GGUF" + struct.pack("<IQQ", 3, HUGE, 0) + bytes(8),
    "the file ends before its header": b"GGUF"
    + struct.pack("<IQQ", 3, 0, 1)
    + gguf.string("k")
    + struct.pack("<IIQ", gguf.ARRAY, gguf.STRING, HUGE),
    "file ends before its header does": b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, HUGE),
    "a value of type 77 is not known": b"GGUF"
    + struct.pack("<IQQ", 3, 0, 1)
    + gguf.string("k")
    + struct.pack("<IQ", 77, 0),
    "value of type 9 is not known": b"GGUF"
    + struct.pack("<IQQ", 3, 0, 1)
    + gguf.string("k")
    + struct.pack("<I", gguf.ARRAY)
    + struct.pack("<IQ", gguf.ARRAY, 1) * 6,
    "a name of 2000 bytes": b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + gguf.string("n" * 2000),
    "has 9 dimensions": b"GGUF"
    + struct.pack("<IQQ", 3, 1, 0)
    + gguf.string("n")
    + struct.pack("<I9Q", 9, *range(9)),
    "tensor n has 4611686018427387904 values": b"GGUF"
    + struct.pack("<IQQ", 3, 1, 0)
    + gguf.string("n")
    + struct.pack("<I2Q", 2, 2**31, 2**31),
    "the file ends before tensor a": gguf.header({"a": ((3,), gguf.F32)}, [])[0][:-16]
    + struct.pack("<Q", HUGE)
    + bytes(64),
    "cannot be aligned to 0 bytes": gguf.header(
        {"a": ((3,), gguf.F32)},
        [gguf.string("general.alignment") + struct.pack("<II", gguf.U32, 0)],
    )[0],
}


@pytest.mark.parametrize("message", BAD)
def test_what_cannot_be_is_refused(tmp_path: pathlib.Path, message: str) -> None:
    (tmp_path / "bad.gguf").write_bytes(BAD[message])
    with pytest.raises(GgufError, match=message):
        read_header(tmp_path / "bad.gguf")
