# SPDX-License-Identifier: Apache-2.0
"""The core's copies from Python, on a library that plays CUDA with three devices."""

from __future__ import annotations

import ctypes
from typing import Any

import fake_cuda
import pytest

from distorch._load import core

LIBRARY = fake_cuda.LIBRARY
BYTES = 100_000


@pytest.fixture(scope="module")
def cuda() -> Any:
    library = ctypes.CDLL(LIBRARY)
    library.fake_memory.restype = library.fake_stream.restype = ctypes.c_void_p
    library.fake_memory.argtypes = [ctypes.c_int, ctypes.c_size_t]
    return library


@pytest.fixture(scope="module")
def router() -> Any:
    return core().TransferRouter(LIBRARY, LIBRARY, sample_bytes=1 << 20, chunk=65536)


def filled(cuda: Any, device: int, value: int) -> int:
    address = cuda.fake_memory(device, BYTES)
    ctypes.memset(address, value, BYTES)
    return int(address)


def test_a_copy_between_devices_goes_the_way_that_was_chosen(cuda: Any, router: Any) -> None:
    assert router.device_count() == 3
    choice = router.choose(0, 1)
    assert choice["way"] in ("peer", "staged")
    assert choice["peer_access"]
    assert [way for way, _, error in choice["candidates"] if not error] == ["peer", "staged"]
    source, target = filled(cuda, 0, 7), filled(cuda, 1, 0)
    router.copy(target, 1, source, 0, BYTES, 1, cuda.fake_stream(1))
    cuda.fake_run_all()
    assert ctypes.string_at(target, BYTES) == bytes([7]) * BYTES
    assert cuda.fake_violations() == 0


def test_host_memory_is_measured_pinned_and_pageable(router: Any) -> None:
    for pinned in (True, False):
        assert router.measure(-1, 2, "direct", pinned, 1 << 20, 2) > 0
        assert router.measure(2, -1, "staged", pinned, 1 << 20, 2) > 0


def test_wrong_arguments_are_value_errors(router: Any) -> None:
    with pytest.raises(ValueError, match="unknown way 'fast'; expected 'direct', 'peer'"):
        router.measure(0, 1, "fast", False, 1, 1)
    with pytest.raises(ValueError, match="needs a stream of one of them, not of cuda:2"):
        router.copy(1, 0, 1, 1, 5, 2, 0)
    with pytest.raises(RuntimeError, match="cuda:9 cannot be used: the driver answers error 101"):
        router.choose(0, 9)
