# SPDX-License-Identifier: Apache-2.0
"""Writes GGUF files for tests: a header, and a hole where the weights would be."""

from __future__ import annotations

import pathlib
import struct
from collections.abc import Mapping

U8, U32, STRING, ARRAY = 0, 4, 8, 9
F32, Q8_0 = 0, 8
BLOCKS = {F32: (1, 4), Q8_0: (32, 34)}  # type → values and bytes in a block


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def padded(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment


def size_of(shape: tuple[int, ...], kind: int) -> int:
    values, size = 1, BLOCKS[kind]
    for length in shape:
        values *= length
    return values // size[0] * size[1]


def header(
    tensors: Mapping[str, tuple[tuple[int, ...], int]],
    values: list[bytes],
    *,
    version: int = 3,
    alignment: int = 32,
) -> tuple[bytes, int]:
    """The header's bytes, and how many follow it. Shapes are as in torch; `values` are packed already."""
    text, offset = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(values)), 0
    text += b"".join(values)
    for name, (shape, kind) in tensors.items():
        text += string(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1])
        text += struct.pack("<IQ", kind, offset)
        offset += padded(size_of(shape, kind), alignment)
    return text + bytes(padded(len(text), alignment) - len(text)), offset


def architecture(name: str) -> bytes:
    return string("general.architecture") + struct.pack("<I", STRING) + string(name)


def words(key: str, texts: list[str]) -> bytes:
    packed = b"".join(map(string, texts))
    return string(key) + struct.pack("<IIQ", ARRAY, STRING, len(texts)) + packed


def write(
    path: pathlib.Path, tensors: Mapping[str, tuple[tuple[int, ...], int]], kind: str = "wan"
) -> None:
    """A file of that architecture."""
    text, size = header(tensors, [architecture(kind), words("tokenizer.ggml.tokens", ["a", "bb"])])
    with path.open("wb") as file:
        file.write(text)
        file.truncate(len(text) + size)
