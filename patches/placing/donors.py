# SPDX-License-Identifier: Apache-2.0
"""The part of a model that lies on a donor, as ComfyUI's memory management sees it.

ComfyUI frees memory by asking the models of a device to leave. A donor's blocks belong to a model
of another device, so each donor gets a patcher of its own: loading it makes the core free room
there, and whatever needs the donor later makes the core unload it, which moves the blocks to the
host. The core's functions stay as they are, and a donor never runs out of memory because of us.
"""

from __future__ import annotations

import logging
import weakref
from typing import Any

import comfy.model_management as mm
import comfy.model_patcher
import torch

from distorch import allocation, memory
from distorch.device_table import device_table
from distorch.devices import free_memory, name_of
from distorch.memory import placements

from ..seams import devices, lifecycle
from ..settings import reserve_bytes, settings
from .model_placement import ModelPlacement

log = logging.getLogger("DisTorch")

#: Name of the inner model's attribute that a "free" goes by, as users' own nodes set and read it.
FLAG = "_mgpu_unload_distorch_model"


class DonorPart(torch.nn.Module):
    """Stands for the blocks of one model on one donor; holds no weights."""

    def __init__(self, placed: ModelPlacement, owner: torch.nn.Module, device: str) -> None:
        super().__init__()
        self.placed, self.owner = weakref.ref(placed), weakref.ref(owner)
        self.donor = device
        self.device: torch.device | None = None

    @property
    def flagged(self) -> bool:
        """Whether the model it belongs to is flagged for the selective unload."""
        return bool(getattr(self.owner(), FLAG, False))


setattr(DonorPart, FLAG, DonorPart.flagged)


class DonorPatcher(comfy.model_patcher.ModelPatcher):
    """The core loads and unloads it; the weights are moved by the model it belongs to."""

    def _placed(self) -> ModelPlacement | None:
        return self.model.placed()

    def model_size(self) -> int:
        """Bytes that the plan gives the donor."""
        placed = getattr(self.model, "placed", lambda: None)()
        return placed.planned_bytes(self.model.donor) if placed and placed.plan else 0

    def loaded_size(self) -> int:
        """Bytes on the donor now."""
        placed = self._placed()
        if placed is None or not placed.loaded:
            return 0
        return placed.bytes_per_device().get(self.model.donor, 0)

    def partially_load(self, device_to: Any, *_args: Any, **_kwargs: Any) -> int:
        """Makes room only: the model places its blocks when it loads."""
        self.model.device = device_to
        return 0

    def partially_unload(self, device_to: Any, memory_to_free: float = 0, *_args: Any) -> int:
        """Moves blocks from the donor to the host; returns the bytes freed."""
        placed, owner = self._placed(), self.model.owner()
        if placed is None or owner is None:
            return 0
        freed = placed.spill(self.model.donor, memory_to_free)
        if freed:
            account(owner, placed)
            tell(owner, placed, "placed")
            log.info(
                "%s gave back %.2f MB of %s: those blocks are streamed from the host now",
                placed.name,
                freed / 2**20,
                self.model.donor,
            )
        return freed

    def unpatch_model(self, device_to: Any = None, unpatch_weights: bool = True) -> None:
        """Everything leaves the donor."""
        if unpatch_weights:
            self.partially_unload(device_to, float("inf"))
            self.model.device = device_to

    def __del__(self) -> None:
        """Nothing is pinned, and the weights are not ours."""


def streams() -> int:
    """How many weights the core casts at a time."""
    return max(1, int(getattr(mm, "NUM_STREAMS", 1)))


def account(model: Any, placed: ModelPlacement) -> None:
    """Tells the core what the model takes on its compute device now, and what streaming needs there."""
    placed.accounted = placed.held_bytes()
    model.model_loaded_weight_memory = placed.compute_bytes() + placed.accounted
    model.model_offload_buffer_memory = placed.staging(streams())


