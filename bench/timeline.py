# SPDX-License-Identifier: Apache-2.0
"""Draws what a streamed model's streams do, from the whole product on the virtual clock of CUDA's double.

    python bench/timeline.py docs/images/streaming-timeline.svg     # after `make build`, with PYTHONPATH=build/dev/python

Models shaped like Flux and Wan run on simulated devices: hooks, scheduler and streamer are the real ones, the double says
when each copy and each group's compute would begin and end. Sizes are KiB for MiB, and bandwidths the same; times are real.
Weights and links are figures of others, compute is computed from them; no GPU was used. A step that takes more than 1.02
of max(compute, bytes / bandwidth) is an error.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

SCALE = 1024
GB = 2**30
STEPS = 6
WITHIN = 1.02


@dataclass(frozen=True)
class Setting:
    """A model's shape (groups, GB, seconds of compute in a step), the share that is streamed, and from where at what GB/s."""

    name: str
    groups: int
    gb: float
    seconds: float
    share: float
    sources: tuple[tuple[str, float], ...]


SETTINGS = (
    Setting("Flux, half on the host", 57, 22.2, 0.95, 0.5, (("cpu", 23.3),)),
    Setting("Flux, all on the host", 57, 22.2, 0.95, 1.0, (("cpu", 23.3),)),
    Setting("Flux, host and a donor", 57, 22.2, 0.95, 1.0, (("cpu", 11.2), ("sim:1", 11.2))),
    Setting("Wan, all on the host", 40, 26.1, 4.2, 1.0, (("cpu", 51.2),)),
)

Interval = tuple[str, int, float, float, str]  # kind, stream, begin, end, label


class Weights(nn.Module):
    """The weights of a layer; computing takes the double's time."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size, dtype=torch.uint8), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class Layer(nn.Module):
    """One transformer layer."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.inner = Weights(size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


