# SPDX-License-Identifier: Apache-2.0
"""Tells the core what a step does (`distorch/execution/step_profile.h`), and asks it how to use the donors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from distorch import _load
from distorch.allocation import ModeChoice
from distorch.devices import call, device_module, name_of, parse_name, synchronize
from distorch.nested import tensors_in
from distorch.parts import tensor_bytes
from distorch.run.cuda import cuda_device, stream_of


class StepProfile(_load.C.StepProfile):
    """The core's profile, told of calls by hooks on modules. One thread at a time.

    Attributes:
        active: whether the present step is measured.
    """

    def __init__(self, compute: torch.device) -> None:
        """Groups compute on `compute` unless a donor is named."""
        cuda = cuda_device(compute)
        super().__init__(None if cuda is None else cuda.router)
        self._compute, self._cuda = compute, cuda
        self.active = False

    def begin_step(self) -> bool:
        """A step begins; returns `active`."""
        self.active = super().begin_step()
        return self.active

    def forget(self) -> None:
        """The step was cut off: begin again with the next."""
        super().forget()
        self.active = False

    def entered(self, name: str, args: Any, kwargs: Any, donor: torch.device | None = None) -> None:
        """A group begins, on `donor` where that is given."""
        on, size = donor or self._compute, _bytes_in((args, kwargs))
        device, stream = stream_of(on) if self._has_events(on) else (-1, 0)
        self._wait(on)
        self.enter(name, size, device, stream, elsewhere=donor is not None)

    def left(self, name: str, output: Any, donor: torch.device | None = None) -> None:
        """It has queued its work, on `donor` where that is given."""
        self._wait(donor or self._compute)
        self.leave(name, _bytes_in(output))

    def _has_events(self, on: torch.device) -> bool:
        return self._cuda is not None and on.type == "cuda"

    def _wait(self, on: torch.device) -> None:
        """Measured by the host's clock: what is queued has to be done when it is read, in the few steps that are."""
        if not self._has_events(on):
            synchronize(name_of(on))


def decide(
    specs: Iterable[Any],
    profile: StepProfile,
    modes: Mapping[str, str],
    links: Mapping[str, float],
    slots: int,
    compute: torch.device,
) -> ModeChoice:
    """Choose for every donor of `specs` (groups as in `GroupSpec`); the host streams unless told otherwise.

    Args:
        specs: the groups; those without one donor of their own count as streamed from where they lie.
        profile: a complete one.
        modes: what the user wants, by donor; "auto" where missing.
        links: GB/s (2**30 bytes a second) to the compute device, by donor.
        slots: staging slots.
        compute: the compute device.
    """
    groups = [
        (spec.name, spec.donor or next(map(_device_of, spec.away), "cpu"), spec.bytes)
        for spec in specs
    ]
    donors = [
        (donor, links.get(donor, 0.0), _model(donor), modes.get(donor, "auto"))
        for donor in dict.fromkeys(donor for _, donor, _ in groups)
    ]
    here = name_of(compute)
    return _load.C.decide_modes(profile, groups, donors, here, _model(here), slots)


def _device_of(ref: Any) -> str:
    return name_of(ref.get().device)


def _model(device: str) -> str:
    """What the vendor calls a device; "" where nobody tells."""
    kind, index = parse_name(device)
    return str(call(device_module(kind), "get_device_name", index) or "")


def _bytes_in(value: Any) -> int:
    """Return the bytes of all tensors in a nested value; of a travelling one without fetching it."""
    return sum(
        t.nbytes if t.layout is torch.strided else tensor_bytes(t) for t in tensors_in(value)
    )
