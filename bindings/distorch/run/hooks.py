# SPDX-License-Identifier: Apache-2.0
"""The hooks of a `GroupEngine` on the model's modules: what happens before and after a group runs. A part of the engine.

Each pair is (enter, leave): `enter` returns None or (args, kwargs), `leave` None or the output.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from distorch.nested import map_tensors
from distorch.run.specs import ActiveGroup, refresh
from distorch.run.travelling import resolve

if TYPE_CHECKING:
    from distorch.run.groups import GroupEngine


# Whether torch.compile is tracing: its graph has to take the weights as they are stored.
compiling = torch.compiler.is_compiling
# By a name of its own: each group asks.
grads = torch.is_grad_enabled


class GroupHooks:
    """Makes them. One thread at a time."""

    def __init__(self, engine: GroupEngine) -> None:
        self._engine = engine

    def _again(self, group: ActiveGroup, args: Any, kwargs: Any) -> Any:
        """Enter the group's successor after a rebuild: its `leave` is on the module already."""
        for other in self._engine._groups:
            if other.spec.module is group.spec.module:
                hooks = self.streamed if other.index >= 0 else self.migrated
                return hooks(other)[0](other.spec.module, args, kwargs)
        return None

    def streamed(self, group: ActiveGroup) -> tuple[Any, Any]:
        """Return those of a group whose weights come to the compute device."""
        engine, streamer = self._engine, self._engine._streamer
        assert streamer is not None
        mine = group.spec._module  # a copy of the model has the hooks too, and other tensors
        index, recurrent, profile = group.index, bool(group.recurrent), engine.profile
        swap, stream, bring, let_go = group.swap, streamer.stream, streamer.enter, streamer.leave

        def enter(module: nn.Module, args: Any, kwargs: Any) -> Any:
            if compiling() or mine() is not module:
                return None
            if group.depth:
                group.depth += 1  # it calls itself: the weights are here
                return None
            if group.step != engine.steps:
                group.step = engine.steps  # for the first time in this step
            elif engine._starts_step(group):
                return self._again(group, args, kwargs)
            try:
                here = bring(index, stream(), swap)
            except BaseException:
                streamer.reset()
                raise
            if not here:  # somebody has replaced a tensor
                if engine._may_allocate is not None and not engine._may_allocate():
                    engine._out_of_date = True
                    return None
                engine.rebuild()
                return self._again(group, args, kwargs)
            group.depth = 1
            if grads():
                # The next group overwrites these weights: a backward pass is refused, not computed with others.
                torch.autograd.graph.increment_version(streamer.buffers)
            if recurrent:
                refresh(group)
            if profile.active:
                profile.entered(group.spec.name, args, kwargs)
            return _resolved(args, kwargs) if engine._migrators else None

        def leave(module: nn.Module, _args: Any, output: Any) -> None:
            if mine() is not module:
                return
            if group.depth != 1:
                group.depth = max(0, group.depth - 1)
                return
            group.depth = 0
            if profile.active:
                profile.left(group.spec.name, output)
            let_go(index, stream(), swap)
            if recurrent:
                refresh(group)

        return enter, leave

    def migrated(self, group: ActiveGroup) -> tuple[Any, Any]:
        """Return those of a group that runs on its donor."""
        engine, profile = self._engine, self._engine.profile
        migrator, migrated = group.migrator, group.group
        assert migrator is not None
        assert migrated is not None
        mine = group.spec._module

        def enter(module: nn.Module, args: Any, kwargs: Any) -> Any:
            if compiling() or mine() is not module:
                return None
            if group.depth:
                group.depth += 1
                return None
            if engine._starts_step(group):
                return self._again(group, args, kwargs)
            allowed = engine._may_migrate
            if allowed is not None and not allowed(args, kwargs):
                return _resolved(args, kwargs)
            moved = migrator.enter(migrated, args, kwargs)
            group.depth = 1
            if profile.active:
                profile.entered(group.spec.name, args, kwargs, migrator.donor)
            return moved

        def leave(module: nn.Module, _args: Any, output: Any) -> Any:
            if mine() is not module:
                return None
            if group.depth != 1:
                group.depth = max(0, group.depth - 1)
                return None
            group.depth = 0
            if profile.active:
                profile.left(group.spec.name, output, migrator.donor)
            return migrator.leave(migrated, output)

        return enter, leave

    def resident(self, name: str) -> tuple[Any, Any]:
        """Return those of a group whose weights are on the compute device: it is measured, and takes tensors home."""
        engine, profile = self._engine, self._engine.profile

        def enter(_module: nn.Module, args: Any, kwargs: Any) -> Any:
            if compiling():
                return None
            if profile.active:
                profile.entered(name, args, kwargs)
            return _resolved(args, kwargs) if engine._migrators else None

        def leave(_module: nn.Module, _args: Any, output: Any) -> None:
            if profile.active and not compiling():
                profile.left(name, output)

        return enter, leave


def _resolved(args: Any, kwargs: Any) -> Any:
    return map_tensors(args, resolve), map_tensors(kwargs, resolve)


def touches(group: ActiveGroup) -> Any:
    """Return a hook for the modules inside a group: it tells that they are called."""

    def touch(_module: nn.Module, _args: Any) -> None:
        if group.depth == 0:
            group.touched = True

    return touch
