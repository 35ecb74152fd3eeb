# SPDX-License-Identifier: Apache-2.0
"""From an allocation string and a list of blocks to a plan.

    devices = [Device("cuda:0", total=24 << 30, free=24 << 30), Device("cpu", total=64 << 30, free=64 << 30)]
    blocks = [Block(f"layers.{i}", 300 << 20) for i in range(40)]
    plan = make_plan("cuda:0,2.5gb;cpu,*", blocks, devices, compute="cuda:0")
    plan.totals          # {"cuda:0": 2516582400, "cpu": 10066329600}

Sizes are bytes; 1 GB is 2**30 bytes. Everything here is a pure function and may be called from any thread.
The grammar is in docs/allocation-strings.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from distorch import _load

if TYPE_CHECKING:
    from distorch._C import Block, Device, ModeChoice, Options, Plan, Spec
else:
    Block, Device, Options = _load.C.Block, _load.C.Device, _load.C.Options
    ModeChoice, Plan, Spec = _load.C.ModeChoice, _load.C.Plan, _load.C.Spec

__all__ = [
    "AllocationError",
    "Block",
    "Candidate",
    "Device",
    "ModeChoice",
    "Options",
    "Plan",
    "PlanError",
    "Spec",
    "blocks_of_tensors",
    "format_bytes",
    "format_spec",
    "group_names",
    "make_plan",
    "parse",
    "text_encoder_head",
]


class AllocationError(ValueError):
    """An allocation string, or what is planned with it, is wrong.

    Attributes:
        message: all of it, ending in two lines that point into the string, if it is about one.
        offset: where in the string, in characters from 0; None if it is not about the string.
        fragment: what stands there; empty at the end of the string.
        expected: what should stand there.
        caret: the two lines that point into the string.
    """

    def __init__(
        self,
        message: str,
        *,
        offset: int | None = None,
        fragment: str = "",
        expected: str = "",
        caret: str = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.offset = offset
        self.fragment = fragment
        self.expected = expected
        self.caret = caret


@dataclass(frozen=True)
class Candidate:
    """A device that was considered when nothing fitted; sizes in bytes, free is less the reserve."""

    device: str
    asked: int
    cap: int
    free: int


class PlanError(MemoryError):
    """No plan keeps every cap.

    Attributes:
        message: the problem, a line for each candidate, and one remedy.
        problem: its first line.
        candidates: each device with what was asked of it, its cap and its free memory.
        remedy: one thing to do.
    """

    def __init__(
        self, message: str, *, problem: str, candidates: Sequence[Candidate], remedy: str
    ) -> None:
        super().__init__(message)
        self.message = message
        self.problem = problem
        self.candidates = list(candidates)
        self.remedy = remedy


def parse(
    text: str,
    devices: Sequence[Device] | Sequence[str] | None = None,
    *,
    kinds: Iterable[str] = (),
) -> Spec:
    """Read an allocation string.

    Args:
        text: the string.
        devices: the devices there are; any other (but cpu) is then an error. None: not checked.
        kinds: kinds of device known beside the built-in ones, as the name of a PrivateUse1 backend.

    Raises:
        AllocationError: the string is wrong.
    """
    names = [d if isinstance(d, str) else d.device for d in devices or ()]
    _check_text(text)
    outcome = _load.C.parse_spec(text, names, list(kinds))
    if isinstance(outcome, Spec):
        return outcome
    # C++ counts bytes, Python characters. Both appear in the message.
    offset = len(text.encode()[: outcome.offset].decode(errors="ignore"))
    message = outcome.message.replace(f" at offset {outcome.offset}", f" at offset {offset}", 1)
    raise AllocationError(
        message,
        offset=offset,
        fragment=outcome.fragment,
        expected=outcome.expected,
        caret=outcome.caret,
    )


def _check_text(text: str) -> None:
    """Refuse what is no text: half of a surrogate pair, from a broken file or bytes of another encoding."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        shown = text[: error.start].encode(errors="replace").decode()
        raise AllocationError(
            f"allocation string: a character that is no text at offset {error.start}; "
            f"expected letters, digits and , ; : . % * #\n  {shown}?\n  {' ' * len(shown)}^",
            offset=error.start,
            fragment="?",
            expected="letters, digits and , ; : . % * #",
            caret=f"  {shown}?\n  {' ' * len(shown)}^",
        ) from None


def format_spec(spec: Spec) -> str:
    """Return the string that `parse` reads back as an equal spec."""
    return str(spec)


def make_plan(
    spec: Spec | str,
    blocks: Iterable[Block],
    devices: Sequence[Device],
    compute: str = "",
    options: Options | None = None,
) -> Plan:
    """Give every block a place.

    Args:
        spec: a spec or a string.
        blocks: in the order of the model, names unique.
        devices: the table of devices; cpu may be absent, its memory is then not checked.
        compute: where the forward pass runs; empty: where the string says.
        options: order ("auto", "contiguous", "strided") and strict.

    Raises:
        AllocationError: the string, a block or a device is wrong.
        PlanError: nothing fits.
    """
    if isinstance(spec, str):
        spec = parse(spec, devices)
    outcome = _load.C.plan_blocks(spec, list(blocks), list(devices), compute, options or Options())
    if isinstance(outcome, Plan):
        return outcome
    if not outcome.does_not_fit:
        raise AllocationError(outcome.message)
    raise PlanError(
        outcome.message,
        problem=outcome.problem,
        candidates=[Candidate(*row) for row in outcome.candidates],
        remedy=outcome.remedy,
    )


def group_names(names: Sequence[str]) -> list[str]:
    """Return the layer group of each block by its name: the outermost repeated `prefix.N`, or ''."""
    return list(_load.C.group_names(list(names)))


def text_encoder_head(name: str) -> str:
    """Return why a block of a text encoder must stay on the compute device, or '' if it need not."""
    return str(_load.C.text_encoder_head(name))


def blocks_of_tensors(tensors: Iterable[tuple[str, int]]) -> list[Block]:
    """Return the blocks of a file's tensors (name, bytes): one a module, grouped, embeddings pinned."""
    return list(_load.C.blocks_of_tensors(list(tensors)))


def format_bytes(count: int) -> str:
    """Return a size as people read it: '2.50 GB', '512 MB'."""
    return str(_load.C.format_bytes(count))
