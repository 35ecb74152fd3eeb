# SPDX-License-Identifier: Apache-2.0
"""Compares what a ComfyUI has with what the pack needs."""

from __future__ import annotations

import dataclasses

from .facts import Facts, Tree
from .needs import SEAMS, Need, Seam


@dataclasses.dataclass(frozen=True)
class Problem:
    """One need that is not met."""

    seam: Seam
    need: Need
    what: str

    def __str__(self) -> str:
        return f"ComfyUI's {self.need.full} {self.what}: {self.seam.costs}"


def problems_of(tree: Tree, seams: tuple[Seam, ...] | None = None) -> list[Problem]:
    """Every need that is not met, in the order of the table; modules that cannot be looked at are passed over."""
    return [
        Problem(seam, need, what)
        for seam in (SEAMS.values() if seams is None else seams)
        for need in seam.needs
        if tree.has(need.module) and (what := _unmet(tree, need))
    ]


def problem_of(tree: Tree, seam: Seam) -> Problem | None:
    """The first need of one seam that is not met."""
    return next(iter(problems_of(tree, (seam,))), None)


def _unmet(tree: Tree, need: Need) -> str:
    if need.where:
        module, _, name = need.where.rpartition(":")
        if tree.find(module or need.module, name) is None:
            return ""
    facts = tree.find(need.module, need.name)
    if facts is None:
        return "is not there"
    if need.takes is not None and (what := _wrong_call(need, facts)):
        return what
    if facts.opaque:
        return ""
    lost = [word for word in need.mentions.split() if word not in facts.mentions]
    return f"does not use {', '.join(lost)}" if lost else ""


def _wrong_call(need: Need, facts: Facts) -> str:
    if facts.opaque:
        return ""
    expected = tuple((need.takes or "").split())
    if facts.parameters is None:
        return "is no function"
    found = facts.parameters
    common = found[: len(expected)]
    if common != expected[: len(common)] or (len(found) < len(expected) and not facts.more):
        return f"takes ({', '.join(found)}), not ({', '.join(expected)})"
    needed = found[len(expected) : len(found) - facts.defaults]
    if need.calls and needed:
        return f"asks for {', '.join(needed)} as well"
    if facts.coroutine != need.coroutine:
        return "is a coroutine function" if facts.coroutine else "is no coroutine function"
    return ""
