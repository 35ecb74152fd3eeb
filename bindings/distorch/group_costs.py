# SPDX-License-Identifier: Apache-2.0
"""What measured steps say of layer groups, as the planner is to see it: their compute, and which come several times."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

# Seconds a byte of two groups that differ by less are taken for equal.
_NOISE = 1.5


def block_costs(blocks: Sequence[tuple[str, int]], seconds: Mapping[str, float]) -> list[int]:
    """Share out the seconds of layer groups over their blocks, (group, bytes) each, in proportion to the bytes.

    Returns nanoseconds. A group that was split for the measurement ("blocks.3.0", "blocks.3.1") is put together. All
    zero unless every group is known: half of the figures would space the others as if they took no time. All zero,
    too, where the seconds follow the bytes: spacing by bytes does as well, and noise moves no block.
    """
    of_group: dict[str, float] = {}
    sizes: dict[str, int] = {}
    for group, size in blocks:
        if group:
            sizes[group] = sizes.get(group, 0) + size
    for name, value in seconds.items():
        group = _group_of(name, sizes)
        of_group[group] = of_group.get(group, 0.0) + value
    if any(group not in of_group for group in sizes):
        return [0] * len(blocks)
    rates = [of_group[group] / max(1, size) for group, size in sizes.items()]
    if not rates or max(rates) < _NOISE * min(rates):
        return [0] * len(blocks)
    return [
        round(of_group[group] * 1e9 * size / max(1, sizes[group])) if group else 0
        for group, size in blocks
    ]


def planned_groups(groups: Sequence[str], often: Collection[str]) -> list[str]:
    """Return the group of each block as the planner is to see it: "" for one of a group in `often`.

    The planner gives blocks in no group to the compute device first, as one that is brought several times a step costs
    the link as often.
    """
    known = frozenset(groups)
    first = {_group_of(name, known) for name in often}
    return ["" if group in first else group for group in groups]


def _group_of(measured: str, groups: Collection[str]) -> str:
    """Return the group that a measured one is, or is a part of ("blocks.3.0" of "blocks.3"); "" where there is none."""
    parts = measured.split(".")
    names = (".".join(parts[:i]) for i in range(len(parts), 0, -1))
    return next((name for name in names if name in groups), "")
