# SPDX-License-Identifier: Apache-2.0
"""Runs a placed model group by group; see `distorch.run`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from distorch.allocation import ModeChoice
from distorch.model_blocks import ModelBlock, TensorRef
from distorch.nested import map_tensors
from distorch.parts import can_rebuild
from distorch.placed import PlacedModel
from distorch.run.groups import GroupEngine
from distorch.run.pinning import HostPinner, registrar_for
from distorch.run.specs import GroupSpec
from distorch.run.travelling import resolve


def host_links(compute: str) -> dict[str, float]:
    """Return what is known of the links to a compute device: GB/s by donor."""
    from distorch.device_table import device_table

    table = device_table(compute)
    return {d.device: d.link_gbps for d in table if d.link_gbps > 0}


class StreamedExecutor:
    """Runs the layer groups of a placed model: streamed ahead of their use, or migrated to their donor.

    Replaces the hooks that bring weights module by module for the groups that it runs. For inference, one thread at a
    time.

    Attributes:
        engine: what does it; its `counters`, `profile`, `decision` and `crossings` are for reading.
    """

    def __init__(
        self,
        placed: PlacedModel,
        *,
        slots: int | None = None,
        modes: Mapping[str, str] | None = None,
        links: Mapping[str, float] | None = None,
        pin_cap: int | None = None,
        pinner: HostPinner | None = None,
    ) -> None:
        """Take over from the placed model's own hooks, and from the executor that it has (`placed.executor`), if any.

        Args:
            placed: a placed model.
            slots: staging slots on the compute device; default: the plan's, else two, and one more for each source after
                the first.
            modes: "stream", "migrate" or "auto" by donor; default: as the plan says.
            links: GB/s from each donor to the compute device; default: as measured (`distorch links`).
            pin_cap: bytes of host memory to pin at most; default: three quarters of it, 0.4 on Windows.
            pinner: pins the host's slabs, instead of `pin_cap`.

        Raises:
            torch.OutOfMemoryError: a donor has no room for one group more, or the compute device none for the slots;
                the placed model then runs as before, module by module where it had an executor.
            ValueError: fewer than one slot, or an unknown mode.
        """
        self.placed = placed
        self._handle: Any = None
        self._input_notes: list[str] = []
        wanted = dict(modes) if modes is not None else dict(getattr(placed.plan, "modes", {}))
        for device, mode in wanted.items():
            if mode not in ("auto", "stream", "migrate"):
                raise ValueError(f"mode of {device} must be auto, stream or migrate, not {mode!r}")
        if placed.executor is not None:  # two would swap the same tensors
            placed.executor.detach()
        specs, resident = self._choose()
        if pinner is None and pin_cap is not None:
            pinner = HostPinner(registrar_for(placed.compute_device), pin_cap)
        self.engine = GroupEngine(
            specs,
            placed.compute_device,
            placed.replace,
            modes=wanted,
            links=host_links(placed.compute) if links is None else links,
            slots=getattr(placed.plan, "slots", 0) or None if slots is None else slots,
            pinner=pinner,
            resident=resident if specs else {},
            changed=self._lend_the_rest,
        )
        placed.executor = self
        if not specs:
            self._input_notes.append("no layer group has weights elsewhere: nothing to stream")
            return
        self._handle = placed.model.register_forward_pre_hook(self._begin)
        self._end_handle = placed.model.register_forward_hook(self._end, always_call=True)
        placed.on_unload(self._close)
        placed.on_repatch(self._repatched)

    # What it does

    @property
    def notes(self) -> list[str]:
        """What is not run group by group, and why."""
        return [*self._input_notes, *self.engine.notes]

    def report(self) -> list[str]:
        """Say in lines how the groups run."""
        lines = [
            f"{len(self.streamed)} groups are streamed, {self.bytes_per_step / 2**20:.2f} MB a step"
        ]
        lines += [f"{len(names)} groups run on {donor}" for donor, names in self.migrated.items()]
        return [*lines, *self.notes]

    @property
    def streamed(self) -> list[str]:
        """Names of the streamed groups."""
        return self.engine.streamed

    @property
    def migrated(self) -> dict[str, list[str]]:
        """Names of the groups that run on a donor, by donor. Groups migrate from the second step on."""
        return self.engine.migrated

    @property
    def slot_bytes(self) -> int:
        """Bytes of one staging slot: the largest group that is streamed."""
        return self.engine.slot_bytes

    @property
    def bytes_per_step(self) -> int:
        """Bytes that one step copies: all streamed groups, or none once they all fit into the slots."""
        return self.engine.bytes_per_step

    @property
    def bytes_copied(self) -> int:
        """Bytes of weights copied to the compute device since the executor was made."""
        return self.engine.bytes_copied

    @property
    def counters(self) -> dict[str, int]:
        """Copies started, of them ahead of use and on demand, and those overwritten unread."""
        return self.engine.counters

    @property
    def group_seconds(self) -> dict[str, float]:
        """Seconds that each layer group computes in a step, but of migrated ones; {} until two steps were measured.

        To be given to `distorch.place_string` the next time: it then spreads the groups by their compute time.
        """
        return self.engine.profile.group_seconds

    @property
    def often(self) -> list[str]:
        """Layer groups that are come back to within a step, so that each step brings them several times.

        To be given to `distorch.place_string` the next time: they come to the compute device first. [] until two steps
        were measured.
        """
        return self.engine.profile.often

    @property
    def decision(self) -> ModeChoice | None:
        """What was chosen after the measured steps; None until then."""
        return self.engine.decision

    def _choose(self) -> tuple[list[GroupSpec], dict[str, nn.Module]]:
        placed = self.placed
        blocks: dict[str, list[ModelBlock]] = {}
        outside = 0
        for block in placed.inventory.blocks:
            if block.group:
                blocks.setdefault(block.group, []).append(block)
            elif placed.assignment[block.name] != placed.compute:
                outside += block.bytes
        specs, resident = [], {}
        for name, members in blocks.items():
            spec, left_out = self._spec(name, members)
            outside += left_out
            if spec.away:
                specs.append(spec)
            else:
                resident[name] = spec.module
        if outside:
            self._input_notes.append(
                f"{outside / 2**20:.2f} MB are brought module by module: outside of layer groups, tied "
                "or of a type that cannot be made from its bytes"
            )
        return specs, resident

    def _spec(self, name: str, members: list[ModelBlock]) -> tuple[GroupSpec, int]:
        placed = self.placed
        away: list[TensorRef] = []
        here: list[TensorRef] = []
        left_out = 0
        donors: set[str] = set()
        for block in members:
            device = placed.assignment[block.name]
            if device == placed.compute:
                here += block.tensors
                if not block.pinned:
                    donors.add(device)  # part of the group stays: it cannot run elsewhere
            elif block.tied or not all(can_rebuild(ref.get()) for ref in block.tensors):
                left_out += block.bytes
                donors.add("")
            else:
                away += block.tensors
                donors.add(device)
        donor = donors.pop() if len(donors) == 1 else ""
        module = placed.groups[name]
        return GroupSpec(name, module, tuple(away), tuple(here), donor), left_out

    def _begin(self, *_: Any) -> None:
        self.engine.begin_step()

    def _end(self, _module: nn.Module, _args: Any, output: Any) -> Any:
        self.engine.finish_step(failed=output is None)
        return map_tensors(output, resolve)

    def _repatched(self, _: PlacedModel) -> None:
        self.engine.rebuild()

    def _lend_the_rest(self) -> None:
        """Let go of the hooks of modules whose group brings the weights."""
        placed, covered = self.placed, self.engine.covered
        placed.attach_hooks(
            skip={
                b.name
                for b in placed.inventory.blocks
                if any((id(ref.table), ref.name) in covered for ref in b.tensors)
            }
        )

    def recover(self) -> None:
        """Put the stored tensors back where a run was cut off by what torch's hooks do not see (KeyboardInterrupt).

        Done by itself before the next run; to be called only while the model does not run.
        """
        self.engine.recover()
        self.placed.recover()

    def _close(self, _: PlacedModel | None = None) -> None:
        self.engine.close()
        self._handle.remove()
        self._end_handle.remove()
        self._handle = None
        if self.placed.executor is self:
            self.placed.executor = None
        self.placed.forget(self._close)
        self.placed.forget(self._repatched)

    def detach(self) -> None:
        """Give the slots back and let the placed model bring its weights module by module again."""
        if self._handle is None:
            if self.placed.executor is self:
                self.placed.executor = None
            return
        self._close()
        self.placed.attach_hooks()
