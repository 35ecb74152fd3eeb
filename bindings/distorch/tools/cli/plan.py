# SPDX-License-Identifier: Apache-2.0
"""`distorch plan`: what would go where, without loading anything.

Two forms: for a model file (safetensors, GGUF, PyTorch), of which no weight is read, and for given data (--blocks), whose input,
output and exit status (0, or 2 with {"error": ...}) are a stable interface; see docs/allocation-strings.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from distorch import allocation

_EPILOG = """\
examples:
  distorch plan model.safetensors --alloc 'cuda:0,2.5gb;cpu,*'
  distorch plan --blocks blocks.json --devices devices.json --alloc auto --compute cuda:0 --json

blocks.json:  [{"name", "bytes", "group"?, "pinned"?, "patched"?, "tied"?}, ...]
devices.json: [{"device", "total"?, "free"?, "reserve"?, "link_gbps"?}, ...]
All sizes are bytes; memory without a size is unknown. Exit status: 0, or 2 where the input is wrong or nothing fits.
"""


class InputError(ValueError):
    """A file that was given cannot be used; the message names it and says why."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `distorch plan`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    parser.add_argument(
        "file",
        nargs="?",
        metavar="MODEL",
        help="the model: safetensors, GGUF, ckpt, pt, pth or bin",
    )
    parser.add_argument("--blocks", metavar="FILE.json", help="blocks instead of a model")
    parser.add_argument(
        "--devices", metavar="FILE.json", help="the table of devices (default: this machine's)"
    )
    parser.add_argument("--alloc", required=True, metavar="STRING", help="the allocation string")
    parser.add_argument(
        "--compute",
        default="",
        metavar="DEV",
        help="where the forward pass runs (default: what the string says, "
        "or else the first device that is not cpu)",
    )
    parser.add_argument(
        "--order",
        default="auto",
        choices=("auto", "contiguous", "strided"),
        help="how each device's part lies in the model",
    )
    parser.add_argument(
        "--strict", action="store_true", help="a device short of memory is an error, not a note"
    )
    parser.add_argument(
        "--slots",
        type=int,
        metavar="N",
        help="staging slots on the compute device, which count against its cap: 0 where nothing is streamed "
        "(default: as many as the links of the donors can make use of)",
    )
    parser.add_argument(
        "--step-seconds",
        type=float,
        metavar="S",
        help="what a step computes with all weights on the compute device: predicts the step's time",
    )
    parser.add_argument(
        "--activations",
        type=int,
        default=0,
        metavar="BYTES",
        help="what a layer group takes and gives, for the choice between streaming and migrating",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Run the command; returns 0, or 2 with the error printed."""
    try:
        devices = _read(args.devices, _device) if args.devices else None
        spec = allocation.parse(args.alloc, _names_here() if devices is None else devices)
        devices = _devices_here(args.compute, spec) if devices is None else devices
        plan = _plan(args, spec, devices)
        step = _step(args, plan, devices)
    except (allocation.AllocationError, allocation.PlanError, InputError) as error:
        if args.json:
            sys.stdout.write(json.dumps({"error": error_object(error)}) + "\n")
        else:
            sys.stderr.write(f"distorch plan: {error}\n")
        return 2
    if args.json:
        text = plan.to_stable_json()
        if step is not None:
            more = {"step": {"seconds": step.seconds, "modes": step.modes}}
            text = json.dumps(json.loads(text) | more)
        sys.stdout.write(text + "\n")
        return 0
    sys.stdout.write(plan.tables())
    if step is not None:
        predicted = f"{step.seconds:.3f} s" if step.seconds else "not known, links are missing"
        sys.stdout.write(f"\nstep: {predicted} (its compute alone: {args.step_seconds:.3f} s)\n")
        sys.stdout.writelines(f"  {line}\n" for line in step.lines)
    return 0


def _step(
    args: argparse.Namespace, plan: allocation.Plan, devices: list[allocation.Device]
) -> allocation.Step | None:
    if args.step_seconds is None:
        return None
    if not 0 < args.step_seconds < float("inf"):
        raise InputError("--step-seconds must be a number of seconds, above 0")
    if args.activations < 0:
        raise InputError("--activations must be a number of bytes, 0 or more")
    slots = max(1, plan.slots)
    return allocation.predict_step(plan, devices, args.step_seconds, args.activations, slots)


def error_object(error: Exception) -> dict[str, Any]:
    """Return an error as the JSON that is printed for it."""
    found: dict[str, Any] = {"message": str(error)}
    if isinstance(error, allocation.AllocationError) and error.offset is not None:
        found["offset"] = error.offset
        found["expected"] = error.expected
    if isinstance(error, allocation.PlanError):
        found["candidates"] = [
            {"device": c.device, "asked": c.asked, "cap": c.cap, "free": c.free}
            for c in error.candidates
        ]
    return found


def _plan(
    args: argparse.Namespace, spec: allocation.Spec, devices: list[allocation.Device]
) -> allocation.Plan:
    if (args.file is None) == (args.blocks is None):
        raise InputError("give either a model file or --blocks FILE.json")
    blocks = _read(args.blocks, _block) if args.blocks else blocks_of_file(Path(args.file))
    if args.slots is not None and not 0 <= args.slots < 2**31:
        raise InputError("--slots must be a number of slots, 0 or more")
    options = allocation.Options(order=args.order, strict=args.strict, slots=args.slots)
    try:
        compute = args.compute or spec.compute or _default_compute(devices)
        return allocation.make_plan(spec, blocks, devices, compute, options)
    except allocation.AllocationError:
        raise
    except ValueError as error:  # --compute is no device's name
        raise InputError(f"--compute: {error}") from error


def _default_compute(devices: list[allocation.Device]) -> str:
    return next((d.device for d in devices if d.device != "cpu"), "cpu")


def _names_here() -> list[str]:
    from distorch.devices import device_names  # imports torch

    return device_names()


def _devices_here(compute: str, spec: allocation.Spec) -> list[allocation.Device]:
    from distorch.device_table import device_table

    return device_table(compute or None, spec)


def blocks_of_file(path: Path) -> list[allocation.Block]:
    """Return the blocks of a model file, of which no weight is read. Raises InputError."""
    from distorch.model_files import tensor_sizes

    try:
        sizes = tensor_sizes(path)
    except (OSError, ValueError) as error:
        raise InputError(_named(path, error)) from error
    return allocation.blocks_of_tensors(sizes)


def _read(path: str, make: Callable[[Mapping[str, Any]], Any]) -> list[Any]:
    try:
        # With or without a byte order mark, which some editors write.
        rows = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except RecursionError as error:
        raise InputError(f"{path}: nested too deeply") from error
    except (OSError, ValueError) as error:
        raise InputError(_named(path, error)) from error
    if not isinstance(rows, list):
        raise InputError(f"{path}: expected a list, found {type(rows).__name__}")
    made = []
    for index, row in enumerate(rows):
        if not isinstance(row, dict):
            raise InputError(f"{path}: row {index}: expected an object, found {type(row).__name__}")
        try:
            made.append(make(row))
        except ValueError as error:
            raise InputError(f"{path}: row {index}: {error}") from error
    return made


def _named(path: str | Path, error: OSError | ValueError) -> str:
    """Say what is wrong with a file, its name once."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    for name in (str(path), Path(path).name):  # by either of which readers of formats begin
        reason = reason.removeprefix(f"{name}: ")
    return f"{path}: {reason}"


def _text(row: Mapping[str, Any], key: str, *, required: bool = False) -> str:
    value = row.get(key)
    if value is None and not required:
        return ""
    if not isinstance(value, str):
        raise ValueError(f'"{key}" must be a string')
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f'"{key}" has half of a surrogate pair in it: {value!a}') from None
    return value


