# SPDX-License-Identifier: Apache-2.0
"""Runs the layer groups of a model whose weights lie elsewhere: streamed ahead of use, or computed on their donor.

The engine knows modules and tensors, not who placed them: `distorch.StreamedExecutor` gives it those of a placed model,
the ComfyUI pack those of its own. It works by hooks on the groups' modules.

Every group is streamed at first, and the engine learns: in which order they come, and which are called as modules at
all. A group whose parent calls its children instead is split into them. From the second step on, groups come ahead of
their use, and those of a donor in the mode "migrate" run there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from operator import attrgetter
from typing import Any

import torch
from torch import nn

from distorch.printable import logger
from distorch.run.attached import AttachedGroups
from distorch.run.hooks import GroupHooks, touches
from distorch.run.profile import decide
from distorch.run.specs import ActiveGroup, GroupSpec, refresh

log = logger("distorch")

_depth = attrgetter("depth")


class GroupEngine(AttachedGroups):
    """See the module. One thread at a time.

    Attributes:
        notes: what is not run group by group, and why.
        steps: forward passes begun.
        profile: measured times and bytes.
        decision: which donors stream and which migrate, and the predicted step times; None until it is made.

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
        may_allocate: asked before slots are made anew while a step runs; when it says no, they are at the next step, and
            until then the owner has to bring the group's weights.
        may_migrate: asked with a group's arguments before it runs on its donor; when it says no, the group runs on
            the compute device this time, and its owner has to bring the weights.
        objects: whether a migrated group's arguments of any class are looked into for tensors (`map_tensors`).

    Raises:
        ValueError: fewer than one slot.
        torch.OutOfMemoryError: no room for one group more on a donor, or for the slots. The model runs as before.
    """

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
        if any(map(_depth, self._groups)):  # the last run was interrupted
            self.recover()
        if self._out_of_date:
            self.rebuild()
        if self.steps > 0:
            self._end_step()
        if self._stored_written():  # between two steps
            self.invalidate()
        self.steps += 1
        if self._streamer is not None:
            self._streamer.begin_step()
        for migrator in self._migrators.values():
            migrator.begin_step()
        self.profile.begin_step()
        if self.profile.complete and self.decision is None:
            self._decide()

    def finish_step(self, *, failed: bool = False) -> None:
        """The forward pass is over: donors let go of its inputs. Called by the owner where it knows."""
        self._in_pass = False
        for migrator in self._migrators.values():
            migrator.forget() if failed else migrator.begin_step()

    def _end_step(self) -> None:
        if self._settled:
            return
        seen = {group.spec.name for group in self._groups if group.step == self.steps}
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
        else:
            self._settled = all(group.spec.name in self._called for group in self._groups)
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
            self._specs, self.profile, self.modes, self.links, self.slots, self.compute
        )
        for line in self.decision.lines:
            log.debug("%s", line)  # whoever placed the model tells it with all else
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
        self._out_of_date = False
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
        if group.step == self.steps and not self._in_pass:
            self._begin_step()
            if not any(group is other for other in self._groups):
                return True
        group.step = self.steps
        return False

    def close(self) -> None:
        """Take the hooks off and give the slots back; the tensors stay packed. Does nothing the second time."""
        if any(group.depth for group in self._groups):
            self.recover()
        self._drop()
        self._specs = []
        if self._own_pinner:
            self._pinner.close()
