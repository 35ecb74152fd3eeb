# SPDX-License-Identifier: Apache-2.0
"""What the widgets of a DisTorch2 node ask for, checked before anything is loaded.

An expert string that is not empty decides alone; `virtual_vram_gb` and `donor_device` count only
without one: then the donor takes that many GB of the model and the compute device the rest.
0 GB and no string: the whole model on the compute device.
"""

from __future__ import annotations

import dataclasses

from distorch import allocation
from distorch.allocation import Spec
from distorch.devices import name_of
from distorch.printable import logger

from ..seams import devices

log = logger("DisTorch")  # all of the pack's


@dataclasses.dataclass(frozen=True)
class Request:
    """One model's settings. `spec` names the compute device."""

    compute: str
    spec: Spec
    node: str = ""
    file: str = ""
    keep_loaded: bool = True
    eject_models: bool = False
    high_precision_loras: bool = True
    execution_mode: str = "auto"  # of accelerators for which the string names none

    @property
    def identity(self) -> tuple[str, Spec, bool, str]:
        """What makes one load another; how long the model is to stay does not."""
        return (self.compute, self.spec, self.high_precision_loras, self.execution_mode)

    def whole_on(self, compute: str) -> Request:
        """The same with the whole model on one device."""
        return dataclasses.replace(self, compute=compute, spec=Spec.whole(compute))

    def mode(self, device: str, in_string: str) -> str:
        """How a donor is used: "stream", "migrate" or "auto". The host computes for a string only."""
        return in_string if in_string != "auto" or device == "cpu" else self.execution_mode


def available(name: str | None, *, default: str | None = None) -> str:
    """`name` if there is such a device, else `default` or the first accelerator, with a warning.

    Without a default it must be one that ComfyUI can compute on.
    """
    there = devices.computing() if default is None else devices.names()
    chosen = default or devices.first_of(there)
    if not name or name == "default":
        return chosen
    if (known := _canonical(name)) in there:
        return known
    log.warning(
        "the workflow asks for device %s, which is not here: %s is used instead (there are: %s)",
        name,
        chosen,
        ", ".join(there),
    )
    return chosen


def _canonical(name: str) -> str:
    try:
        return name_of(name)
    except ValueError:
        return name


def spec_for(compute: str, expert: str, virtual_vram_gb: float, donors: list[str]) -> Spec:
    """What these widgets ask for, computed on `compute`, which is the widget's also where the string names another.

    Raises AllocationError for a bad expert string. Devices that are not here are left out with one warning: what they
    would hold goes to the others.
    """
    if expert.strip():
        return _here(allocation.parse(expert, kinds=_kinds()).on(compute))
    donors = [donor for donor in donors if donor != compute]
    if virtual_vram_gb > 0 and donors:
        return Spec.virtual_vram(compute, round(virtual_vram_gb * 2**30), donors)
    return Spec.whole(compute)


def what_is_wrong(text: str | None) -> str:
    """Why a widget's allocation string is refused; "" where it is not, and for one that comes from another node."""
    if not isinstance(text, str) or not text.strip():
        return ""
    try:
        allocation.parse(text, kinds=_kinds())
    except allocation.AllocationError as error:
        return error.message
    return ""


def _here(spec: Spec) -> Spec:
    there = devices.names()
    lost = [name for name in spec.devices if name not in there]
    if lost:
        log.warning(
            "the allocation string names devices that are not here: %s left out (there are: %s)",
            ", ".join(lost),
            ", ".join(there),
        )
    return spec.without(lost)


def _kinds() -> set[str]:
    return {name.partition(":")[0] for name in devices.names()}
