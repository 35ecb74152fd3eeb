# SPDX-License-Identifier: Apache-2.0
"""The patcher of a placed model: ComfyUI's own class with ours in front of it.

Only the steps that move weights are ours (`load`, `partially_unload`, the weights' part of
`unpatch_model`) and the sizes that the core asks for. Sequence, hooks, injections, object patches
and callbacks stay the core's: its methods call these.
"""

from __future__ import annotations

import functools
import logging
import math
import weakref
from typing import Any

import comfy.patcher_extension
import torch

from distorch import allocation, memory
from distorch.allocation import Spec
from distorch.devices import name_of
from distorch.memory import placements

from ..settings import settings
from . import donors
from .donors import tell
from .model_placement import ModelPlacement
from .request import Request

log = logging.getLogger("DisTorch")

_LOGGED_DEVICES = 4

ATTRIBUTE = "_distorch_placed"


class DisTorchMixin:
    """Comes before the core's class in the method resolution order; keeps no state of its own."""

    def distorch_placed(self) -> ModelPlacement:
        """The record on the inner model; a model without one is kept whole on its device."""
        placed = getattr(self.model, ATTRIBUTE, None)
        if placed is None:
            compute = name_of(self.load_device)
            placed = attach(self.model, Request(compute, Spec.whole(compute)))
        return placed

    # Sizes: what the core may count on is the compute device's share.

    def model_size(self) -> int:
        """Bytes that the model needs on its compute device: its share and the staging."""
        placed = self.distorch_placed()
        if placed.plan is None:
            donors.plan_for_an_empty_machine(placed)
        staging = placed.held_bytes() or placed.staging(donors.streams())
        return placed.planned_bytes(name_of(placed.compute)) + staging

    def loaded_size(self) -> int:
        """Bytes that it has there: the core's figure, brought up to date with the engine's slots."""
        placed = getattr(self.model, ATTRIBUTE, None)
        if placed is not None and placed.loaded and placed.held_bytes() != placed.accounted:
            donors.account(self.model, placed)
        return super().loaded_size()

    def distorch_least(self) -> int:
        """Bytes that it needs there beyond what it has, in order to run at all, streaming what it can."""
        enough = self.model_size()
        least = self.distorch_placed().least_bytes(donors.streams())
        return max(0, min(least, enough) - self.loaded_size())

    def clone(self, *args: Any, **kwargs: Any) -> Any:
        """The core's clone, of our class also where the core or GGUF chose another."""
        clone = super().clone(*args, **kwargs)
        become_ours(clone)
        return clone

    def get_non_dynamic_delegate(self) -> Any:
        """Hooks ask for a patcher that is not dynamic: this one is."""
        return self.clone()

    # Loading

    def partially_load(self, device_to: Any, *args: Any, **kwargs: Any) -> Any:
        """The core's sequence; a change of patches keeps the weights that it does not concern."""
        self._distorch_follow_device()
        self._distorch_repatching = True
        try:
            return super().partially_load(device_to, *args, **kwargs)
        finally:
            self._distorch_repatching = False

    def _distorch_follow_device(self) -> None:
        """Another node gave this patcher another device: the model moves there as a whole."""
        placed, wanted = self.distorch_placed(), name_of(self.load_device)
        if name_of(placed.compute) == wanted:
            return
        log.warning(
            "%s was moved to %s by another node: its allocation string is dropped",
            placed.name,
            wanted,
        )
        if placed.loaded:
            self.unpatch_model(self.offload_device, unpatch_weights=True)
        attach(self.model, placed.request.whole_on(wanted))

    def detach(self, unpatch_all: bool = True) -> Any:
        self._distorch_repatching = False
        return super().detach(unpatch_all)

    def load(
        self,
        device_to: Any = None,
        lowvram_model_memory: float = 0,
        force_patch_weights: bool = False,
        full_load: bool = False,
        **_more: Any,
    ) -> None:
        """Places the blocks as planned. Nothing moves when they lie there with these patches."""
        with self.use_ejected():
            self.unpatch_hooks()
            placed = self.distorch_placed()
            before = placed.bytes_per_device() if placed.loaded else None
            patches = self.model.current_weight_patches_uuid
            donors.place(self, placed, math.inf if full_load else lowvram_model_memory)
            placed.run(self.model)
            self._distorch_pin(placed)
            self._distorch_account(placed)
            self.model.current_weight_patches_uuid = self.patches_uuid
            for callback in self.get_all_callbacks(comfy.patcher_extension.CallbacksMP.ON_LOAD):
                callback(self, device_to, lowvram_model_memory, force_patch_weights, full_load)
            self.apply_hooks(self.forced_hooks, force_apply=True)
        if before != placed.bytes_per_device() or patches != self.patches_uuid:
            _announce(self, placed)

    def _distorch_pin(self, placed: ModelPlacement) -> None:
        """Pins what is streamed from the host, by the core's means and within its limit."""
        if placed.compute.type == "cpu" or not hasattr(self, "pinned"):
            return
        for held in placed.host_tensors():
            if held.key not in self.pinned:
                self.pin_weight_to_device(held.key)

    def patch_hooks(self, *args: Any, **kwargs: Any) -> Any:
        """The core's; hook LoRAs are written into the stored weights. It is called after each sampling, also without any."""
        written = bool(self.hook_backup)
        try:
            return super().patch_hooks(*args, **kwargs)
        finally:
            if written or self.hook_backup:
                self._distorch_written()

    def unpatch_hooks(self, *args: Any, **kwargs: Any) -> Any:
        """The core's; see `patch_hooks`."""
        written = bool(self.hook_backup)
        try:
            return super().unpatch_hooks(*args, **kwargs)
        finally:
            if written:
                self._distorch_written()

    def cleanup(self) -> None:
        """The core's, called when a sampling is over, however it ended: one that was cut off leaves nothing on a device."""
        super().cleanup()
        placed = getattr(self.model, ATTRIBUTE, None)
        if placed is not None:
            placed.recover()

    def _distorch_written(self) -> None:
        placed = getattr(self.model, ATTRIBUTE, None)
        if placed is None:
            return
        placed.weights.hooked = self.hook_backup
        placed.hooks_are_out()
        if placed.runner is not None:
            placed.runner.invalidate()

    def _distorch_account(self, placed: ModelPlacement) -> None:
        self.model.model_lowvram = True  # the core then wipes the cast flags when it unpatches
        self.model.device = self.load_device
        donors.account(self.model, placed)

    # Unloading

    def partially_unload(
        self, device_to: Any, memory_to_free: float = 0, force_patch_weights: bool = False
    ) -> int:
        """Streams some of the compute device's blocks from the host; returns the bytes freed."""
        return self.distorch_spill(name_of(self.load_device), memory_to_free)

    def distorch_spill(self, device: str, wanted: float) -> int:
        """Frees bytes on any device of the model by moving blocks to the host."""
        placed = self.distorch_placed()
        with self.use_ejected():
            if self.hook_backup:
                self.unpatch_hooks()
            freed = placed.spill(device, wanted)
            if placed.loaded:
                self._distorch_account(placed)
        if freed:
            log.info("%s gave back %.2f MB of %s", placed.name, freed / 2**20, device)
            tell(self.model, placed, "placed")
        return freed

    def unpatch_model(self, device_to: Any = None, unpatch_weights: bool = True) -> None:
        """Unloading puts the host copies back; the core restores all the rest."""
        if unpatch_weights and getattr(self, "_distorch_repatching", False):
            super().unpatch_model(device_to, unpatch_weights=False)
            return
        placed = self.distorch_placed()
        if unpatch_weights and placed.loaded:
            self.eject_model()
            self.unpatch_hooks()
            placed.release(self)
            tell(self.model, placed, "released")
        super().unpatch_model(device_to, unpatch_weights=unpatch_weights)


