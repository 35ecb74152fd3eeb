# SPDX-License-Identifier: Apache-2.0
"""The groups that an engine runs now: packed, streamed or migrated, with its hooks on them, and what is known of them.

`distorch.run.groups` decides between two steps which groups these are.
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from distorch._load import core
from distorch.allocation import ModeChoice
from distorch.devices import name_of
from distorch.parts import version
from distorch.run.byte_streaming import ByteStreamer
from distorch.run.cuda import cuda_device
from distorch.run.migration import MigratedGroup, Migrator
from distorch.run.pinning import HostPinner, registrar_for
from distorch.run.profile import StepProfile
from distorch.run.specs import ActiveGroup, GroupSpec, Store, pack_group
from distorch.run.streaming import Streamer, slots_for
from distorch.run.torch_streaming import TorchStreamer
from distorch.slabs import layout, slab_of, slabs_of


class AttachedGroups:
    """See the module. One thread at a time. Attributes and arguments: see `distorch.run.groups.GroupEngine`."""

    def __init__(
        self,
        specs: Sequence[GroupSpec],
        compute: torch.device,
        store: Store,
        *,
        modes: Mapping[str, str] | None = None,
        links: Mapping[str, float] | None = None,
        slots: int | None = None,
        pinner: HostPinner | None = None,
        resident: Mapping[str, nn.Module] | None = None,
        changed: Callable[[], None] | None = None,
        may_migrate: Callable[[Any, Any], bool] | None = None,
        may_allocate: Callable[[], bool] | None = None,
        objects: bool = True,
    ) -> None:
        """Pack the groups and attach; see `GroupEngine`."""
        if slots is not None and slots < 1:
            raise ValueError(f"slots must be at least 1, not {slots}")
        self.compute = compute
        self._slots_wanted = slots
        self.slots = slots or 2
        self.modes = dict(modes or {})
        self.links = dict(links or {})
        self.notes: list[str] = []
        self.steps = 0
        self.profile = StepProfile(compute)
        self.decision: ModeChoice | None = None
        self._store = store
        self._own_pinner = pinner is None
        self._pinner = pinner or HostPinner(registrar_for(compute))
        self._changed = changed
        self._may_migrate = may_migrate
        self._may_allocate = may_allocate
        self._out_of_date = False
        self._objects = objects
        self._resident = {n: weakref.ref(m) for n, m in (resident or {}).items()}
        self._specs = list(specs)
        self._called: set[str] = set()
        self._groups: list[ActiveGroup] = []
        self._streamer: Streamer | None = None
        self._migrators: dict[str, Migrator] = {}
        self._handles: list[Any] = []
        self._copied_before = 0
        self._elsewhere: list[int] = []  # of the streamed groups: those not on the host alone
        self._streamed_versions = core().TensorVersions([])
        self._companion_versions: list[int] = []
        self._in_pass = False
        self._settled = False  # every group has been called and runs as it is to
        self._attach()

    # What it does

    @property
    def streamed(self) -> list[str]:
        """Names of the streamed groups."""
        return [group.spec.name for group in self._groups if group.index >= 0]

    @property
    def migrated(self) -> dict[str, list[str]]:
        """Names of the groups that run on a donor, by donor."""
        found: dict[str, list[str]] = defaultdict(list)
        for group in self._groups:
            if group.migrator is not None:
                found[group.spec.donor].append(group.spec.name)
        return dict(found)

    @property
    def called(self) -> dict[str, nn.Module]:
        """The groups that were called as modules so far: nobody else has to bring their weights."""
        return {s.name: s.module for s in self._specs if s.name in self._called}

    @property
    def covered(self) -> set[tuple[int, str]]:
        """The tensors (id of the module's table, name) whose weights those groups bring."""
        return {
            (id(ref.table), ref.name)
            for spec in self._specs
            if spec.name in self._called
            for ref in spec.away
        }

    @property
    def tensors(self) -> set[tuple[int, str]]:
        """All tensors of its groups that are elsewhere, as in `covered`."""
        return {(id(ref.table), ref.name) for spec in self._specs for ref in spec.away}

    @property
    def slot_bytes(self) -> int:
        """Bytes of one staging slot: the largest group that is streamed."""
        return self._streamer.slot_bytes if self._streamer else 0

    @property
    def staging_bytes(self) -> int:
        """Bytes of all staging slots together."""
        return self.slot_bytes * min(self.slots, len(self.streamed))

    @property
    def bytes_per_step(self) -> int:
        """Bytes that one step copies: all streamed groups, or none once they all fit into the slots."""
        groups = self._streamer.groups if self._streamer else []
        return sum(group.bytes for group in groups) if len(groups) > self.slots else 0

    @property
    def bytes_copied(self) -> int:
        """Bytes of weights copied to the compute device since the engine was made."""
        return self._copied_before + (self._streamer.bytes_copied if self._streamer else 0)

    @property
    def counters(self) -> dict[str, int]:
        """Copies started, of them ahead of use and on demand, and those overwritten unread; since the last change."""
        if self._streamer is None:
            return {"copies": 0, "ahead": 0, "on_demand": 0, "wasted": 0}
        return self._streamer.counters

    @property
    def crossings(self) -> dict[str, tuple[int, int]]:
        """Bytes of activations sent to each computing donor and fetched from it, since the last change."""
        return {d: (m.bytes_sent, m.bytes_returned) for d, m in self._migrators.items()}

    # Setting up

    def _migrates(self, spec: GroupSpec) -> bool:
        """Whether the group runs on its donor now: it has to be known to be called as a module."""
        return (
            bool(spec.donor)
            and self.modes.get(spec.donor) == "migrate"
            and spec.name in self._called
        )

    def _attach(self) -> None:
        self._groups = [ActiveGroup(spec) for spec in self._specs]
        try:
            streams = [g for g in self._groups if not self._migrates(g.spec)]
            if streams:
                self._make_streamer(streams)
            for group in self._groups:
                if group.index < 0:
                    self._make_migrated(group)
        except BaseException:
            self._drop()
            raise
        self._hook()
        self._streamed_versions = core().TensorVersions(
            [
                [t for _, _, t in g.refs if not t.is_inference()]
                for g in self._groups
                if g.index >= 0
            ]
        )
        self._stored_written()

    def _make_streamer(self, groups: list[ActiveGroup]) -> None:
        packed = []
        away = [ref.get() for group in groups for ref in group.spec.away]
        loose = [t for t in away if t.device.type == "cpu" and slab_of(t) is None]
        self._pinner.expect(layout(loose)[1])
        for index, group in enumerate(groups):
            packed.append(pack_group(group, self._store, self._pinner.allocate))
            group.index = index
        sources = {ref.get().device for group in groups for ref in group.spec.away}
        self.slots = self._slots_wanted or slots_for(sources)
        # Before others are pinned: what nobody streams any more counts against the cap.
        slabs = [slab for stream in packed for slab in slabs_of(stream.stored)]
        self._pinner.keep_only(slab for slab in slabs if slab.device.type == "cpu")
        cuda = cuda_device(self.compute)
        streamer: Streamer
        if cuda is None:
            streamer = TorchStreamer(packed, self.compute, self.slots)
        else:
            streamer = ByteStreamer(packed, self.compute, self.slots, self._pinner, cuda)
        for trouble in (self._pinner.trouble, streamer.trouble):
            if trouble and not any(trouble in note for note in self.notes):
                self.notes.append(f"not all of the host's part is pinned: {trouble}")
        self._elsewhere = [
            index
            for index, stream in enumerate(packed)
            if any(run.slab.device.type != "cpu" for run in stream.runs)
        ]
        for group, stream in zip(groups, packed, strict=True):
            group.swap = core().TensorSwap(group.refs, stream.views)
        self._streamer = streamer

    def _make_migrated(self, group: ActiveGroup) -> None:
        spec = group.spec
        if spec.donor not in self._migrators:
            self._migrators[spec.donor] = Migrator(
                torch.device(spec.donor), self.compute, objects=self._objects
            )
        group.migrator = self._migrators[spec.donor]
        others = [ref for ref in spec.here if name_of(ref.get().device) != spec.donor]
        group.group = MigratedGroup(spec.name, list(others))
        group.migrator.prepare(group.group)

    def _hook(self) -> None:
        """Put the hooks on the groups' modules."""
        raise NotImplementedError

    def _stored_written(self) -> bool:
        """Whether there are copies of what was written to: ahead, in slots, or those that migrated groups have.

        A copy that is still to come brings what was written. But from a device it would not wait for what that is given
        to do: what lies there is always asked.
        """
        before, self._companion_versions = (
            self._companion_versions,
            [
                version(ref.get())
                for g in (self._groups if self._migrators else ())
                for ref in (g.group.companions if g.group else ())
            ],
        )
        asked = self._elsewhere + self._streamer.in_slots() if self._streamer else []
        return self._streamed_versions.changed(asked) or self._companion_versions != before

    def _drop(self) -> None:
        self._settled = False
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        for group in self._groups:
            group.forget_touches()
        if self._streamer is not None:
            self._copied_before += self._streamer.bytes_copied
            self._streamer.close()
            self._streamer = None
        self._migrators.clear()
        self._groups, self._streamed_versions = [], core().TensorVersions([])
