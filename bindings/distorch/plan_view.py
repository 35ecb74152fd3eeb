# SPDX-License-Identifier: Apache-2.0
"""A plan as people look at it: a row for each device, a strip in bytes, what a step copies and how long it takes.

One form for the tab, the nodes and the command line. Sizes are bytes, times seconds. Pure functions of a plan.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from distorch import allocation

MEGABYTE = 2**20


@dataclasses.dataclass(frozen=True)
class DeviceRow:
    """What a plan gives a device. `cap` counts the slots; None where the string sets none and the memory is not known."""

    device: str
    cap: int | None
    weights: int
    slots: int
    how: str  # resident, streamed, migrated; "" without weights
    total: int | None
    free: int | None
    link_gbps: float


@dataclasses.dataclass(frozen=True)
class Stretch:
    """Neighbouring blocks that lie on one device."""

    device: str
    how: str
    bytes: int
    blocks: int
    first: str
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class StepView:
    """A step by calculation. `seconds` is None where something is `missing`; `bound` is "compute", or the slowest link's device."""

    compute: float | None
    seconds: float | None
    bound: str
    copies: Mapping[str, float]  # seconds of copying by device, over the links that are known
    missing: tuple[str, ...]  # "compute", or a device whose link was not measured


@dataclasses.dataclass(frozen=True)
class PlanView:
    """Everything that is shown of a plan."""

    spec: str
    resolved: str
    compute: str
    model_bytes: int
    streamed_bytes: int
    slot_count: int
    devices: tuple[DeviceRow, ...]
    strip: tuple[Stretch, ...]
    step: StepView
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        # dataclasses.asdict() copies each value deeply: milliseconds for hundreds of stretches.
        return {
            **vars(self),
            "devices": [dict(vars(row)) for row in self.devices],
            "strip": [dict(vars(part)) for part in self.strip],
            "step": dict(vars(self.step)),
        }


def view(
    plan: allocation.Plan,
    devices: Sequence[allocation.Device],
    compute_seconds: float | None = None,
    activations: int = 0,
) -> PlanView:
    """Look at a plan.

    Args:
        plan: the plan.
        devices: the table it was made for.
        compute_seconds: what a step computes with all weights on the compute device; None: not known.
        activations: bytes that a layer group takes, and as many that it gives.
    """
    here = plan.compute
    modes, seconds = plan.modes, 0.0
    if compute_seconds is not None:
        step = plan.predict_step(compute_seconds, activations, max(1, plan.slots))
        modes, seconds = {**modes, **step.modes}, step.step_seconds
    how = {
        device: "resident" if device == here else "migrated" if mode == "migrate" else "streamed"
        for device, mode in modes.items()
    }
    how[here] = "resident"
    totals = plan.totals
    streamed = {d: n for d, n in totals.items() if n and how.get(d) == "streamed"}
    table = {d.device: d for d in devices}
    rows = tuple(
        _row(plan, table.get(d), d, how.get(d, "") if totals.get(d) else "")
        for d in dict.fromkeys([here, *totals])
        if totals.get(d) or plan.staging.get(d) or d in plan.spec.devices or d == here
    )
    return PlanView(
        spec=str(plan.spec),
        resolved=resolved(plan),
        compute=here,
        model_bytes=plan.model_bytes,
        streamed_bytes=sum(streamed.values()),
        slot_count=plan.slots,
        devices=rows,
        strip=_strip(plan, how),
        step=_step(streamed, table, compute_seconds, seconds),
        notes=tuple(plan.notes),
    )


def _row(
    plan: allocation.Plan, there: allocation.Device | None, device: str, how: str
) -> DeviceRow:
    return DeviceRow(
        device=device,
        cap=plan.caps.get(device),
        weights=plan.totals.get(device, 0),
        slots=plan.staging.get(device, 0),
        how=how,
        total=there.total if there else None,
        free=there.free if there else None,
        link_gbps=there.link_gbps if there else 0.0,
    )


def _strip(plan: allocation.Plan, how: Mapping[str, str]) -> tuple[Stretch, ...]:
    return tuple(
        Stretch(device, how.get(device, "streamed"), size, count, first, reason)
        for device, count, size, first, reason in plan.stretches
    )


def _step(
    streamed: Mapping[str, int],
    table: Mapping[str, allocation.Device],
    compute: float | None,
    seconds: float,
) -> StepView:
    links = {d: table[d].link_gbps * 2**30 if d in table else 0.0 for d in streamed}
    copies = {d: streamed[d] / links[d] for d in streamed if links[d] > 0}
    missing = [d for d in streamed if d not in copies]
    if compute is None:
        missing.insert(0, "compute")
    slowest = max(copies, key=lambda d: copies[d], default="")
    bound = slowest if slowest and (compute is None or copies[slowest] > compute) else "compute"
    known = None if missing else (seconds if streamed or seconds else compute)
    return StepView(compute, known, bound, copies, tuple(missing))


def resolved(plan: allocation.Plan) -> str:
    """Return a string of sizes alone that gives the same placement, also of "auto", shares and percentages.

    A cap counts the slots. The last device takes the rest.
    """
    totals, staging, here = plan.totals, plan.staging, plan.compute
    used = [d for d, n in totals.items() if n or staging.get(d)]
    if used in ([], [here]):
        return f"{here},*"
    rest = "cpu" if "cpu" in used else used[-1]
    if rest == here:
        rest = next(d for d in reversed(used) if d != here)
    parts = []
    for device in used:
        if device != rest:
            size = totals.get(device, 0) + staging.get(device, 0)
            parts.append(f"{device},{_amount(size)}{_mode(plan, device)}")
    if here not in used:
        parts.insert(0, f"{here},0mb")
    parts.append(f"{rest},*{_mode(plan, rest)}")
    return ";".join(parts)


def _amount(size: int) -> str:
    """Round up, and so little that no block more fits in."""
    unit, name = (MEGABYTE, "mb") if size >= 64 * MEGABYTE else (1024, "kb")
    return f"{-(-size // unit)}{name}"


def _mode(plan: allocation.Plan, device: str) -> str:
    mode = plan.modes.get(device, "auto")
    return f",mode={mode}" if mode != "auto" and device != plan.compute else ""
