# SPDX-License-Identifier: Apache-2.0
"""Measures one case (a model, a number of tokens, a share of its blocks on the host) in every way asked for."""

from __future__ import annotations

import contextlib
import gc
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

import dit
import torch
import ways

GB = 2**30
ALL_WAYS = {**ways.WAYS, **ways.MORE_WAYS}
RIVALS = tuple(way for way in ALL_WAYS if way not in ("resident", "streamed"))


class OutOfTimeError(Exception):
    """A time limit has passed."""


@contextlib.contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raise OutOfTimeError inside when it takes longer; for the main thread."""
    if seconds <= 0:
        raise OutOfTimeError("no time was left")

    def ring(_signal: int, _frame: FrameType | None) -> None:
        raise OutOfTimeError(f"not done within {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, min(seconds, 1e6))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Clock:
    """Times a step on a device: the median, all queued work included."""

    unit = "s"

    def __init__(self, device: str, steps: int) -> None:
        self.device, self.steps = device, steps

    def step(self, run: Callable[[], object], warm_up: int) -> float:
        """Return seconds."""
        for _ in range(warm_up):
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

    def step(self, run: Callable[[], object], warm_up: int) -> float:
        """Return the bytes of the last step."""
        import distorch_sim

        for _ in range(max(self.steps, warm_up)):
            distorch_sim.reset_counters()
            run()
        return float(distorch_sim.copied("cpu", self.device))


@dataclass(frozen=True)
class Case:
    """One row of the results: `share` of the blocks are away."""

    size: str
    tokens: int
    share: float


@dataclass
class Limits:
    """Seconds: of one rival, of all ways of a case, and when everything has to be done (time.monotonic)."""

    way: float = 600.0
    case: float = 3600.0
    end: float = float("inf")


def dtype_for(meter: Any) -> torch.dtype:
    """Return the type of the weights: half precision is slow on the host."""
    return torch.float32 if meter.unit == "bytes" else torch.bfloat16


class Bench:
    """One model; measures its cases. C and the right result are found once for each number of tokens."""

    def __init__(self, meter: Any, size: dit.Size, limits: Limits) -> None:
        """Build the model on the host."""
        self.meter, self.size, self.limits = meter, size, limits
        self.model = dit.build(size, dtype_for(meter))
        self._resident: dict[int, tuple[float, torch.Tensor]] = {}

    def run(
        self,
        case: Case,
        chosen: Sequence[str],
        gbps: dict[str, float],
        written: Callable[[dict[str, Any]], None] = lambda _: None,
    ) -> dict[str, Any]:
        """Run the chosen ways; returns a row of results, and gives it to `written` after each way.

        A way that fails, gives another result than the resident model or takes too long has no value, and a line in
        the row's problems. Raises OutOfTimeError only where the resident model is not done in time.

        Args:
            case: what to measure.
            chosen: names of the ways.
            gbps: speed of copies from "pinned" and "registered" memory; empty on a simulated device.
            written: called with the row.
        """
        end = min(time.monotonic() + self.limits.case, self.limits.end)
        away = ways.spread(dit.groups(self.model), case.share)
        row: dict[str, Any] = {
            "size": case.size,
            "tokens": case.tokens,
            "share": case.share,
            "unit": self.meter.unit,
            "groups_away": len(away),
            "streamed_bytes": ways.group_bytes(self.model, away),
            "values": {},
            "problems": {},
            "notes": [],
        }
        if case.tokens not in self._resident:
            value, result, _ = self._way("resident", case.tokens, away, 1, end)
            self._resident[case.tokens] = (value, result)
        row["values"]["resident"], expected = self._resident[case.tokens]
        for way in chosen:
            if way == "resident":
                continue
            # Ours learns the order and measures in its first steps; a rival needs to be warm only.
            try:
                value, result, notes = self._way(way, case.tokens, away, 4 if way == "streamed" else 1, end)  # fmt: skip
            except (OutOfTimeError, ways.NotForThisError, RuntimeError, MemoryError, ValueError, TypeError, AttributeError, ImportError) as error:  # fmt: skip
                row["problems"][way] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"  # fmt: skip
            else:
                row["notes"] += notes
                if torch.equal(result, expected):
                    row["values"][way] = value
                else:
                    row["problems"][way] = _difference(result, expected)
            finish(row, gbps)
            written(row)
        finish(row, gbps)
        return row

    def _way(
        self, way: str, tokens: int, away: Sequence[str], warm_up: int, end: float
    ) -> tuple[float, torch.Tensor, list[str]]:
        text = 8 if self.size == dit.TINY.get(self.size.name) else dit.TEXT_TOKENS
        device = self.meter.device
        try:
            # A way is entered as its users enter it; only the steps are in inference mode.
            left = end - time.monotonic()
            limit = min(self.limits.way, left) if way in RIVALS else left
            with at_most(limit), torch.no_grad():
                args = dit.inputs(self.size, tokens, device, dtype_for(self.meter), text)
                model = ways.borrowed(self.model)
                entered = ALL_WAYS[way](model, device, away, back=False)
                with entered as executor, torch.inference_mode():
                    value = self.meter.step(lambda: model(*args), warm_up)
                    result = model(*args).cpu()
                    return value, result, list(getattr(executor, "notes", []))
        finally:
            model = executor = args = None  # type: ignore[assignment]
            gc.collect()
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()
                torch._C._host_emptyCache()  # what a way has pinned stays pinned otherwise


def _difference(result: torch.Tensor, expected: torch.Tensor) -> str:
    one, other = result.double(), expected.double()
    relative = float((one - other).norm() / other.norm())
    return f"another result than the resident model's: {relative:.2e} of its norm apart"


def finish(row: dict[str, Any], gbps: dict[str, float]) -> None:
    """Add to a row what follows from its values: the bound, the fraction of it, the ratio to each rival."""
    values = row["values"]
    ours = values.get("streamed")
    row["ratio"] = {r: values[r] / ours if ours else None for r in RIVALS if r in values}
    if row["unit"] == "bytes":
        row["bound"] = float(row["streamed_bytes"])
    else:
        row["compute_seconds"] = values["resident"]
        row["link_seconds"] = row["streamed_bytes"] / (gbps["pinned"] * GB)
        row["link_seconds_registered"] = row["streamed_bytes"] / (gbps["registered"] * GB)
        row["bound"] = max(row["compute_seconds"], row["link_seconds"])
    row["fraction_of_bound"] = row["bound"] / ours if ours else None


def missed(row: dict[str, Any]) -> list[str]:
    """Return the goals that a row misses: a right result, never slower (or more bytes) than a rival, T <= 1.05 of the bound."""
    where = f"{row['size']}, {row['tokens']} tokens, {row['share']:.0%} away"
    problem = row["problems"].get("streamed")
    found = [f"{where}: streamed: {problem}"] if problem else []
    for rival, ratio in row["ratio"].items():
        if ratio is not None and ratio < 1:
            found.append(f"{where}: slower than {rival} ({ratio:.2f})")
    if row["fraction_of_bound"] is not None and row["fraction_of_bound"] < 1 / 1.05:
        found.append(f"{where}: {row['fraction_of_bound']:.2f} of the bound")
    return found
