# SPDX-License-Identifier: Apache-2.0
"""What a safetensors file holds, from its header alone (`distorch/telemetry/safetensors_header.h`).

The file is not trusted: everything that the format forbids is refused, a truncated file too. No tensor is read.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from distorch import _load


class SafetensorsError(ValueError):
    """The file is no safetensors file; the message says where and why."""


@dataclass(frozen=True)
class TensorInfo:
    """One tensor: its bytes are [begin, end) behind the header; `dtype` as in the format ("BF16", "F8_E4M3")."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    """A header: tensors in the order of their bytes, `__metadata__`, and the length of its JSON text in bytes."""

    tensors: list[TensorInfo]
    metadata: dict[str, str]
    header_bytes: int


def read_header(path: str | os.PathLike[str]) -> Header:
    """Read the header of `path`.

    Raises:
        SafetensorsError: it is no safetensors file.
        OSError: it cannot be opened or read.
    """
    answer = _load.C.read_safetensors_header(os.fspath(path))
    if answer[0] is None:
        _, message, unreadable = answer
        raise OSError(message) if unreadable else SafetensorsError(message)
    tensors, metadata, header_bytes = answer
    return Header([TensorInfo(*t) for t in tensors], metadata, header_bytes)
