# SPDX-License-Identifier: Apache-2.0
"""How close streaming comes to the physical limit on this GPU, beside the ways it is compared with, in one run.

    tools/compile_cuda.sh                          # build/cuda/bench/copies
    python bench/gpu/run.py --out build/gpu-bench

First the copies (pinned, registered, pageable, both directions), by build/cuda/bench/copies. Then diffusion transformers
of real size with random bf16 weights: resident (C, the compute time of a step), and with 25, 50 and 100 % of the blocks
on the host: streamed by DisTorch, leaf by leaf (the predecessor's way), and under accelerate's cpu_offload. Printed and
written to results.json and results.svg: T, C, B/W, the fraction of the bound max(C, B/W), the ratio to each rival.
B are the bytes of the blocks on the host, W the measured speed of pinned copies of at least 32 MiB.

--tiny runs all of it on a simulated device, with models of the same structure: bytes instead of seconds.

Exit status: 0 done; 1 a result was wrong or a goal that holds on every machine was missed; 2 wrong arguments; 3 no CUDA
device; 4 not enough memory.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import dit
import plot
import torch
import ways

ROOT = Path(__file__).resolve().parents[2]
GB = 2**30
SHARES = (0.25, 0.5, 1.0)
RIVALS = ("per_leaf", "accelerate")
# A step's activations and the allocator's slack, beside the weights.
HEADROOM = 6 * GB


class NotPossibleError(RuntimeError):
    """The run cannot be made here; `status` is the exit status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the arguments; exits with 2 when they are wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--tiny", action="store_true", help="on a simulated device: bytes, not seconds"
    )
    parser.add_argument("--device", default="cuda:0", help="the compute device (default: cuda:0)")
    parser.add_argument(
        "--sizes",
        default="flux-12b,wan-14b",
        help=f"of {', '.join(dit.SIZES)} (default: flux-12b,wan-14b)",
    )
    parser.add_argument(
        "--tokens", default="1024,4096,16384", help="image tokens of a step, with commas"
    )
    parser.add_argument("--steps", type=int, default=5, help="timed steps of each way (default: 5)")
    parser.add_argument("--copies", type=Path, default=ROOT / "build/cuda/bench/copies")
    parser.add_argument("--out", type=Path, default=ROOT / "build/gpu-bench", help="folder for the results")  # fmt: skip
    args = parser.parse_args(arguments)
    args.sizes = args.sizes.split(",")
    unknown = [name for name in args.sizes if name not in (dit.TINY if args.tiny else dit.SIZES)]
    if unknown:
        parser.error(f"unknown size {unknown[0]}; there are {', '.join(dit.TINY if args.tiny else dit.SIZES)}")  # fmt: skip
    try:
        args.tokens = [int(text) for text in args.tokens.split(",")]
    except ValueError:
        parser.error(f"--tokens must be numbers with commas, not {args.tokens!r}")
    if min(args.tokens) < 1 or args.steps < 1:
        parser.error("--tokens and --steps must be at least 1")
    return args


class Clock:
    """Times a step on a device: the median, all queued work included."""

    unit = "s"

    def __init__(self, device: str, steps: int) -> None:
        self.device, self.steps = device, steps

    def step(self, run: Callable[[], object]) -> float:
        """Return seconds."""
        for _ in range(4):  # the order is learned, buffers are warm
            run()
        times = []
        for _ in range(self.steps):
            torch.cuda.synchronize(self.device)
            begin = time.perf_counter()
            run()
            torch.cuda.synchronize(self.device)
            times.append(time.perf_counter() - begin)
        return statistics.median(times)


class Counter:
    """Counts the bytes that a step brings to a simulated device."""

    unit = "bytes"

    def __init__(self, device: str, steps: int) -> None:
        self.device, self.steps = device, steps

    def step(self, run: Callable[[], object]) -> float:
        """Return the bytes of the last step."""
        import distorch_sim

        for _ in range(self.steps):
            distorch_sim.reset_counters()
            run()
        return float(distorch_sim.copied("cpu", self.device))


def check_memory(args: argparse.Namespace) -> None:
    """Raise NotPossibleError when a size does not fit, with what is needed and what is there."""
    from distorch.devices import free_memory

    for name in args.sizes:
        weights = dit.parameter_bytes(dit.SIZES[name], torch.bfloat16)
        # The host holds the model, and its packed blocks beside it.
        needs = {args.device: weights + HEADROOM, "cpu": 2 * weights + 2 * GB}
        for place, needed in needs.items():
            free = free_memory(place)
            if free < needed:
                raise NotPossibleError(
                    4,
                    f"{name} needs {needed / GB:.1f} GB on {place}, where {free / GB:.1f} GB are free: take a "
                    f"smaller one by --sizes (there are {', '.join(dit.SIZES)}), or free memory there",
                )


