# SPDX-License-Identifier: Apache-2.0
"""What a GGUF file holds, from its header alone: names, shapes and places of the tensors, no weights.

The file is not trusted: lengths and counts are checked against its size before anything is made of them. Little-endian
files of version 2 and 3 are read, which is what has been written since 2023.
"""

from __future__ import annotations

import math
import mmap
import os
import pathlib
import struct
from dataclasses import dataclass

MAGIC = b"GGUF"
MAX_NAME = 1024  # bytes; the format allows 64
MAX_DIMENSIONS = 8
MAX_VALUES = 2**53  # in one tensor
_SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # type → bytes
_U32, _STRING, _ARRAY = 4, 8, 9
_DEFAULT_ALIGNMENT = 32


class GgufError(ValueError):
    """The file is no GGUF file that can be read; the message says why."""


@dataclass(frozen=True)
class TensorInfo:
    """One tensor. `shape` as in torch, `bytes` as stored, with the padding behind it (31 bytes at most, as a rule)."""

    name: str
    shape: tuple[int, ...]
    bytes: int


@dataclass(frozen=True)
class Header:
    """A header: the kind of model ("flux", "t5encoder"; "" if the file does not say), and its tensors in file order."""

    architecture: str
    tensors: list[TensorInfo]


def read_header(path: str | os.PathLike[str]) -> Header:
    """Read the header of `path`.

    Raises:
        GgufError: it is no such file, or it ends too early.
        OSError: it cannot be opened or read.
    """
    path = pathlib.Path(path)
    with path.open("rb") as file:
        if path.stat().st_size < 24:
            raise GgufError(f"{path.name}: too short for a GGUF file")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Reader(data, path.name).header()


class _Reader:
    """Walks through the bytes; `_at` is where it is."""

    def __init__(self, data: mmap.mmap, name: str) -> None:
        self._data, self._name, self._at = data, name, 0

    def header(self) -> Header:
        if self._take(4) != MAGIC:
            raise GgufError(f"{self._name}: no GGUF file")
        version = self._number("I")
        if version not in (2, 3):
            raise GgufError(f"{self._name}: GGUF version {version} is not known (2 and 3 are)")
        tensors, values = self._number("Q"), self._number("Q")
        architecture, alignment = "", _DEFAULT_ALIGNMENT
        for _ in range(values):
            key, kind = self._string(), self._number("I")
            if key == "general.architecture" and kind == _STRING:
                architecture = self._string()
            elif key == "general.alignment" and kind == _U32:
                alignment = self._number("I")
            else:
                self._skip(kind)
        rows = [self._row() for _ in range(self._count(tensors, 24))]
        if alignment < 1:
            raise GgufError(f"{self._name}: tensors cannot be aligned to {alignment} bytes")
        return Header(architecture, self._sized(rows, -(-self._at // alignment) * alignment))

    def _row(self) -> tuple[str, tuple[int, ...], int]:
        name, dimensions = self._string(MAX_NAME), self._number("I")
        if dimensions > MAX_DIMENSIONS:
            raise GgufError(f"{self._name}: tensor {name} has {dimensions} dimensions")
        shape = tuple(self._number("Q") for _ in range(dimensions))
        if math.prod(shape) > MAX_VALUES:
            raise GgufError(f"{self._name}: tensor {name} has {math.prod(shape)} values")
        self._take(4)  # its type
        return name, shape[::-1], self._number("Q")

    def _sized(self, rows: list[tuple[str, tuple[int, ...], int]], start: int) -> list[TensorInfo]:
        """A tensor ends where the next one begins: no table of types is needed, nor out of date."""
        if not rows:
            return []
        found = []
        ordered = sorted(rows, key=lambda row: row[2])
        ends = [row[2] for row in ordered[1:]] + [len(self._data) - start]
        for (name, shape, begin), end in zip(ordered, ends, strict=True):
            if end < begin:
                raise GgufError(f"{self._name}: the file ends before tensor {name}")
            found.append(TensorInfo(name, shape, end - begin))
        return found

    def _skip(self, kind: int, depth: int = 0) -> None:
        if kind in _SCALARS:
            self._pass(_SCALARS[kind])
        elif kind == _STRING:
            self._pass(self._number("Q"))
        elif kind == _ARRAY and depth < 4:
            inner, count = self._number("I"), self._number("Q")
            if inner in _SCALARS:
                self._pass(_SCALARS[inner] * count)
                return
            for _ in range(self._count(count, 8)):
                self._skip(inner, depth + 1)
        else:
            raise GgufError(f"{self._name}: a value of type {kind} is not known")

    def _string(self, limit: int | None = None) -> str:
        length = self._number("Q")
        if limit is not None and length > limit:
            raise GgufError(f"{self._name}: a name of {length} bytes")
        return self._take(length).decode("utf-8", "replace")

    def _number(self, form: str) -> int:
        return int(struct.unpack("<" + form, self._take(struct.calcsize("<" + form)))[0])

    def _count(self, count: int, least: int) -> int:
        """A count of things that take at least that many bytes each."""
        if count * least > len(self._data) - self._at:
            raise GgufError(f"{self._name}: the file ends before its header does")
        return count

    def _take(self, size: int) -> bytes:
        begin = self._at
        self._pass(size)
        return self._data[begin : self._at]

    def _pass(self, size: int) -> None:
        """Go over bytes without reading them: a hostile header may call the whole file one value."""
        if self._at + size > len(self._data):
            raise GgufError(f"{self._name}: the file ends before its header does")
        self._at += size
