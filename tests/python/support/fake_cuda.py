# SPDX-License-Identifier: Apache-2.0
"""The double of CUDA's entry points (tests/support/cuda) for Python: its devices are the simulated ones, 0 computes.

`sim` does everything at once; the double runs copies as late as events allow, tells of accesses that no event orders,
and has a virtual clock. Before a module computes, a kernel that reads its tensors is queued there, and what has to be
done for it.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import distorch_sim
import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from distorch._load import core
from distorch.run import attached, byte_streaming, pinning

LIBRARY = str(next(Path(distorch_sim.__file__).parent.glob("libfake_cuda.*")))


class FakeDevice:
    """What `distorch.run.cuda.CudaDevice` is, of the double."""

    def __init__(self, fake: FakeCuda) -> None:
        self.router, self.index = fake.router, 0
        # By no function of Python, as with CUDA: the time of it is not the engine's.
        self.stream = functools.partial(getattr, fake, "compute")

    def number(self, device: torch.device) -> int:
        return -1 if device.type == "cpu" else int(device.index)

    def open_to(self, donor: torch.device) -> None:
        pass


class FakeCuda:
    """The double, new.

    Attributes:
        compute: the compute device's stream.
        seconds: how long a module computes, by the module; nothing for those not in it.
    """

    def __init__(self, seed: int = 1, *, hip: bool = False, patience: float = 600.0) -> None:
        self.library = library()
        self.library.fake_reset(seed)
        self.router = core().TransferRouter(LIBRARY, LIBRARY, 1 << 16, 1 << 14, hip, patience)
        self.compute: int = self.library.fake_stream(0)
        self.device = FakeDevice(self)
        self.seconds: dict[nn.Module, tuple[float, str]] = {}

    @property
    def violations(self) -> list[str]:
        count = self.library.fake_violations()
        return [self.library.fake_violation(i).decode() for i in range(count)]

    def copied(self, source: str) -> int:
        """Return the bytes copied from a device or the host to the compute device."""
        number = -1 if source == "cpu" else int(source.removeprefix("sim:"))
        return int(self.library.fake_copied(number, 0))

    def streamer(self, make: Callable[..., Any]) -> Callable[..., Any]:
        """Return `core().ByteStreamer`, which tells the double first whose memory it is given."""

        def made(
            router: Any, index: int, slots: list[int], parts: Any, owner: Any, stream: int
        ) -> Any:
            for part in (part for group in parts for part in group):
                address, device, _, size, pinned = part
                if device >= 0:
                    self.library.fake_adopt(device, address, size)
                elif pinned is None:
                    self.library.fake_disown(address, size)
            for slot, buffer in zip(slots, owner, strict=False):
                self.library.fake_adopt(0, slot, buffer.nbytes)
            return make(router, index, slots, parts, owner, stream, 1 << 14)

        return made

    def before_compute(self, module: nn.Module, _args: Any) -> None:
        """Queue a kernel that reads what the module itself holds, and do what it waits for."""
        seconds, label = self.seconds.get(module, (0.0, "kernel"))
        tensors = [*module._parameters.values(), *module._buffers.values()]
        held = [t for t in tensors if t is not None]
        if not held and not seconds:
            return
        for tensor in held:
            self.library.fake_kernel(self.compute, 0.0, tensor.data_ptr(), tensor.nbytes, b"")
        if seconds:
            self.library.fake_kernel(self.compute, seconds, None, 0, label.encode())
        self.library.fake_finish(self.compute)


def library() -> Any:
    """Return the shared library, with the types of its functions."""
    loaded = ctypes.CDLL(LIBRARY)
    for name in ("fake_memory", "fake_stream"):
        getattr(loaded, name).restype = ctypes.c_void_p
    for name in ("fake_violation", "fake_interval"):
        getattr(loaded, name).restype = ctypes.c_char_p
    size, pointer = ctypes.c_size_t, ctypes.c_void_p
    loaded.fake_copied.restype = size
    loaded.fake_done_at.restype = ctypes.c_double
    loaded.fake_done_at.argtypes = loaded.fake_finish.argtypes = [pointer]
    loaded.fake_memory.argtypes = [ctypes.c_int, size]
    loaded.fake_adopt.argtypes = [ctypes.c_int, pointer, size]
    loaded.fake_disown.argtypes = [pointer, size]
    loaded.fake_kernel.argtypes = [pointer, ctypes.c_double, pointer, size, ctypes.c_char_p]
    loaded.fake_be_idle.argtypes = [ctypes.c_bool]
    loaded.fake_set_link.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_double]
    return loaded


@contextlib.contextmanager
def streamed_by_the_core(
    monkeypatch: pytest.MonkeyPatch,
    seed: int = 1,
    *,
    computes: bool = True,
    patience: float = 600.0,
) -> Iterator[FakeCuda]:
    """Let the engine stream on sim:0 as it does on CUDA; without `computes` modules queue no kernels."""
    fake = FakeCuda(seed, patience=patience)
    real = core()

    class Core:
        ByteStreamer = staticmethod(fake.streamer(real.ByteStreamer))

        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

    def cuda_device(device: torch.device) -> FakeDevice | None:
        return fake.device if str(device) == "sim:0" else None

    monkeypatch.setattr(byte_streaming, "core", Core)
    for module in (attached, pinning):
        monkeypatch.setattr(module, "cuda_device", cuda_device)
    hook = register_module_forward_pre_hook(fake.before_compute) if computes else None
    try:
        yield fake
    finally:
        if hook is not None:
            hook.remove()
