# SPDX-License-Identifier: Apache-2.0
"""`distorch links`: how fast the links between the devices are, measured once and kept for the planner."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from typing import Any

from distorch.text_table import aligned

_EPILOG = """\
GB/s are 2**30 bytes a second. `way`: direct (host and device), peer (straight from device to device), driver (staged
by the driver), staged (through two pinned buffers), torch (torch's copy). See docs/links.md.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `distorch links`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    parser.add_argument("--refresh", action="store_true", help="measure even what is known")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--devices", metavar="LIST", help="only these, as in cuda:0,cuda:1 (default: all)"
    )
    parser.add_argument(
        "--bytes", type=int, default=0, metavar="N", help="bytes of one copy (default: 64 MiB)"
    )


class _Progress:
    """Prints what is measured to the standard error, once a second has gone by."""

    def __init__(self) -> None:
        self._begin = time.monotonic()

    def __call__(self, text: str) -> None:
        if time.monotonic() - self._begin > 1.0:
            sys.stderr.write(f"distorch links: {text}\n")
            sys.stderr.flush()


def run(args: argparse.Namespace) -> int:
    """Print the links; 0, 1 when none could be measured, 2 for a device or size that is none."""
    from distorch import links

    try:
        devices = _devices(args.devices)
        report = links.report(
            devices,
            refresh=args.refresh,
            sample_bytes=args.bytes or links.measuring.SAMPLE_BYTES,
            progress=_Progress(),
        )
    except ValueError as error:
        sys.stderr.write(f"distorch links: {error}\n")
        return 2
    sys.stdout.write(_json(report) if args.json else _text(report))
    return 1 if report.links and all(link.error for link in report.links) else 0


def _devices(text: str | None) -> list[str] | None:
    from distorch.devices import device_info

    if text is None:
        return None
    found = [device_info(name).device for name in text.split(",") if name.strip()]
    return [device for device in dict.fromkeys(found) if device != "cpu"]


def _json(report: Any) -> str:
    from distorch import links
    from distorch.links import identity

    contents = {
        "torch": identity.torch_version(),
        "driver": identity.machine().driver,
        "cached": report.cached,
        "cache": str(links.cache_path()),
        "devices": list(report.devices),
        "links": [
            {**dataclasses.asdict(link), "nominal_gbps": link.nominal} for link in report.links
        ],
        "nominal": links.NOMINAL,
    }
    return json.dumps(contents, indent=2) + "\n"


def _text(report: Any) -> str:
    from distorch import links

    if not report.links:
        lines = ["There is no accelerator on this machine: nothing to measure."]
    else:
        lines = [_origin(report), "", *_matrix(report), "", *_rows(report)]
    lines += ["", "Known by these speeds (GB/s):"]
    lines += [f"  {kind:<14}{gbps:5.1f}" for kind, gbps in links.NOMINAL.items()]
    return "\n".join(lines) + "\n"


def _origin(report: Any) -> str:
    if all(link.memory == "nominal" for link in report.links):
        return "Simulated devices: their nominal speeds, nothing was measured."
    dates = sorted({link.measured[:10] for link in report.links if link.measured})
    when = f" on {dates[0]}" if dates else ""
    kept = "; --refresh measures again" if report.cached else ""
    return f"Measured{when}, every byte compared{kept}."


def _matrix(report: Any) -> list[str]:
    """One row a source, one column a target, GB/s; the host from pinned memory."""
    places = ["cpu", *report.devices]
    rows = [["GB/s from \\ to", *places]]
    for source in places:
        cells = []
        for target in places:
            gbps = report.gbps(source, target)
            cells.append("-" if source == target else f"{gbps:.1f}" if gbps else "?")
        rows.append([source, *cells])
    return aligned(rows, right=range(1, len(places) + 1))


def _rows(report: Any) -> list[str]:
    rows = [["from", "to", "memory", "GB/s", "way", "peer access", "link", "known by"]]
    for link in report.links:
        access = {None: "-", True: "yes", False: "no"}[link.peer_access]
        rows.append(
            [
                link.source,
                link.target,
                link.memory,
                f"{link.gbps:.1f}" if link.gbps else "?",
                link.way or "-",
                access,
                link.error or link.kind or "-",
                f"{link.nominal:.1f}" if link.nominal else "-",
            ]
        )
    return aligned(rows, right=(3,))
