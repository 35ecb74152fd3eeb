# SPDX-License-Identifier: Apache-2.0
"""How close streaming comes to the physical limit on this GPU, beside the ways it is compared with, in one run.

    tools/compile_cuda.sh                          # build/cuda/bench/copies
    python bench/gpu/run.py --out build/gpu-bench

First the copies (pinned, registered, pageable, both directions), by build/cuda/bench/copies. Then diffusion transformers
of real size with random bf16 weights: resident (C, the compute time of a step, once for each number of tokens), and with
a share of the blocks on the host: streamed by DisTorch, leaf by leaf (the predecessor's way), under accelerate's
cpu_offload, diffusers' group offloading with a stream, and ComfyUI's own cast (--comfy). Printed and written to
results.json and results.svg after each way: T, C, B/W, the fraction of the bound max(C, B/W), the ratio to each rival. B
are the bytes of the blocks on the host, W the measured speed of pinned copies of at least 32 MiB; that of registered
memory is beside it. A way that fails, is too slow or gives a wrong result is a line in the results and ends nothing.

--cases names them one by one: flux-12b:4608:50,wan-14b:4608:100 are model, tokens and percent away. --tiny runs all of it
on a simulated device, with models of the same structure: bytes instead of seconds.

Exit status: 0 done; 1 our own result was wrong, or a goal that holds on every machine was missed; 2 wrong arguments; 3 no
CUDA device; 4 not enough memory.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cases
import copies
import dit
import report
import torch
from copies import GB, NotPossibleError

ROOT = Path(__file__).resolve().parents[2]
# A step's activations and the allocator's slack, beside the weights.
HEADROOM = 6 * GB


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the arguments; exits with 2 when they are wrong."""
    text = (__doc__ or "").split("\n\n")
    parser = argparse.ArgumentParser(
        description=text[0], epilog="\n\n".join(text[2:]), formatter_class=argparse.RawDescriptionHelpFormatter
    )  # fmt: skip
    add = parser.add_argument
    add("--tiny", action="store_true", help="on a simulated device: bytes, not seconds")
    add("--device", default="cuda:0", help="the compute device (default: cuda:0)")
    add("--sizes", default="flux-12b,wan-14b", help=f"of {', '.join(dit.SIZES)} (default: flux-12b,wan-14b)")  # fmt: skip
    add("--tokens", default="1024,4608,16384", help="image tokens of a step, with commas")
    add("--shares", default="25,50,100", help="percent of the blocks on the host, with commas")
    add("--cases", default="", help="SIZE:TOKENS:SHARE with commas, in place of every combination")
    add("--ways", default="", help=f"of {', '.join(cases.ALL_WAYS)} (default: all that can be had)")
    add("--steps", type=int, default=5, help="timed steps of each way (default: 5)")
    add("--way-limit", type=float, default=600.0, help="seconds for one rival in a case")
    add("--case-limit", type=float, default=3600.0, help="seconds for all ways of a case")
    add("--limit", type=float, default=float("inf"), help="seconds for everything")
    add(
        "--copies",
        type=Path,
        default=ROOT / "build/cuda/bench/copies",
        help="the program, or its rows (.json)",
    )
    add("--comfy", type=Path, help="a checkout of ComfyUI, for its own way")
    add("--out", type=Path, default=ROOT / "build/gpu-bench", help="folder for the results")
    add("--json", type=Path, help="one more file for the results")
    add("--plot", type=Path, help="the picture (default: results.svg in --out)")
    args = parser.parse_args(arguments)
    try:
        args.cases = _cases(args)
    except ValueError as error:
        parser.error(str(error))
    args.ways = args.ways.split(",") if args.ways else [w for w in cases.ALL_WAYS if w != "comfy" or args.comfy]  # fmt: skip
    unknown = [way for way in args.ways if way not in cases.ALL_WAYS]
    if unknown:
        parser.error(f"unknown way {unknown[0]}; there are {', '.join(cases.ALL_WAYS)}")
    if args.steps < 1:
        parser.error("--steps must be at least 1")
    return args


def _cases(args: argparse.Namespace) -> list[cases.Case]:
    """Return the cases of one model one behind the other. Raises ValueError for what is no case."""
    sizes = dit.TINY if args.tiny else dit.SIZES
    texts = [text.split(":") for text in args.cases.split(",") if text]
    if not texts:
        texts = [list(t) for t in itertools.product(args.sizes.split(","), args.tokens.split(","), args.shares.split(","))]  # fmt: skip
    found = []
    for text in texts:
        if len(text) != 3 or not all(part.isdigit() and int(part) > 0 for part in text[1:]):
            raise ValueError(f"{':'.join(text)} is no case: expected SIZE:TOKENS:PERCENT, both above 0")  # fmt: skip
        if text[0] not in sizes:
            raise ValueError(f"unknown size {text[0]}; there are {', '.join(sizes)}")
        if int(text[2]) > 100:
            raise ValueError(f"{text[2]} percent of the blocks are more than all")
        found.append(cases.Case(text[0], int(text[1]), int(text[2]) / 100))
    order = list(dict.fromkeys(case.size for case in found))
    return sorted(found, key=lambda case: order.index(case.size))


