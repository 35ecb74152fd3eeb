# SPDX-License-Identifier: Apache-2.0
"""What it costs to know who holds the memory: the registry beside a walk over every Python object."""

from __future__ import annotations

import gc
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import nn

Row = tuple[str, float, str, str]

OBJECTS = 720_000  # about what a ComfyUI with a few packs keeps

# At most, by row: 2 ms for 10,000 modules in 100 models; 0.1 % of a core at a sample a second.
GOALS = {"scan: nothing changed": 2.0, "sampler: one sample": 1000.0}


def _block() -> nn.Module:
    attention = nn.ModuleDict({name: nn.Linear(8, 8) for name in "qkvo"})
    return nn.Sequential(attention, nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)))


def _walk() -> dict[int, int]:
    """Bytes by model as a plain scan of the collector's objects finds them, sums by recursion."""
    modules = [o for o in gc.get_objects() if issubclass(type(o), nn.Module)]
    children = {id(child) for module in modules for child in module.children()}
    return {
        id(module): sum(t.nbytes for t in [*module.parameters(), *module.buffers()])
        for module in modules
        if id(module) not in children
    }


def _median_ms(run: Callable[[], object], repeats: int) -> float:
    """Processor time: all of it is work of this thread, and other processes do not count."""
    times = []
    for _ in range(repeats):
        start = time.thread_time()
        run()
        times.append(time.thread_time() - start)
    return statistics.median(times) * 1000


def _sample_us(samples: int) -> float:
    """Processor time of the sampling thread a sample of the host and every device, in us."""
    from distorch.memory.sampler import Sampler

    sampler = Sampler(interval=0.002)
    sampler.start()
    while len(sampler.samples(0)) < samples:
        time.sleep(0.01)
    sampler.stop()
    return sampler.cpu_seconds / len(sampler.samples(0)) * 1e6


def main(moment: bool = False) -> list[Row]:
    """Return the rows of bench/run.py: 10,000 modules in 100 models among many other objects."""
    from distorch.memory import Scanner

    models = [nn.Sequential(*(_block() for _ in range(2 if moment else 10))) for _ in range(100)]
    others = [[i] for i in range(1000 if moment else OBJECTS)]
    modules = sum(1 for model in models for _ in model.modules())
    scanner = Scanner()
    scanner.install_hooks()
    start = time.perf_counter()
    rows = scanner.rows()
    first = (time.perf_counter() - start) * 1000
    found = {id(scanner.module(row.id)): row.total for row in rows}
    walked = _walk()
    if any(found[key] != walked[key] for key in map(id, models)):
        raise RuntimeError("the two scans do not agree")
    repeats = 2 if moment else 100
    again = _median_ms(lambda: scanner.rows(max_age=0), repeats)
    moved = models[0][0]

    def change() -> None:
        moved.to(
            torch.float16 if next(moved.parameters()).dtype == torch.float32 else torch.float32
        )
        scanner.rows(max_age=0)

    changed = _median_ms(change, repeats)
    plain = _median_ms(_walk, 2 if moment else 5)
    unknown = _median_ms(scanner.walk, 2 if moment else 5)
    scanner.stop()
    sample = _sample_us(50 if moment else 300)
    label = f"{modules} modules in {len(models)} models among {len(others)} objects"
    return [
        ("scan: first, with one walk", first, "ms", label),
        ("scan: nothing changed", again, "ms", f"the plain walk: {plain:.0f} ms"),
        ("scan: one block changed", changed, "ms", "with the change itself"),
        (
            "scan: walk for unknown modules",
            unknown,
            "ms",
            "in the background, at most 1 % of a core",
        ),
        ("plain walk of every object", plain, "ms", ""),
        ("sampler: one sample", sample, "us", "of a core; 0.1 % at one a second is 1000 us"),
    ]


if __name__ == "__main__":
    from run import alone

    sys.exit(alone(main, GOALS))
