# SPDX-License-Identifier: Apache-2.0
"""The pack's nodes where the package behind them is missing or cannot run: same ids, inputs and outputs, no function.

Ids that vanish would cost a saved workflow its settings, and its user would not learn why. So the real classes are
made, with what they import from `patches` and `distorch` left empty, and each then says in one sentence what is
missing: as its description, when a workflow with it is queued, and when it runs.
"""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.machinery
import sys
import types
from collections.abc import Iterator
from typing import Any

_PACK = __name__.removesuffix(".nodes.missing")


class _Empty(types.ModuleType):
    """A module, or whatever a module would have given."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        given = _GIVEN.get((self.__name__.rpartition(".")[2], name))
        return _Empty(f"{self.__name__}.{name}") if given is None else given

    def __call__(self, *_args: Any, **_kwargs: Any) -> Any:
        return self

    def __iter__(self) -> Iterator[Any]:
        return iter(())


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds an empty module for everything in `patches` and in `distorch`."""

    def find_spec(self, name: str, *_where: Any) -> importlib.machinery.ModuleSpec | None:
        if not _is_behind(name):
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _Empty(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """There is nothing to execute."""


def _is_behind(name: str) -> bool:
    return f"{name}.".startswith((f"{_PACK}.patches.", "distorch."))


@contextlib.contextmanager
def _without() -> Iterator[None]:
    """The package and `patches` are empty for imports in the block; what of the package was there comes back."""
    nodes = [n for n in sys.modules if n.startswith(f"{_PACK}.nodes.") and n != __name__]
    before = {name: sys.modules.pop(name) for name in [*filter(_is_behind, sys.modules), *nodes]}
    for name in nodes:  # `from . import x` takes what hangs on the package
        vars(sys.modules[f"{_PACK}.nodes"]).pop(name.rpartition(".")[2], None)
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [*filter(_is_behind, sys.modules)]:
            del sys.modules[name]
        sys.modules.update({n: m for n, m in before.items() if not n.startswith(f"{_PACK}.")})


def _devices() -> list[str]:
    """ComfyUI's device beside "cpu": enough for a widget, which shows a saved name that is not among them as well."""
    import comfy.model_management as mm

    own = str(mm.get_torch_device())
    return ["cpu"] if own == "cpu" else ["cpu", own]


#: What the nodes' inputs are made of, by the module's last name and its own.
_GIVEN: dict[tuple[str, str], Any] = {
    ("devices", "computing"): _devices,
    ("devices", "names"): _devices,
    ("devices", "first_of"): lambda there: there[-1],
    ("preview", "files"): list,
    ("unload_now", "CHOICES"): ("this model", "all others", "everything"),
}


def mappings(why: str) -> tuple[dict[str, type], dict[str, str]]:
    """As `nodes.mappings`; every node says `why` it cannot run. Nothing of ComfyUI is wrapped."""
    from . import named

    with _without():
        classes, titles = named()
    return {node_id: _stand_in(cls, why) for node_id, cls in classes.items()}, titles


def _stand_in(cls: Any, why: str) -> type:
    def refuse(_cls: type, **_inputs: Any) -> str:
        return why

    def run(_self: Any, **_inputs: Any) -> None:
        raise RuntimeError(why)

    names = {"VALIDATE_INPUTS": classmethod(refuse), cls.FUNCTION: run, "DESCRIPTION": why}
    if hasattr(cls, "IS_CHANGED"):
        names["IS_CHANGED"] = classmethod(lambda _cls, **_inputs: float("nan"))
    return type(cls.__name__, (cls,), names)
