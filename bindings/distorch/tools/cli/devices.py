# SPDX-License-Identifier: Apache-2.0
"""`distorch devices`: the devices of this machine with their memory. Initialises none."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys

from distorch.text_table import aligned

_GB = 1 << 30


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `distorch devices`."""
    parser.add_argument("--json", action="store_true", help="one JSON array, sizes in bytes")


def run(args: argparse.Namespace) -> int:
    """Print the devices; always 0: a machine has its cpu. "?" stands for memory that is unknown until the device is used."""
    from distorch.devices import DeviceInfo, list_devices

    infos = list_devices()
    if args.json:
        sys.stdout.write(json.dumps([dataclasses.asdict(info) for info in infos], indent=2) + "\n")
        return 0

    def row(info: DeviceInfo) -> list[str]:
        sizes = (info.free, info.total)
        memory = ["?" if size is None else f"{size / _GB:.2f}" for size in sizes]
        used = "yes" if info.initialized else "no"
        speed = f"{info.link_gbps:.1f}" if info.link_gbps else "-"
        return [info.device, *memory, speed, used, info.name]

    rows = [["device", "free GB", "total GB", "from cpu GB/s", "in use", "name"]]
    rows += [row(info) for info in infos]
    sys.stdout.writelines(f"{line}\n" for line in aligned(rows, right=(1, 2, 3)))
    return 0
