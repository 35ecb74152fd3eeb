# SPDX-License-Identifier: Apache-2.0
"""Decides from a profile which donors stream and which migrate (`allocation/mode_choice.h`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from distorch._load import core
from distorch.devices import device_module, name_of, parse_name
from distorch.run.profile import Profile

GB = 2**30


@dataclass(frozen=True)
class Decision:
    """What was chosen: `modes` by donor, a line of text for each, seconds of a step.

    `step_seconds` is predicted for the chosen modes, 0.0 where a donor's link is not known; `compute_seconds` is what
    the groups' compute takes alone.
    """

    modes: dict[str, str]
    lines: tuple[str, ...]
    step_seconds: float
    compute_seconds: float


def same_kind(donor: str, compute: str) -> bool:
    """Whether a donor computes exactly like the compute device: the same model of the same kind of device."""
    kind, index = parse_name(donor)
    other, compute_index = parse_name(compute)
    name: Any = getattr(device_module(kind), "get_device_name", None)
    if kind != other or name is None:
        return False
    return _model(name(index), index) == _model(name(compute_index), compute_index)


def _model(name: str, index: int) -> str:
    """A device's name without its own index, which some backends put there."""
    return name.removesuffix(f" {index}")


def crossing_bytes(names: set[str], profile: Profile) -> int:
    """Return the bytes of activations that go to a donor and back in a step if it runs these groups.

    Consecutive ones hand over directly. Inputs that are the same for all groups are counted once a run of groups,
    which is more than is sent.
    """
    total, inside, last = 0, False, 0
    for name in profile.order:
        group = profile.groups[name]
        if name in names:
            if not inside:
                total += group.input_bytes
            inside, last = True, group.output_bytes
        elif inside:
            total += last
            inside = False
    return total + (last if inside else 0)


def decide(
    specs: Iterable[Any],
    profile: Profile,
    modes: Mapping[str, str],
    links: Mapping[str, float],
    slots: int,
    compute: str,
) -> Decision:
    """Choose for every donor of `specs` (groups as in `GroupSpec`); the host streams unless told otherwise.

    Args:
        specs: the groups; those without one donor of their own count as streamed from where they lie.
        profile: a complete one.
        modes: what the user wants, by donor; "auto" where missing.
        links: GB/s (2**30 bytes a second) to the compute device, by donor.
        slots: staging slots.
        compute: the compute device.
    """
    bytes_of: dict[str, int] = {}
    names: dict[str, set[str]] = {}
    for spec in specs:
        donor = spec.donor or next((name_of(r.get().device) for r in spec.away), "cpu")
        bytes_of[donor] = bytes_of.get(donor, 0) + spec.bytes
        names.setdefault(donor, set()).add(spec.name)
    rows = [
        (
            donor,
            float(bytes_of[donor]),
            len(names[donor]),
            links.get(donor, 0.0) * GB,
            float(crossing_bytes(names[donor], profile)),
            donor != "cpu" and same_kind(donor, compute),
            modes.get(donor, "auto"),
        )
        for donor in bytes_of
    ]
    seconds, chosen = core().choose_modes(profile.seconds, max(1, len(profile.groups)), slots, rows)
    return Decision(
        modes={row[0]: choice[0] for row, choice in zip(rows, chosen, strict=True)},
        lines=tuple(choice[3] for choice in chosen),
        step_seconds=float(seconds),
        compute_seconds=profile.seconds,
    )
