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

from distorch import allocation, plan_drawing, plan_view
from distorch.printable import printable
from distorch.tools.cli import plan_rows

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
    parser.add_argument(
        "--against", metavar="STRING", help="another string, shown beside the first"
    )
    parser.add_argument("--svg", metavar="FILE.svg", help="draw what is shown into this file")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Run the command; returns 0, or 2 with the error printed."""
    try:
        devices = _read(args.devices, plan_rows.device) if args.devices else None
        spec = allocation.parse(args.alloc, _names_here() if devices is None else devices)
        devices = _devices_here(args.compute, spec) if devices is None else devices
        plan = _plan(args, spec, devices)
        step = _step(args, plan)
        other = _other(args, plan, devices)
        if args.svg:
            _draw(args, [plan, other] if other else [plan], devices)
    except (allocation.AllocationError, allocation.PlanError, InputError) as error:
        if args.json:
            sys.stdout.write(json.dumps({"error": error_object(error)}) + "\n")
        else:
            sys.stderr.write(printable(f"distorch plan: {error}\n"))
        return 2
    if args.json:
        text = plan.to_stable_json()
        if step is not None:
            more = {"step": {"seconds": step.step_seconds, "modes": step.modes}}
            text = json.dumps(json.loads(text) | more)
        sys.stdout.write(text + "\n")
        return 0
    views = [plan_view.view(plan, devices, args.step_seconds, args.activations)]
    if other is not None:
        views.append(plan_view.view(other, devices, args.step_seconds, args.activations))
        sys.stdout.write(printable(plan_drawing.comparison(views)) + "\n")
    else:
        sys.stdout.write(printable(f"{plan.tables()}\n{plan_drawing.text(views[0])}\n"))
        sys.stdout.writelines(f"  {line}\n" for line in (step.lines if step else ()))
    return 0


def _step(args: argparse.Namespace, plan: allocation.Plan) -> allocation.ModeChoice | None:
    if args.step_seconds is None:
        return None
    if not 0 < args.step_seconds < float("inf"):
        raise InputError("--step-seconds must be a number of seconds, above 0")
    if args.activations < 0:
        raise InputError("--activations must be a number of bytes, 0 or more")
    return plan.predict_step(args.step_seconds, args.activations, max(1, plan.slots))


def _other(
    args: argparse.Namespace, plan: allocation.Plan, devices: list[allocation.Device]
) -> allocation.Plan | None:
    """The plan of --against, for the same blocks."""
    if args.against is None:
        return None
    if args.json:
        raise InputError("--against is for people: ask twice for JSON")
    spec = allocation.parse(args.against, devices)
    options = allocation.Options(order=args.order, strict=args.strict, slots=args.slots)
    return allocation.make_plan(
        spec, plan.blocks, devices, args.compute or spec.compute or plan.compute, options
    )


def _draw(
    args: argparse.Namespace, plans: list[allocation.Plan], devices: list[allocation.Device]
) -> None:
    views = [plan_view.view(p, devices, args.step_seconds, args.activations) for p in plans]
    try:
        Path(args.svg).write_text(plan_drawing.svg(views), encoding="utf-8")
    except OSError as error:
        raise InputError(_named(args.svg, error)) from error


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
    blocks = _read(args.blocks, plan_rows.block) if args.blocks else blocks_of_file(Path(args.file))
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