def check_memory(args: argparse.Namespace) -> None:
    """Raise NotPossibleError when a size does not fit, with what is needed and what is there."""
    from distorch.devices import free_memory

    for name in dict.fromkeys(case.size for case in args.cases):
        weights = dit.parameter_bytes(dit.SIZES[name], torch.bfloat16)
        # The host holds the model, and its packed blocks beside it.
        needs = {args.device: weights + HEADROOM, "cpu": 2 * weights + 2 * GB}
        for place, needed in needs.items():
            free = free_memory(place)
            if free is not None and free < needed:
                raise NotPossibleError(
                    4,
                    f"{name} needs {needed / GB:.1f} GB on {place}, where {free / GB:.1f} GB are free: take a "
                    f"smaller one by --sizes (there are {', '.join(dit.SIZES)}), or free memory there",
                )


def load_comfy(folder: Path, *, gpu: bool) -> None:
    """Make ComfyUI's casting layers importable. Raises NotPossibleError when they are not."""
    sys.path.insert(0, str(folder.resolve()))
    # It reads the command line as it is imported, and asks for a GPU unless told otherwise.
    before, sys.argv = sys.argv, sys.argv[:1] + ([] if gpu else ["--cpu"])
    try:
        import comfy.options

        comfy.options.enable_args_parsing()
        import comfy.ops
    except Exception as error:  # whatever that checkout lacks
        raise NotPossibleError(2, f"ComfyUI cannot be imported from {folder}: {error}") from error
    finally:
        sys.argv = before


def measure(args: argparse.Namespace, meter: Any, contents: dict[str, Any]) -> None:
    """Run all cases; `contents` has the rows, and is written after each way."""
    files = [args.out / "results.json", *([args.json] if args.json else [])]
    picture = args.plot or args.out / "results.svg"
    limits = cases.Limits(args.way_limit, args.case_limit, args.started + args.limit)
    sizes = dit.TINY if args.tiny else dit.SIZES
    bench: cases.Bench | None = None
    for case in args.cases:
        try:
            if bench is None or bench.size.name != case.size:
                bench = None  # its memory first
                with cases.at_most(limits.end - time.monotonic()):
                    bench = cases.Bench(meter, sizes[case.size], limits)

            def written(row: dict[str, Any]) -> None:
                kept = {**contents, "rows": [*contents["rows"], row]}
                report.write(kept, files, picture)

            row = bench.run(case, args.ways, contents["gbps"], written)
        except cases.OutOfTimeError as error:
            contents["not_done"].append(f"{case}: {error}")
            print(f"not done: {case}: {error}")
            report.write(contents, files, picture)
            continue
        contents["rows"].append(row)
        report.write(contents, files, picture)
        print(report.table([row])[-1], flush=True)
        for way, problem in row["problems"].items():
            print(f"  {way}: {problem}", flush=True)


def run(args: argparse.Namespace) -> int:
    """Run everything; returns the exit status."""
    args.started = time.monotonic()
    contents: dict[str, Any] = {"rows": [], "not_done": [], "copies": [], "gbps": {}}
    meter: Any
    if args.tiny:
        import distorch_sim

        distorch_sim.install([256 << 20])
        torch.set_num_threads(1)  # tiny models: threads that wait for each other cost more
        args.device = "sim:0"
        meter = cases.Counter(args.device, args.steps)
    else:
        if not torch.cuda.is_available():
            raise NotPossibleError(3, "no CUDA device: nothing was measured (--tiny needs none)")
        check_memory(args)
        contents["copies"] = copies.measure_copies(args.copies)
        contents["gbps"] = {
            way: copies.peak_gbps(contents["copies"], args.device, way)
            for way in ("pinned", "registered")
        }
        print("\n".join(copies.copies_table(contents["copies"])) + "\n")
        for way, gbps in contents["gbps"].items():
            print(f"W: {gbps:.1f} GB/s, {way}, host to {args.device}")
        meter = cases.Clock(args.device, args.steps)
    if args.comfy:
        load_comfy(args.comfy, gpu=not args.tiny)
    contents["context"] = report.context(args.device)
    print(", ".join(f"{key} {value}" for key, value in contents["context"].items()))
    measure(args, meter, contents)
    rows = contents["rows"]
    print("\n" + "\n".join(report.table(rows)))
    problems = [line for row in rows for line in cases.missed(row)]
    print("\n".join(["", *problems]) if problems else "\nevery goal is met")
    print(f"written: {args.out / 'results.json'}")
    wrong = any("streamed" in row["problems"] for row in rows)
    # Seconds depend on the machine; bytes and results do not.
    return 1 if wrong or (problems and args.tiny) else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    args = parse(arguments)
    try:
        return run(args)
    except NotPossibleError as problem:
        print(f"bench/gpu/run.py: {problem}", file=sys.stderr)
        return problem.status


if __name__ == "__main__":
    sys.exit(main())
