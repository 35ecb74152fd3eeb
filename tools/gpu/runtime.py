# SPDX-License-Identifier: Apache-2.0
"""CUDA's runtime as the probes call it: the library that torch has loaded, or a stand-in for the dry run."""

from __future__ import annotations

import ctypes
import mmap
from typing import Any, ClassVar

import torch

MIB = 2**20
_PORTABLE = 1
_DEFAULT = 4  # cudaMemcpyDefault


class Pages:
    """Whole pages of host memory that nothing else lies on."""

    def __init__(self, size: int) -> None:
        """Map `size` bytes, untouched."""
        self._map = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.size = size
        self._first = ctypes.c_char.from_buffer(self._map)
        self.address = ctypes.addressof(self._first)

    def fill(self) -> None:
        """Touch every page, with bytes that differ."""
        pattern = bytes(range(256)) * 16
        for begin in range(0, self.size, len(pattern)):
            self._map[begin : begin + len(pattern)] = pattern[begin // len(pattern) % 256 :] + pattern[: begin // len(pattern) % 256]  # fmt: skip

    def bytes(self, begin: int, size: int) -> bytes:
        """Return a part."""
        return self._map[begin : begin + size]

    def close(self) -> None:
        """Give the memory back."""
        if self._first is not None:
            self._first = None
            self._map.close()

    def __enter__(self) -> Pages:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Give the memory back."""
        self.close()


class _Attributes(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("device", ctypes.c_int),
        ("device_pointer", ctypes.c_void_p),
        ("host_pointer", ctypes.c_void_p),
        ("reserved", ctypes.c_long * 8),
    )


class Runtime:
    """The few calls that the probes make; all return CUDA's error number."""

    pretended = False

    def __init__(self, library: Any, device: str) -> None:
        """`library`: CUDA's runtime."""
        self._library = library
        self.device = device
        library.cudaGetErrorName.restype = ctypes.c_char_p

    def name(self, code: int) -> str:
        """Return the name of an error."""
        return str(self._library.cudaGetErrorName(code).decode())

    def register(self, address: int, size: int) -> int:
        """Pin pages."""
        return int(self._library.cudaHostRegister(ctypes.c_void_p(address), ctypes.c_size_t(size), _PORTABLE))  # fmt: skip

    def unregister(self, address: int) -> int:
        """Undo it."""
        return int(self._library.cudaHostUnregister(ctypes.c_void_p(address)))

    def copy(self, target: int, source: int, size: int) -> int:
        """Queue a copy on the default stream."""
        return int(self._library.cudaMemcpyAsync(ctypes.c_void_p(target), ctypes.c_void_p(source), ctypes.c_size_t(size), _DEFAULT, None))  # fmt: skip

    def synchronize(self) -> int:
        """Wait for the device."""
        return int(self._library.cudaDeviceSynchronize())

    def peek_error(self) -> int:
        """Return the last error and leave it."""
        return int(self._library.cudaPeekAtLastError())

    def take_error(self) -> int:
        """Return the last error and clear it."""
        return int(self._library.cudaGetLastError())

    def pointer_kind(self, address: int) -> int:
        """Return 0 for unregistered, 1 for host and 2 for device memory, or minus the error."""
        attributes = _Attributes()
        code = int(self._library.cudaPointerGetAttributes(ctypes.byref(attributes), ctypes.c_void_p(address)))  # fmt: skip
        return -self.take_error() if code else int(attributes.type)


def open_runtime(device: str) -> Runtime:
    """Return the runtime that torch uses; its context is made on `device`."""
    torch.zeros(1, device=device)
    major = str(torch.version.cuda).split(".")[0]
    return Runtime(ctypes.CDLL(f"libcudart.so.{major}"), device)


class StandIn(Runtime):
    """Answers without CUDA, so that the probes themselves are run: as CUDA is documented, nothing is learned from it."""

    pretended = True
    _NAMES: ClassVar = {0: "cudaSuccess", 1: "cudaErrorInvalidValue", 712: "cudaErrorHostMemoryAlreadyRegistered"}  # fmt: skip

    def __init__(self, device: str) -> None:
        """Nothing is registered yet."""
        self.device = device
        self._registered: dict[int, int] = {}
        self._last = 0

    def _answer(self, code: int) -> int:
        self._last = code or self._last
        return code

    def name(self, code: int) -> str:
        """See Runtime."""
        return self._NAMES[code]

    def register(self, address: int, size: int) -> int:
        """See Runtime."""
        if address in self._registered:
            return self._answer(712)
        with open("/proc/self/maps") as maps:  # noqa: PTH123
            ranges = [tuple(int(n, 16) for n in line.split()[0].split("-")) for line in maps]
        if not any(low <= address < high for low, high in ranges):
            return self._answer(1)
        self._registered[address] = size
        return 0

    def unregister(self, address: int) -> int:
        """See Runtime."""
        return self._answer(0 if self._registered.pop(address, 0) else 1)

    def copy(self, target: int, source: int, size: int) -> int:
        """See Runtime; refuses what lies in two registrations."""
        for address, length in self._registered.items():
            if address <= source < address + length < source + size:
                return self._answer(1)
        ctypes.memmove(target, source, size)
        return 0

    def synchronize(self) -> int:
        """See Runtime."""
        return 0

    def peek_error(self) -> int:
        """See Runtime."""
        return self._last

    def take_error(self) -> int:
        """See Runtime."""
        code, self._last = self._last, 0
        return code

    def pointer_kind(self, address: int) -> int:
        """See Runtime."""
        return int(any(a <= address < a + n for a, n in self._registered.items()))
