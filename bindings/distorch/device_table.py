# SPDX-License-Identifier: Apache-2.0
"""The table of devices that the planner plans with: one function for the library, the command line and the pack."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from distorch.allocation import Device, Spec
from distorch.devices import (
    DeviceInfo,
    device_names,
    host_link_gbps,
    list_devices,
    parse_name,
)


def concerned(spec: Spec, compute: str) -> Callable[[str], bool]:
    """Return what says of a device whether a plan for `spec` can use it: those it names, the compute device and the host.

    "auto" can use every one; of kinds other than the compute device's, those that tell their memory without being used.
    """
    named = {*spec.devices, compute, "cpu"}
    kind = parse_name(compute)[0]
    every = spec.uses_every_device
    return lambda device: device in named or (every and parse_name(device)[0] == kind)


def device_table(
    compute: str | None = None,
    spec: Spec | None = None,
    *,
    reserve: int = 0,
    empty: Collection[str] = (),
    infos: Iterable[DeviceInfo] | None = None,
) -> list[Device]:
    """Return the planner's table of devices: the one that the library, the command line and the pack plan with.

    Args:
        compute: links are those to this device; default: the spec's, else the first accelerator, or cpu.
        spec: what is to be planned. Devices that it concerns are asked for their memory where nobody else tells it, which
            initialises them; without a spec none is.
        reserve: bytes to leave free on every accelerator.
        empty: devices of which all memory counts as free.
        infos: devices listed before; default: all of this machine.
    """
    compute = compute or (spec.compute if spec is not None else "") or device_names()[0]
    if infos is None:
        infos = list_devices() if spec is None else list_devices(asked=concerned(spec, compute))
    return [
        Device(
            device=info.device,
            total=info.total,
            free=info.total if info.device in empty else info.free,
            reserve=0 if info.kind == "cpu" else reserve,
            link_gbps=host_link_gbps(compute, info.device),
        )
        for info in infos
    ]
