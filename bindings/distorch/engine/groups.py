# SPDX-License-Identifier: Apache-2.0
"""Runs the layer groups of a model whose weights lie elsewhere: streamed ahead of use, or computed on their donor.

The engine knows modules and tensors, not who placed them: `distorch.StreamedExecutor` gives it those of a placed model,
the ComfyUI pack those of its own. It works by hooks on the groups' modules.

Every group is streamed at first, and the engine learns: in which order they come, and which are called as modules at
all. A group whose parent calls its children instead is split into them. From the second step on, groups come ahead of
their use, and those of a donor in the mode "migrate" run there.
"""

from __future__ import annotations

import logging
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from distorch._load import core
from distorch.devices import name_of
from distorch.engine.byte_streaming import ByteStreamer
from distorch.engine.choice import Decision, decide
from distorch.engine.cuda import cuda_device
from distorch.engine.hooks import GroupHooks, touches
from distorch.engine.migration import MigratedGroup, Migrator
from distorch.engine.pinning import HostPinner, registrar_for
from distorch.engine.profile import Profile
from distorch.engine.specs import ActiveGroup, GroupSpec, Store, pack_group, refresh
from distorch.engine.streaming import Streamer, slots_for
from distorch.engine.torch_streaming import TorchStreamer
from distorch.slabs import slabs_of

log = logging.getLogger("distorch")


