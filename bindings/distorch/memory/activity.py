# SPDX-License-Identifier: Apache-2.0
"""What each NVIDIA GPU does now, by NVML: load, temperature, power, PCIe traffic, and which processes hold its memory."""

from __future__ import annotations

import os
from typing import Any

from distorch import devices
from distorch._load import core


def activity() -> dict[str, dict[str, Any]]:
    """Return it by device; nothing for devices that NVML does not know.

        {"cuda:0": {"load": 37, "temperature": 61, "power": 215.5, "power_limit": 450.0, "pcie_received": 1048576,
                    "pcie_sent": 20480, "processes": [{"pid": 7, "name": "python", "bytes": 4096, "own": True}]}}

    Percent, degrees Celsius, watts, bytes a second, bytes. What NVML does not tell is None, as is most of what a slice of
    a card (MIG) does. In a container process numbers are the host's, so that none is `own`. Takes 40 ms a device, in
    which other threads run.
    """
    found = {}
    for index, device in (devices._nvml() if devices.device_count("cuda") else {}).items():
        told = core().nvml_activity(device.index, device.slice)
        if told:
            for process in told["processes"] or ():
                process["own"] = process["pid"] == os.getpid()
            found[devices.canonical_name("cuda", index)] = told
    return found
