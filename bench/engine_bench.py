# SPDX-License-Identifier: Apache-2.0
"""What running group by group costs the host: packing slabs, and the hooks of a group in one step.

No kernel hides in the figures: the groups compute nothing, and a simulated device's copies end before they return. The
hooks' cost is the step with streaming, less the same step without, less the bare
copies of the same slabs, a group. It is to be below 10 µs.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn

Row = tuple[str, float, str, str]

GROUPS = 40
LEAVES = 10
WIDTH = 16

# At most, by row.
GOALS = {
    "engine: host time of the hooks, a group": 10.0,
    "engine on CUDA: host time without torch's hooks and CUDA's calls": 3.0,
    "engine on CUDA: host time with hooks and the double's calls": 8.0,
}


class _Leaf(nn.Module):
    """Two weights and no work."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(WIDTH, WIDTH), False)
        self.bias = nn.Parameter(torch.rand(WIDTH), False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class _Group(nn.Module):
    """What a transformer layer is to the engine: ten modules with weights."""

    def __init__(self) -> None:
        super().__init__()
        self.leaves = nn.ModuleList(_Leaf() for _ in range(LEAVES))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class _Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Group() for _ in range(GROUPS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def _fastest_us(
    run: Callable[[], object], repeats: int, before: Callable[[], object] = lambda: None
) -> float:
    """Return the fastest of several runs: what is asked for is the cost itself, not the load of the machine.

    `before` is called before each, outside of what is timed.
    """
    times = []
    for _ in range(repeats):
        before()
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times) * 1e6


def _streamed(model: nn.Module, compute: str) -> tuple[object, object]:
    from distorch.model_blocks import inventory
    from distorch.placing import place
    from distorch.run import StreamedExecutor

    placement = {block.name: "cpu" for block in inventory(model).blocks}
    placed = place(model, SimpleNamespace(placement=placement), compute=compute)
    return placed, StreamedExecutor(placed, modes={"cpu": "stream"})


def torch_hooks(repeats: int) -> float:
    """Return µs a group of what torch itself takes to call two hooks that do nothing: no engine of hooks costs less."""
    model, x = _Model().eval(), torch.zeros(1)
    with torch.inference_mode():
        plain = _fastest_us(lambda: model(x), repeats)
        for layer in model.layers:
            layer.register_forward_pre_hook(lambda *_: None)
            layer.register_forward_hook(lambda *_: None, always_call=True)
        return (_fastest_us(lambda: model(x), repeats) - plain) / GROUPS


def hook_overhead(repeats: int, device: str = "sim:0") -> tuple[float, float, float]:
    """Return µs a group of the host's time: hooks alone, the step with streaming, the bare copies.

    On a CUDA device, which is idle when a step begins, the step has CUDA's own calls in it.
    """
    if device.startswith("sim"):
        import distorch_sim

        distorch_sim.install([64 << 20])
    module = getattr(torch, device.partition(":")[0])

    def idle() -> None:
        module.synchronize(device)

    model = _Model().eval()
    x = torch.zeros(1, device=device)
    with torch.inference_mode():
        plain = _fastest_us(lambda: model(x), repeats, idle)
        placed, executor = _streamed(model, device)
        for _ in range(6):  # learns the order, then measures what it measures
            model(x)
        if executor.counters["copies"] < 5 * GROUPS:  # type: ignore[attr-defined]
            raise RuntimeError("the groups were not streamed")
        with_hooks = _fastest_us(lambda: model(x), repeats, idle)
        size = executor.slot_bytes  # type: ignore[attr-defined]
        source = torch.zeros(size, dtype=torch.uint8, pin_memory=device.startswith("cuda"))
        target = torch.zeros(size, dtype=torch.uint8, device=device)

        def copies() -> None:
            for _ in range(GROUPS):
                target.copy_(source, non_blocking=True)

        bare = _fastest_us(copies, repeats, idle)
        placed.unload()  # type: ignore[attr-defined]
    hooks = (with_hooks - plain - bare) / GROUPS
    return hooks, with_hooks / GROUPS, bare / GROUPS


def on_cuda(repeats: int) -> tuple[float, float]:
    """Return µs a group of the host's time where the core streams on CUDA's entry points, on their double.

    First without what torch takes to call two hooks, and with entry points that do nothing; then with both.
    """
    import distorch_sim
    import pytest

    support = str(Path(__file__).resolve().parents[1] / "tests" / "python" / "support")
    if support not in sys.path:
        sys.path.append(support)
    import fake_cuda

    distorch_sim.install([64 << 20])
    model, x = _Model().eval(), torch.zeros(1, device="sim:0")
    with (
        pytest.MonkeyPatch.context() as patch,
        fake_cuda.streamed_by_the_core(patch, computes=False) as fake,
        torch.inference_mode(),
    ):
        plain = _fastest_us(lambda: model(x), repeats)
        placed, executor = _streamed(model, "sim:0")
        for _ in range(6):
            model(x)
        if executor.counters["copies"] < 5 * GROUPS:  # type: ignore[attr-defined]
            raise RuntimeError("the groups were not streamed")
        with_double = _fastest_us(lambda: model(x), repeats, fake.library.fake_run_all)
        fake.library.fake_be_idle(True)
        idle = _fastest_us(lambda: model(x), repeats)
        fake.library.fake_be_idle(False)
        placed.unload()  # type: ignore[attr-defined]
        if fake.violations:
            raise RuntimeError(fake.violations[0])
    return (idle - plain) / GROUPS - torch_hooks(repeats), (with_double - plain) / GROUPS


def packing(megabytes: int, repeats: int) -> tuple[float, float]:
    """Return GB/s (2**30 bytes) of packing eight tensors into a slab, and of a bare copy into fresh memory."""
    from distorch import slabs

    whole = torch.zeros(megabytes << 20, dtype=torch.uint8)
    # Parts of what others use: they do not move into the slab, but are copied each time.
    tensors = whole.chunk(8)
    views = slabs.pack(tensors)
    if len(slabs.slabs_of(views)) != 1:
        raise RuntimeError("the tensors do not lie in one slab")
    del views
    pack = _fastest_us(lambda: slabs.pack(tensors), repeats)
    bare = _fastest_us(whole.clone, repeats)
    return whole.nbytes / pack * 1e6 / 2**30, whole.nbytes / bare * 1e6 / 2**30


def main(moment: bool = False) -> list[Row]:
    """Return the rows of bench/run.py."""
    repeats = 5 if moment else 200
    hooks, whole, bare = hook_overhead(repeats)
    packed, cloned = packing(8 if moment else 64, 3 if moment else 10)
    alone_us, double = on_cuda(repeats)
    label = f"{GROUPS} groups of {2 * LEAVES} tensors; the aim is at most 10"
    return [
        ("engine: host time of the hooks, a group", hooks, "µs", label),
        ("engine: of it, torch's calls of two empty hooks", torch_hooks(repeats), "µs", ""),
        (
            "engine on CUDA: host time without torch's hooks and CUDA's calls",
            alone_us,
            "µs",
            "entry points that do nothing; the aim is at most 3",
        ),
        (
            "engine on CUDA: host time with hooks and the double's calls",
            double,
            "µs",
            "the aim is at most 8",
        ),
        ("engine: step of groups that compute nothing, a group", whole, "µs", ""),
        ("engine: the bare copy of such a slab", bare, "µs", ""),
        ("engine: packing a slab", packed, "GB/s", f"a bare copy: {cloned:.2f} GB/s"),
    ]


if __name__ == "__main__":
    from run import alone

    sys.exit(alone(main, GOALS))
