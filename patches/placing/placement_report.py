# SPDX-License-Identifier: Apache-2.0
"""What `distorch.placements()` shows of a placed model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from distorch.devices import name_of
from distorch.memory import placements

if TYPE_CHECKING:
    from .model_placement import ModelPlacement


def report(placed: ModelPlacement, state: str) -> placements.Placement:
    """Where its tensors are, why, and how it runs; `state` as in `placements.Placement`."""
    plan = placed.plan
    return placements.Placement(
        key=placed.key,
        name=placed.name,
        file=placed.request.file,
        compute=name_of(placed.compute),
        requested=str(placed.request.spec),
        state=state,
        blocks=placed.placement(),
        bytes_per_device=placed.bytes_per_device(),
        reasons={b.name: b.pinned for b in placed.blocks if b.pinned},
        sizes={b.name: b.bytes for b in placed.blocks},
        waiting={name: plan.placement[name] for name in placed.spilled} if plan else {},
        caps=dict(plan.caps) if plan else {},
        slots=plan.slots if plan else 0,
        pinned=placed.pinner.pinned if placed.pinner is not None else 0,
        notes=tuple(plan.notes) if plan else (),
        plan=plan.to_json() if plan else "",
        patched=len(placed.weights.patched),
        spilled=sum(placed.by_name[name].bytes for name in placed.spilled),
        **_running(placed),
    )


def _running(placed: ModelPlacement) -> dict[str, Any]:
    """How it runs, as far as that is known."""
    engine = placed.runner.engine if placed.runner is not None else None
    if engine is None:
        return {"streaming": placed.running}
    decision = engine.decision
    return {
        "streaming": placed.runner.describe(),
        "streamed_bytes": engine.bytes_per_step,
        "staging_bytes": engine.staging_bytes,
        "migrated": {donor: len(names) for donor, names in engine.migrated.items()},
        "groups": {
            **dict.fromkeys(engine.streamed, "streamed"),
            **{name: "migrated" for names in engine.migrated.values() for name in names},
        },
        "compute_step_s": decision.compute_seconds if decision else None,
        "predicted_step_s": (decision.step_seconds or None) if decision else None,
    }