class GroupEngine:
    """See the module. One thread at a time.

    Attributes:
        notes: what is not run group by group, and why.
        steps: forward passes begun.
        profile: measured times and bytes.
        decision: which donors stream and which migrate, and the predicted step times; None until it is made.
    """

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
        objects: bool = True,
    ) -> None:
        """Pack the groups and attach.

        Args:
            specs: groups with tensors elsewhere, in the order of the model.
            compute: the compute device.
            store: see Store.
            modes: "stream", "migrate" or "auto" (the default) for each donor.
            links: GB/s from each donor to the compute device, for "auto"; one that is missing is streamed.
            slots: staging slots on the compute device; one more than the streamed groups have sources by default.
            pinner: pins slabs on the host; the engine's own by default, closed with it.
            resident: groups that lie on the compute device: they take the outputs of migrated ones.
            changed: called between two steps when `called`, the way of a group or `decision` has changed.
            may_migrate: asked with a group's arguments before it runs on its donor; when it says no, the group runs on
                the compute device this time, and its owner has to bring the weights.
            objects: whether a migrated group's arguments of any class are looked into for tensors (`map_tensors`).

        Raises:
            ValueError: fewer than one slot.
            torch.OutOfMemoryError: no room for one group more on a donor, or for the slots. The model runs as before.
        """
        if slots is not None and slots < 1:
            raise ValueError(f"slots must be at least 1, not {slots}")
        self.compute = compute
        self._slots_wanted = slots
        self.slots = slots or 2
        self.modes = dict(modes or {})
        self.links = dict(links or {})
        self.notes: list[str] = []
        self.steps = 0
        self.profile = Profile(compute)
        self.decision: Decision | None = None
        self._store = store
        self._own_pinner = pinner is None
        self._pinner = pinner or HostPinner(registrar_for(compute))
        self._changed = changed
        self._may_migrate = may_migrate
        self._objects = objects
        self._resident = {n: weakref.ref(m) for n, m in (resident or {}).items()}
        self._specs = list(specs)
        self._called: set[str] = set()
        self._groups: list[ActiveGroup] = []
        self._streamer: Streamer | None = None
        self._migrators: dict[str, Migrator] = {}
        self._handles: list[Any] = []
        self._copied_before = 0
        self._versions: list[int] = []
        self._in_pass = False
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
        return {(id(cell.table), cell.name) for spec in self._specs for cell in spec.away}

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
        self._versions = self._stored_versions()

    def _make_streamer(self, groups: list[ActiveGroup]) -> None:
        packed = []
        for index, group in enumerate(groups):
            packed.append(pack_group(group, self._store))
            group.index = index
        sources = {cell.get().device for group in groups for cell in group.spec.away}
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
        for group, stream in zip(groups, packed, strict=True):
            group.swap = core().TensorSwap(group.cells, stream.views)
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
        def on(module: nn.Module, enter: Any, leave: Any) -> None:
            self._handles += [
                module.register_forward_pre_hook(enter, prepend=True, with_kwargs=True),
                module.register_forward_hook(leave, always_call=True),
            ]

        hooks = GroupHooks(self)
        for group in self._groups:
            if group.spec.name not in self._called:
                for module in {r.module for r in group.spec.away} - {group.spec.module}:
                    group.touches.append(
                        module.register_forward_pre_hook(touches(group), prepend=True)
                    )
            if group.index >= 0:
                on(group.spec.module, *hooks.streamed(group))
            else:
                on(group.spec.module, *hooks.migrated(group))
        for name, reference in self._resident.items():
            module = reference()
            if module is not None:
                on(module, *hooks.resident(name))

    # Steps

    def begin_step(self) -> None:
        """A forward pass begins, until `finish_step`. Called by the owner where it knows.

        Outside of that, the engine takes it for a new one when a group comes again.
        """
        self._in_pass = True
        self._begin_step()

    def _begin_step(self) -> None:
        if any(group.depth for group in self._groups):  # the last run was interrupted
            self.recover()
        if self.steps > 0:
            self._end_step()
        versions = self._stored_versions()
        if versions != self._versions:  # somebody wrote into stored weights between two steps
            self.invalidate()
            self._versions = versions
        self.steps += 1
        for group in self._groups:
            group.in_step = False
        if self._streamer is not None:
            self._streamer.begin_step()
        for migrator in self._migrators.values():
            migrator.begin_step()
        self.profile.begin_step()
        if self.profile.complete and self.decision is None:
            self._decide()

    def _stored_versions(self) -> list[int]:
        """Return the versions of what is streamed, and of what migrated groups have copies of."""
        stored = [tensor for group in self._groups for _, _, tensor in group.cells]
        stored += [ref.get() for g in self._groups if g.group for ref in g.group.companions]
        return [-1 if tensor.is_inference() else tensor._version for tensor in stored]

    def finish_step(self, *, failed: bool = False) -> None:
        """The forward pass is over: donors let go of its inputs. Called by the owner where it knows."""
        self._in_pass = False
        for migrator in self._migrators.values():
            migrator.forget() if failed else migrator.begin_step()

    def _end_step(self) -> None:
        seen = {group.spec.name for group in self._groups if group.in_step}
        fresh = seen - self._called
        self._called |= fresh
        for group in self._groups:
            if group.touches and group.spec.name in self._called:
                group.forget_touches()
        hollow = [g for g in self._groups if g.touched and g.spec.name not in self._called]
        if hollow:
            self._split({group.spec.name for group in hollow})
        elif any(self._migrates(group.spec) and group.index >= 0 for group in self._groups):
            self.rebuild(self._specs)
        if (fresh or hollow) and self._changed is not None:
            self._changed()

    def _split(self, names: set[str]) -> None:
        specs: list[GroupSpec] = []
        for spec in self._specs:
            parts = spec.children() if spec.name in names else [spec]
            specs += parts
            if not parts:
                self.notes.append(f"{spec.name}: its weights come module by module")
        self.rebuild(specs)

    def _decide(self) -> None:
        self.decision = decide(
            self._specs, self.profile, self.modes, self.links, self.slots, name_of(self.compute)
        )
        for line in self.decision.lines:
            log.info("%s", line)
        fresh = [d for d, m in self.decision.modes.items() if m == "migrate" != self.modes.get(d)]
        if fresh:
            self.set_modes(self.decision.modes)
        elif self._changed is not None:
            self._changed()

    def set_modes(self, modes: Mapping[str, str]) -> None:
        """Change how donors are used; between two steps. Raises torch.OutOfMemoryError as the constructor does."""
        self.modes.update(modes)
        self.rebuild(self._specs)
        if self._changed is not None:
            self._changed()

    def rebuild(self, specs: Iterable[GroupSpec] | None = None) -> bool:
        """Run these groups (the present ones by default) from now on, between two steps; returns whether it could.

        Also to be called when tensors of the groups were replaced. What is packed stays where it is. When there is no
        room, no group is run by the engine any more, which is logged, noted, and told by `changed`.
        """
        specs = self._specs if specs is None else list(specs)
        self._drop()
        self._specs = list(specs)
        try:
            self._attach()
        except (torch.OutOfMemoryError, RuntimeError) as error:
            self._specs = []
            note = f"the weights come module by module, which is slower: {error}"
            self.notes.append(note)
            log.warning("%s", note)
            if self._changed is not None:
                self._changed()
            return False
        if self._streamer is not None:
            self._streamer.begin_step()
        return True

    def invalidate(self) -> None:
        """Stored tensors were written in place: forget what was copied of them. Between two forward passes."""
        if self._streamer is not None:
            self._streamer.reset()
        for group in self._groups:
            if group.migrator is not None and group.group is not None:
                group.migrator.refresh(group.group)

    def recover(self) -> None:
        """Put the stored tensors back where a run was cut off by what torch's hooks do not see (KeyboardInterrupt).

        Done by itself before the next run; to be called only while the model does not run.
        """
        if not self._in_pass and not any(group.depth for group in self._groups):
            return
        for group in self._groups:
            if group.depth:
                group.depth = 0
                self._put_back(group)
        if self._streamer is not None:
            self._streamer.reset()
        self.finish_step(failed=True)
        self.profile.forget()

    def _put_back(self, group: ActiveGroup) -> None:
        if group.migrator is not None and group.group is not None:
            group.migrator.put_back(group.group)
            return
        group.swap.leave()
        if group.recurrent:
            refresh(group)

    def _starts_step(self, group: ActiveGroup) -> bool:
        """Note that the group comes; whether the engine was rebuilt on that occasion."""
        if self.steps == 0 or (group.in_step and not self._in_pass):
            self._begin_step()
            if not any(group is other for other in self._groups):
                return True
        group.in_step = True
        return False

    # Tearing down

    def _drop(self) -> None:
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
        self._groups = []

    def close(self) -> None:
        """Take the hooks off and give the slots back; the tensors stay packed. Does nothing the second time."""
        if any(group.depth for group in self._groups):
            self.recover()
        self._drop()
        self._specs = []
        if self._own_pinner:
            self._pinner.close()