def measure_copies(path: Path) -> list[dict[str, Any]]:
    """Run bench/gpu/copies; returns its rows. Raises NotPossibleError when it cannot be run."""
    if not path.exists():
        raise NotPossibleError(2, f"{path} is not there: build it by tools/compile_cuda.sh")
    done = subprocess.run([str(path)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotPossibleError(
            3 if done.returncode == 3 else 1, f"{path.name} failed: {done.stderr.strip()}"
        )
    return [json.loads(line) for line in done.stdout.splitlines()]


def copies_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return the copies as lines: one a way and pair, one column a size, GB/s."""
    sizes = sorted({row["bytes"] for row in rows})
    kinds = dict.fromkeys((row["way"], row["source"], row["target"]) for row in rows)
    speed = {(r["way"], r["source"], r["target"], r["bytes"]): r["gbps"] for r in rows}
    lines = [f"{'GB/s':<32}" + "".join(f"{_size(size):>9}" for size in sizes)]
    for kind in kinds:
        name = f"{kind[0]:<12}{kind[1]} to {kind[2]}"
        cells = [speed.get((*kind, size)) for size in sizes]
        lines.append(
            f"{name:<32}" + "".join(f"{'-' if c is None else f'{c:.2f}':>9}" for c in cells)
        )
    return lines


def _size(size: int) -> str:
    for unit, name in ((GB, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if size >= unit:
            return f"{size // unit} {name}"
    return f"{size} B"


def peak_gbps(rows: Sequence[dict[str, Any]], device: str) -> float:
    """Return the speed of pinned copies from the host of at least 32 MiB: the fastest."""
    found = [
        row["gbps"]
        for row in rows
        if row["way"] == "pinned"
        and (row["source"], row["target"]) == ("cpu", device)
        and row["bytes"] >= 32 << 20
    ]
    if not found:
        raise NotPossibleError(1, f"no pinned copy of 32 MiB or more to {device} was measured")
    return max(found)


def dtype_for(meter: Any) -> torch.dtype:
    """Return the type of the weights: half precision is slow on the host."""
    return torch.float32 if meter.unit == "bytes" else torch.bfloat16


def run_case(
    meter: Any, model: dit.DiT, size: dit.Size, tokens: int, share: float, gbps: float | None
) -> dict[str, Any]:
    """Run every way for one model, one number of tokens and one share; returns a row of results."""
    dtype, name = dtype_for(meter), size.name
    text_tokens = 8 if size == dit.TINY.get(name) else dit.TEXT_TOKENS
    away = ways.spread(dit.groups(model), share)
    streamed = ways.group_bytes(model, away)
    args = dit.inputs(size, tokens, meter.device, dtype, text_tokens)
    values: dict[str, float] = {}
    results: dict[str, torch.Tensor] = {}
    notes: list[str] = []
    with torch.inference_mode():
        for way, enter in ways.WAYS.items():
            with enter(model, meter.device, away) as executor:
                values[way] = meter.step(lambda: model(*args))
                results[way] = model(*args).cpu()
                notes += getattr(executor, "notes", [])
            gc.collect()
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()
    wrong = [way for way, result in results.items() if not torch.equal(result, results["resident"])]
    if wrong:
        raise NotPossibleError(
            1, f"{name}: {', '.join(wrong)} do not give the resident model's result"
        )
    row: dict[str, Any] = {
        "size": name,
        "tokens": tokens,
        "share": share,
        "unit": meter.unit,
        "streamed_bytes": streamed,
        "values": values,
        "notes": notes,
    }
    ours = values["streamed"]
    row["ratio"] = {rival: values[rival] / ours if ours else None for rival in RIVALS}
    if gbps is None:
        row["bound"] = float(streamed)
    else:
        row["compute_seconds"] = values["resident"]
        row["link_seconds"] = streamed / (gbps * GB)
        row["bound"] = max(row["compute_seconds"], row["link_seconds"])
    row["fraction_of_bound"] = row["bound"] / ours if ours else None
    return row


def missed(row: dict[str, Any]) -> list[str]:
    """Return the goals that a row misses: never slower (or more bytes) than a rival, T <= 1.05 of the bound."""
    found = []
    where = f"{row['size']}, {row['tokens']} tokens, {row['share']:.0%} away"
    for rival in RIVALS:
        if row["ratio"][rival] is not None and row["ratio"][rival] < 1:
            found.append(f"{where}: slower than {rival} ({row['ratio'][rival]:.2f})")
    if row["fraction_of_bound"] is not None and row["fraction_of_bound"] < 1 / 1.05:
        found.append(f"{where}: {row['fraction_of_bound']:.2f} of the bound")
    return found


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return the lines that are printed."""
    head = ["model", "tokens", "away", "T", "C", "B/W", "bound/T", *[f"{r}/T" for r in RIVALS]]
    if rows and rows[0]["unit"] == "bytes":
        head[3:6] = ["bytes", "-", "away"]
    cells = [head]
    for row in rows:
        seconds = row["unit"] == "s"
        number: Callable[[float], str] = (
            (lambda v: f"{v:.4f}") if seconds else (lambda v: f"{v:.0f}")
        )
        cells.append(
            [
                row["size"],
                str(row["tokens"]),
                f"{row['share']:.0%}",
                number(row["values"]["streamed"]),
                number(row["compute_seconds"]) if seconds else "-",
                number(row["link_seconds"] if seconds else row["streamed_bytes"]),
                _ratio(row["fraction_of_bound"]),
                *[_ratio(row["ratio"][rival]) for rival in RIVALS],
            ]
        )
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    return ["  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)) for row in cells]


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def context(args: argparse.Namespace) -> dict[str, str]:
    """Return what the figures hold for."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )  # fmt: skip
    hardware = "simulated device: bytes, no seconds"
    if not args.tiny:
        hardware = torch.cuda.get_device_name(args.device)
    return {
        "hardware": hardware,
        "torch": torch.__version__,
        "date": datetime.now(timezone.utc).date().isoformat(),
        "commit": commit.stdout.strip() or "unknown",
    }


def write(args: argparse.Namespace, contents: dict[str, Any]) -> None:
    """Write results.json and results.svg."""
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "results.json").write_text(json.dumps(contents, indent=1) + "\n")
    cases = [
        {
            "label": f"{row['size']}\n{row['tokens']} tokens\n{row['share']:.0%} away",
            "values": row["values"],
            "bound": row["bound"],
        }
        for row in contents["rows"]
    ]
    about = contents["context"]
    title = f"One step on {about['hardware']}, {about['date']} (dashed: the bound)"
    unit = "bytes to the device" if args.tiny else "seconds"
    (args.out / "results.svg").write_text(plot.svg(title, cases, unit))


def run(args: argparse.Namespace) -> int:
    """Run everything; returns the exit status."""
    meter: Any
    rows: list[dict[str, Any]] = []
    if args.tiny:
        import distorch_sim

        distorch_sim.install([256 << 20])
        torch.set_num_threads(1)  # tiny models: threads that wait for each other cost more
        args.device, copies, gbps = "sim:0", [], None
        meter, sizes = Counter(args.device, args.steps), dit.TINY
    else:
        if not torch.cuda.is_available():
            raise NotPossibleError(3, "no CUDA device: nothing was measured (--tiny needs none)")
        check_memory(args)
        copies = measure_copies(args.copies)
        gbps = peak_gbps(copies, args.device)
        print("\n".join(copies_table(copies)) + "\n")
        print(f"W: {gbps:.1f} GB/s, pinned, host to {args.device}")
        meter, sizes = Clock(args.device, args.steps), dit.SIZES
    about = context(args)
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    for name in args.sizes:
        model = dit.build(sizes[name], dtype_for(meter))
        for tokens in args.tokens:
            for share in SHARES:
                rows.append(run_case(meter, model, sizes[name], tokens, share, gbps))
                print(table(rows)[-1], flush=True)
                # After each row: what was measured stays when a later one fails.
                write(args, {"context": about, "gbps": gbps, "copies": copies, "rows": rows})
    print("\n" + "\n".join(table(rows)))
    problems = [line for row in rows for line in missed(row)]
    print("\n".join(["", *problems]) if problems else "\nevery goal is met")
    print(f"written: {args.out / 'results.json'}, {args.out / 'results.svg'}")
    return 1 if problems and args.tiny else 0  # seconds depend on the machine; bytes do not


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