def attach(model: Any, request: Request) -> ModelPlacement:
    """Puts a placement on the inner model; it is forgotten when the model dies, which the scan hears of."""
    placed = ModelPlacement(model, request, torch.device(request.compute))
    setattr(model, ATTRIBUTE, placed)
    weakref.finalize(model, placements.forget, placed.key).atexit = False
    weakref.finalize(model, memory.scanner().invalidate).atexit = False
    return placed


@functools.cache
def class_for(cls: type) -> type:
    """Our class for a core class; the same one each time."""
    return type(f"DisTorch{cls.__name__}", (DisTorchMixin, cls), {})


def become_ours(patcher: Any) -> None:
    """Gives a patcher our class. One that has it stays as it is."""
    if not isinstance(patcher, DisTorchMixin):
        patcher.__class__ = class_for(type(patcher))


def check_class(patcher: Any, *_args: Any) -> None:
    """ON_LOAD callback: a placed model must be loaded by our class; it travels with clones."""
    if getattr(patcher.model, ATTRIBUTE, None) is not None and not isinstance(
        patcher, DisTorchMixin
    ):
        log.error(
            "%s was placed by DisTorch, but is loaded by a %s: its allocation string has no effect",
            type(patcher.model).__name__,
            type(patcher).__name__,
        )


def _announce(patcher: Any, placed: ModelPlacement) -> None:
    """At most twelve lines, and what the plan noted as warnings; the tables at DEBUG, or where they are asked for."""
    log.log(logging.INFO if settings["debug_mode"] else logging.DEBUG, "%s", placed.plan.tables())
    sizes, here = placed.bytes_per_device(), name_of(placed.compute)
    devices = sorted(sizes, key=lambda d: (d != here, d))
    lines = [
        f"{placed.name}: {allocation.format_bytes(sum(sizes.values()))} in {len(placed.blocks)} blocks by "
        f"{placed.request.spec}, {len(placed.weights.patched)} weights patched"
    ]
    for device in devices[:_LOGGED_DEVICES]:
        cap, slots = placed.plan.caps.get(device), placed.held_bytes() if device == here else 0
        parts = [f"  {device}: {allocation.format_bytes(sizes[device])}"]
        parts += [f"slots {allocation.format_bytes(slots)}"] if slots else []
        parts += [f"cap {allocation.format_bytes(cap)}"] if cap is not None else []
        lines.append(", ".join(parts))
    if len(devices) > _LOGGED_DEVICES:
        lines.append(f"  and {len(devices) - _LOGGED_DEVICES} devices more")
    if placed.runner is not None:
        lines.append(f"  {placed.runner.describe()}")
    log.info("%s", "\n".join(lines))
    for note in placed.plan.notes:
        log.warning("%s: %s", placed.name, note)
    tell(patcher.model, placed, "placed")
