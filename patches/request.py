# SPDX-License-Identifier: Apache-2.0
"""What the widgets of a DisTorch2 node ask for, checked before anything is loaded.

An expert string that is not empty decides alone; `virtual_vram_gb` and `donor_device` count only
without one: then the donor takes that many GB of the model and the compute device the rest.
0 GB and no string: the whole model on the compute device.
"""

from __future__ import annotations

import dataclasses
import logging

from distorch import allocation

from . import devices

log = logging.getLogger("DisTorch")


@dataclasses.dataclass(frozen=True)
class Request:
    """One model's settings. `text` is an allocation string in its full form, "…#cuda:0;4.0;cpu"."""

    compute: str
    text: str
    node: str = ""
    file: str = ""
    keep_loaded: bool = True
    eject_models: bool = False
    high_precision_loras: bool = True
    execution_mode: str = "auto"  # of accelerators for which the string names none

    @property
    def identity(self) -> tuple[str, str, bool, str]:
        """What makes one load another; how long the model is to stay does not."""
        return (self.compute, self.text, self.high_precision_loras, self.execution_mode)

    def whole_on(self, compute: str) -> Request:
        """The same with the whole model on one device."""
        return dataclasses.replace(self, compute=compute, text=whole(compute))

    def mode(self, device: str, in_string: str) -> str:
        """How a donor is used: "stream", "migrate" or "auto". The host computes for a string only."""
        return in_string if in_string != "auto" or device == "cpu" else self.execution_mode


def whole(compute: str) -> str:
    """The allocation string that leaves a model on its compute device."""
    return f"{compute},*#{compute}"


def available(name: str | None, *, default: str | None = None) -> str:
    """`name` if ComfyUI has such a device, else `default` or the first accelerator, with a warning."""
    there = devices.names()
    chosen = default or devices.first_of(there)
    if not name or name == "default":
        return chosen
    if name in there:
        return name
    log.warning(
        "the workflow asks for device %s, which is not here: %s is used instead (there are: %s)",
        name,
        chosen,
        ", ".join(there),
    )
    return chosen


def spec_text(compute: str, expert: str, virtual_vram_gb: float, donors: list[str]) -> str:
    """The full allocation string for these widgets.

    Raises AllocationError for a bad expert string. Entries of devices that are not here are left
    out with one warning: what they would hold goes to the other entries.
    """
    expert = expert.strip()
    if expert.startswith("#"):  # the predecessor's stored form without an expert part
        return _stored_form(expert, compute)
    if expert:
        return f"{_without_missing(expert, compute)}#{compute}"
    donors = [donor for donor in donors if donor != compute]
    if virtual_vram_gb > 0 and donors:
        return f"#{compute};{virtual_vram_gb:g};{','.join(donors)}"
    return whole(compute)


def _stored_form(expert: str, compute: str) -> str:
    """ "#cuda:0;4.0;cuda:1,cpu": its amount and donors; the compute device is the widget's."""
    spec = allocation.parse(expert, kinds=_kinds(devices.names()))
    _, amount, named = str(spec).split(";")  # as it is written in full
    donors = [available(name, default="cpu") for name in named.split(",")]
    donors = [name for name in dict.fromkeys(donors) if name != compute]
    return f"#{compute};{amount};{','.join(donors)}" if donors else whole(compute)


def _without_missing(expert: str, compute: str) -> str:
    there = devices.names()
    allocation.parse(expert, kinds=_kinds(there))
    entries = [entry.strip() for entry in expert.partition("#")[0].split(";") if entry.strip()]
    lost = [entry for entry in entries if _is_lost(entry, there)]
    if not lost:
        return ";".join(entries)
    log.warning(
        "the allocation string names devices that are not here: %s left out (there are: %s)",
        "; ".join(lost),
        ", ".join(there),
    )
    return ";".join(_with_room([entry for entry in entries if entry not in lost], compute))


def _kinds(there: list[str]) -> set[str]:
    return {name.partition(":")[0] for name in there}


def _with_room(kept: list[str], compute: str) -> list[str]:
    """The entries, one of which takes what the lost ones would have held: the compute device if it is free to."""
    amounts = [entry.partition(",")[2].partition(",")[0].strip() for entry in kept]
    ratios = kept and all(amount.endswith("%") for amount in amounts)
    if ratios or "*" in amounts:
        return kept
    if all(_canonical(entry.partition(",")[0]) != compute for entry in kept):
        return [*kept, f"{compute},*"]
    return [*(e for e in kept if _canonical(e.partition(",")[0]) != "cpu"), "cpu,*"]


def _canonical(device: str) -> str:
    kind, _, index = device.strip().lower().partition(":")
    kind, index = kind.strip(), index.strip()
    return kind if kind in ("cpu", "mps") else f"{kind}:{index or 0}"


def _is_lost(entry: str, there: list[str]) -> bool:
    device, comma, amount = entry.partition(",")
    return (
        bool(comma and not amount.strip().startswith("reserve")) and _canonical(device) not in there
    )