def _flag(row: Mapping[str, Any], key: str) -> bool:
    value = row.get(key)
    if value is not None and not isinstance(value, bool):
        raise ValueError(f'"{key}" must be true or false')
    return bool(value)


def _size(row: Mapping[str, Any], key: str, *, required: bool = False) -> int:
    value = row.get(key)
    if value is None and not required:
        return 0
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise ValueError(f'"{key}" must be a number of bytes, 0 or more')
    return value


def _known_size(row: Mapping[str, Any], key: str) -> int | None:
    return None if row.get(key) is None else _size(row, key)


def _block(row: Mapping[str, Any]) -> allocation.Block:
    pinned = row.get("pinned")
    if pinned is not None and not isinstance(pinned, (bool, str)):
        raise ValueError('"pinned" must be true, false or the reason as a string')
    reason = "pinned" if pinned is True else "" if pinned is False else _text(row, "pinned")
    return allocation.Block(
        _text(row, "name", required=True),
        _size(row, "bytes", required=True),
        group=_text(row, "group"),
        pinned=reason,
        tied=_text(row, "tied"),
        patched=_flag(row, "patched"),
    )


def _device(row: Mapping[str, Any]) -> allocation.Device:
    link = row.get("link_gbps")
    link = 0.0 if link is None else link
    if isinstance(link, bool) or not isinstance(link, (int, float)) or not 0 <= link < 1e15:
        raise ValueError('"link_gbps" must be a number of GB/s, 0 or more')
    return allocation.Device(
        _text(row, "device", required=True),
        total=_known_size(row, "total"),
        free=_known_size(row, "free"),
        reserve=_size(row, "reserve"),
        link_gbps=float(link),
    )