class Model(nn.Module):
    """Layers one after the other."""

    def __init__(self, groups: int, size: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(size) for _ in range(groups))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def homes(setting: Setting) -> list[str]:
    """Return where each layer lies: the streamed ones spread evenly, over the sources in turns."""
    count = round(setting.groups * setting.share)
    found = ["sim:0"] * setting.groups
    for i in range(count):
        found[i * setting.groups // count] = setting.sources[i % len(setting.sources)][0]
    return found


def run(setting: Setting) -> tuple[float, float, list[Interval]]:
    """Run some steps; returns the seconds of one, the bound, and what was done in the last two."""
    import distorch_sim
    import fake_cuda
    import pytest
    from placing import plan_of

    from distorch.model_blocks import inventory
    from distorch.placing import place
    from distorch.run import StreamedExecutor

    distorch_sim.install([1 << 30, 1 << 30])
    size = int(setting.gb * GB / SCALE / setting.groups)
    model = Model(setting.groups, size).eval()
    where = homes(setting)
    with pytest.MonkeyPatch.context() as patch, fake_cuda.streamed_by_the_core(patch) as fake:
        bound = setting.seconds
        for source, gbps in setting.sources:
            number = -1 if source == "cpu" else int(source.removeprefix("sim:"))
            fake.library.fake_set_link(number, 0, gbps / SCALE)
            if number >= 0:
                fake.router.adopt(number, 0, "peer", gbps)
            bound = max(bound, where.count(source) * size / GB * SCALE / gbps)
        for index, layer in enumerate(model.layers):
            label = f"layer {index}, {'resident' if where[index] == 'sim:0' else 'streamed'}"
            fake.seconds[layer.inner] = (setting.seconds / setting.groups, label)
        assignment = {b.name: where[int(b.group.split(".")[1])] for b in inventory(model).blocks}
        placed = place(model, plan_of(assignment), compute="sim:0")
        executor = StreamedExecutor(placed)
        ends, x = [], torch.zeros(1)
        with torch.inference_mode():
            for step in range(STEPS):
                if step == STEPS - 2:
                    fake.library.fake_keep_timeline()
                model(x)
                ends.append(fake.library.fake_done_at(fake.compute))
        done = intervals(fake.library)
        executor.detach()
        placed.unload()
        if fake.violations:
            raise RuntimeError(f"{setting.name}: {fake.violations[0]}")
    del executor, placed, model
    gc.collect()
    return (ends[-1] - ends[1]) / (STEPS - 2), bound, done


def intervals(library: Any) -> list[Interval]:
    """Return what the double has kept."""
    found: list[Interval] = []
    kind, stream = ctypes.c_char_p(), ctypes.c_int()
    begin, end = ctypes.c_double(), ctypes.c_double()
    for i in range(library.fake_intervals()):
        told = [ctypes.byref(value) for value in (kind, stream, begin, end)]
        label = library.fake_interval(i, *told)
        assert kind.value is not None
        found.append((kind.value.decode(), stream.value, begin.value, end.value, label.decode()))
    return found


def picture(panels: list[tuple[str, list[Interval]]]) -> str:
    """Draw one panel a setting: the compute stream above, a copy stream for each source below, over two steps."""
    width, left, row, gap = 960, 120, 22, 44
    colours = {"resident": "#9aa5b1", "streamed": "#2f6fab", "copy": "#d9822b"}
    body, y = [], 30
    for title, done in panels:
        first = min(d[2] for d in done)
        last = max(d[3] for d in done)
        scale = (width - left - 60) / (last - first)
        body.append(f'<text x="10" y="{y}" font-weight="bold">{title}</text>')
        rows = sorted({("" if d[0] == "kernel" else d[4], d[1]) for d in done})
        for label, stream in rows:
            y += row
            name = (
                "compute" if not label else label.replace(" to cuda:0", "").replace("cpu", "host")
            )
            body.append(f'<text x="10" y="{y + 12}">{"" if not label else "copy, "}{name}</text>')
            for kind, on, begin, end, what in done:
                if on != stream:
                    continue
                colour = colours["copy" if kind == "copy" else what.split(", ")[1]]
                x, wide = left + (begin - first) * scale, max(0.6, (end - begin) * scale - 0.6)
                body.append(
                    f'<rect x="{x:.1f}" y="{y}" width="{wide:.1f}" height="16" fill="{colour}">'
                    f"<title>{what}: {begin - first:.4f} to {end - first:.4f} s</title></rect>"
                )
        y += row
        for tick in range(5):
            seconds = (last - first) * tick / 4
            body.append(
                f'<text x="{left + seconds * scale:.1f}" y="{y + 10}" fill="#555">{seconds:.2f} s</text>'
            )
        y += gap
    x = left
    for name, colour in (
        ("resident layer", "#9aa5b1"),
        ("streamed layer", "#2f6fab"),
        ("copy", "#d9822b"),
    ):
        body.append(f'<rect x="{x}" y="{y - 12}" width="14" height="14" fill="{colour}"/>')
        body.append(f'<text x="{x + 20}" y="{y}">{name}</text>')
        x += 150
    return (
        "<!-- SPDX-License-Identifier: Apache-2.0 -->\n"
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {y + 14}" '
        'font-family="sans-serif" font-size="12">\n'
        f'<rect width="{width}" height="{y + 14}" fill="white"/>\n' + "\n".join(body) + "\n</svg>\n"
    )


def main(arguments: list[str]) -> int:
    """Run all settings, print a line each, and write the picture where a path is given."""
    sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "python" / "support"))
    panels, late = [], False
    for setting in SETTINGS:
        step, bound, done = run(setting)
        late |= step > WITHIN * bound
        sys.stdout.write(
            f"{setting.name}: {step:.4f} s a step, bound {bound:.4f} s, {step / bound:.4f} of it\n"
        )
        title = f"{setting.name}: {step:.3f} s a step, at least {bound:.3f} s"
        panels.append((title, done))
    if arguments:
        Path(arguments[0]).write_text(picture(panels), encoding="utf-8")
    return 1 if late else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
