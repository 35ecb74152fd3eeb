# SPDX-License-Identifier: Apache-2.0
"""What the tests in tests/python/cuda run on: a CUDA device, or a simulated one in its place for the dry run.

The bodies are the same on both. What only hardware can show (that the host really does not wait, for one) is marked
`hardware_only` and does not run on a simulated device. There, every test runs under `distorch_sim.races`, which finds
missing waits that a device which does everything at once cannot show.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from typing import Any

import torch
from placing import Layer
from torch import nn

MIB = 2**20


class Gpu:
    """One accelerator and what tests ask of it.

    Attributes:
        name: "cuda:0" or "sim:0".
        kind: the part before the colon.
        hardware: whether it is real.
        width: of the layers of a model that is large enough to be seen; a layer has about 32 * width ** 2 bytes.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.name = f"{kind}:0"
        self.device = torch.device(self.name)
        self.hardware = kind == "cuda"
        self.width = 512 if self.hardware else 64
        self.module: Any = getattr(torch, kind)

    def __str__(self) -> str:
        return self.name

    def synchronize(self) -> None:
        self.module.synchronize(self.device)

    def allocated(self) -> int:
        return int(self.module.memory_allocated(self.device))

    def peak(self) -> int:
        return int(self.module.max_memory_allocated(self.device))

    def reset_peak(self) -> None:
        self.module.reset_peak_memory_stats(self.device)

    def free(self) -> int:
        """Return the bytes that the device itself has left, when torch's allocator has given back what it can."""
        gc.collect()
        self.synchronize()
        self.module.empty_cache()
        return int(self.module.mem_get_info(self.device)[0])

    def sleep(self, milliseconds: float) -> None:
        """Keep the current stream busy; about so long, the clock of the device being unknown."""
        if self.hardware:
            torch.cuda._sleep(int(milliseconds * 1.5e6))

    def spoil(self, size: int) -> None:
        """Fill memory with NaN and give it back to torch's allocator: whoever takes it next finds them there."""
        spoilt = torch.full((size,), 0xFF, dtype=torch.uint8, device=self.device)
        del spoilt

    @contextlib.contextmanager
    def only(self, room: int) -> Iterator[None]:
        """Leave about `room` bytes free meanwhile; up to 20 MiB more on hardware, whose allocator takes so much at once."""
        hogs: list[torch.Tensor] = []
        least = 20 * MIB if self.hardware else 1
        size = self.free() - room
        while size >= least:
            try:
                hogs.append(torch.empty(size, dtype=torch.uint8, device=self.device))
            except torch.OutOfMemoryError:  # the allocator rounds up
                size //= 2
            else:
                size = min(size, int(self.module.mem_get_info(self.device)[0]) - room)
        try:
            yield
        finally:
            hogs.clear()
            gc.collect()
            self.module.empty_cache()

    @contextlib.contextmanager
    def calls(self) -> Iterator[list[str]]:
        """Return a list that in the end has every call of the device's runtime that was made inside."""
        made: list[str] = []
        if self.hardware:
            activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
            with torch.profiler.profile(activities=activities, acc_events=True) as profile:
                yield made
            made += [e.key for e in profile.key_averages() if e.key.startswith(("cuda", "cu", "Mem"))]  # fmt: skip
            return
        import distorch_sim

        def state() -> dict[str, int]:
            return {
                "allocation": distorch_sim.allocation_count(self.name),
                "copy": distorch_sim.copy_count(),
                "empty_cache": torch.sim.empty_cache_calls,
            }

        before = state()
        yield made
        made += [name for name, count in state().items() if count != before[name]]


class Block(Layer):
    """A layer that can be made slow, and that can spoil its weights once it has used them.

    A slot that is overwritten before the layer is done gives wrong results on a device that runs late, because of
    `sleep`; a slot whose new weights came before this layer let go of it has NaN in them, because of `poison`.
    """

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.gpu: Gpu | None = None
        self.sleep = 0.0  # milliseconds
        self.poison = False

    def forward(
        self, x: torch.Tensor, *, gate: dict[str, torch.Tensor] | None = None
    ) -> torch.Tensor:
        """Return the layer's output."""
        if self.gpu is not None and self.sleep:
            self.gpu.sleep(self.sleep)
        y = super().forward(x, gate=gate)
        if self.poison:
            for module in self.modules():
                for parameter in module._parameters.values():
                    if parameter is not None and parameter.device == x.device:
                        parameter.fill_(float("nan"))
        return y


class Deep(nn.Module):
    """Layers, run in the order given, and a head."""

    def __init__(self, width: int, layers: int = 8) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(width) for _ in range(layers))
        self.order = list(range(layers))
        self.head = nn.Linear(width, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the head makes of the last layer."""
        for index in self.order:
            x = self.layers[index](x)
        return self.head(x)


def deep(gpu: Gpu, layers: int = 8, width: int = 0) -> Deep:
    """Return a model with weights of its own in each layer, on the host; made fast, for there are many tests."""
    with torch.device("meta"):
        model = Deep(width or gpu.width, layers)
    model = model.to_empty(device="cpu").eval().requires_grad_(False)
    pool = torch.randn(1 << 20, generator=torch.Generator().manual_seed(3))
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for index, (name, tensor) in enumerate(tensors.items()):
        flat, scale = tensor.data.view(-1), tensor.shape[-1] ** -0.5 if tensor.dim() > 1 else 0.1
        begin = -7919 * index % pool.numel()
        while flat.numel():
            part = pool[begin : begin + flat.numel()]
            torch.mul(part, scale, out=flat[: part.numel()])
            flat, begin = flat[part.numel() :], 0
        if name.endswith("norm.weight"):
            tensor.data.add_(1)
    return model


def tokens(model: Deep, gpu: Gpu, count: int = 16) -> torch.Tensor:
    """Return inputs for a model, on the device."""
    weight = model.head.weight
    x = torch.randn(2, count, weight.shape[1], generator=torch.Generator().manual_seed(4))
    return x.to(weight.dtype).to(gpu.device)


def resident(model: nn.Module, gpu: Gpu, *inputs: torch.Tensor) -> torch.Tensor:
    """Return what the model gives with everything on the device, on the host; the model is on the host again after."""
    before = {
        (module, kind, key): tensor
        for module in model.modules()
        for kind in ("_parameters", "_buffers")
        for key, tensor in getattr(module, kind).items()
    }
    try:
        for (module, kind, key), tensor in before.items():
            if tensor is not None:
                moved = tensor.detach().to(gpu.device)
                getattr(module, kind)[key] = (
                    nn.Parameter(moved, False) if kind == "_parameters" else moved
                )
        return model(*inputs).cpu()
    finally:
        for (module, kind, key), tensor in before.items():
            getattr(module, kind)[key] = tensor