def tell(model: Any, placed: ModelPlacement, state: str) -> None:
    """Makes a change of a model's placement known: to `distorch.placements()`, the scan and who listens."""
    placements.record(placed.report(state))
    memory.invalidate()
    lifecycle.tell(lifecycle.changed, model)


def table(spec: allocation.Spec, compute: str, *, empty: bool) -> list[allocation.Device]:
    """The planner's devices. On the compute device and the host all counts as free: the core frees the one for us and
    the weights are in the other already. A donor's free bytes are real unless `empty`.
    """
    there = devices.names()
    free = there if empty else ("cpu", compute)
    return [
        device
        for device in device_table(compute, spec, reserve=reserve_bytes(), empty=free)
        if device.device in there
    ]


def plan_for_an_empty_machine(placed: ModelPlacement) -> None:
    """The plan as long as nothing is loaded: what could be, before the core is asked for room."""
    _plan(placed, empty=True)


def _plan(placed: ModelPlacement, *, empty: bool) -> None:
    found = table(placed.request.spec, name_of(placed.compute), empty=empty)
    placed.make_plan(found, strict=settings["strict"])


def place(patcher: Any, placed: ModelPlacement, budget: float) -> None:
    """Makes room on the donors, plans with what is free there, and brings the blocks, also those that were spilled.

    `budget` is what the core allows on the compute device in bytes; infinity: all.
    """
    if not placed.loaded:
        _make_plan(patcher, placed)
    else:
        _call_back(patcher, placed)
    _fit(placed, budget)
    placed.load(patcher)


def _make_plan(patcher: Any, placed: ModelPlacement) -> None:
    if placed.plan is None:
        plan_for_an_empty_machine(placed)
    for donor in placed.donors():
        _make_room(patcher, placed, donor)
    _plan(placed, empty=False)


def _call_back(patcher: Any, placed: ModelPlacement) -> None:
    """Blocks that left a donor go back if the core can make the room."""
    for donor in placed.donors():
        away = [n for n in placed.spilled if placed.plan.placement[n] == donor]
        if not away:
            continue
        _make_room(patcher, placed, donor)
        # What the core wants to be free it would ask back at the next load there.
        free = (free_memory(donor) or 0) - _wanted_free(donor)
        for name in away:
            free -= placed.by_name[name].bytes
            if free >= 0:
                placed.call_back(name)


def _wanted_free(donor: str) -> int:
    return int(mm.minimum_inference_memory()) if devices.is_own(donor) else 0


def _make_room(patcher: Any, placed: ModelPlacement, donor: str) -> None:
    if not devices.is_own(donor):
        return
    donor_patcher = placed.donor_patchers.get(donor)
    if donor_patcher is None:
        model = DonorPart(placed, patcher.model, donor)
        donor_patcher = DonorPatcher(model, torch.device(donor), torch.device("cpu"))
        placed.donor_patchers[donor] = donor_patcher
    mm.load_models_gpu([donor_patcher])


def _fit(placed: ModelPlacement, budget: float) -> None:
    staging = placed.staging(streams())
    left_out = placed.fit(budget, staging)
    # What is left out is streamed as well, which may take slots where there were none, or larger ones.
    while (needed := placed.staging(streams())) > staging:
        staging = needed
        left_out = placed.fit(budget, staging)
    if left_out:
        log.warning(
            "%s: %s has room for %.2f MB of weights now; %.2f MB of its share wait on the host and "
            "are streamed",
            placed.name,
            name_of(placed.compute),
            max(0.0, budget) / 2**20,
            left_out / 2**20,
        )


def unload(entry: Any) -> None:
    """Unload one entry of the core's list as the core does, and take it off the list; the others keep their order.

    An entry that is gone from the list (a donor_patcher goes with its model) is left alone.
    """
    if entry.model is None or all(e is not entry for e in mm.current_loaded_models):
        return
    entry.model_unload()
    mm.current_loaded_models[:] = [e for e in mm.current_loaded_models if e is not entry]
    memory.invalidate()  # of a model that is not ours nobody else tells
