# SPDX-License-Identifier: Apache-2.0
"""The stub of the compiled core says what the core has: names, parameters, defaults, and what can be set."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import distorch
from distorch import _load

STUB = Path(distorch.__file__).parent.resolve() / "_C.pyi"
# Name -> parameters as "name", "name=default", "*"; None for a property, "set" for one that can be set.
Members = dict[str, "list[str] | str | None"]


def of_stub() -> dict[str, Members]:
    """Return the members of each class; "" for the module."""
    found: dict[str, Members] = {"": {}}
    for node in ast.parse(STUB.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef):
            if not node.name.startswith("_"):
                found[node.name] = {}
                members(node.body, found[node.name])
        else:
            members([node], found[""])
    return found


def members(body: list[ast.stmt], into: Members) -> None:
    for node in body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            into[node.target.id] = "set"
        elif isinstance(node, ast.FunctionDef):
            is_property = any(ast.unparse(d) == "property" for d in node.decorator_list)
            into[node.name] = None if is_property else parameters(node.args)


def parameters(arguments: ast.arguments) -> list[str]:
    names = [a.arg for a in arguments.args]
    defaults = [None] * (len(names) - len(arguments.defaults)) + list(arguments.defaults)
    shown = [
        name if default is None else f"{name}={ast.unparse(default)}"
        for name, default in zip(names, defaults, strict=True)
        if name != "self"
    ]
    keywords = [a.arg for a in arguments.kwonlyargs]
    return [*shown, "*", *keywords] if keywords else shown


def of_core() -> dict[str, Members]:
    core = _load.core()
    found: dict[str, Members] = {"": {}}
    for name, value in vars(core).items():
        if isinstance(value, type):
            own = {key: member(item) for key, item in vars(value).items() if is_ours(key, item)}
            found[name] = own
        elif not name.startswith("__"):
            found[""][name] = member(value) if callable(value) else "set"
    return found


def is_ours(name: str, value: object) -> bool:
    if name == "__hash__":
        return value is not None
    kept = ("__init__", "__eq__", "__len__")
    return (not name.startswith("_") or name in kept) and "accurate signature" not in str(
        value.__doc__
    )


def member(value: object) -> list[str] | str | None:
    if isinstance(value, property):
        return "set" if value.fset else None
    if isinstance(value, staticmethod):
        value = value.__func__
    signature = str(value.__doc__).splitlines()[0]
    inside = signature[signature.index("(") + 1 : signature.rindex(")")]
    # Types have brackets and commas of their own: only what is outside of them separates parameters.
    while "[" in inside:
        inside = re.sub(r"\[[^][]*\]", "", inside)
    shown = []
    for part in inside.split(", "):
        name, _, rest = part.partition(":")
        default = rest.partition(" = ")[2]
        if name and name != "self":
            shown.append(f"{name}={default}" if default else name)
    return shown


def test_the_stub_names_what_the_core_has() -> None:
    stub, core = of_stub(), of_core()
    assert sorted(stub) == sorted(core), f"classes: bring {STUB.name} up to date"
    for name, expected in core.items():
        listed = stub[name]
        if "__eq__" in expected:  # typed as Python wants it: any object
            expected["__eq__"] = listed.get("__eq__")
        assert listed == expected, f"{name or 'functions'}: bring {STUB.name} up to date"


def test_a_wrong_stub_would_be_noticed() -> None:
    core = of_core()
    assert core["MemorySampler"]["push"] == [
        *("device", "*", "total", "used", "allocated", "reserved", "reserved_peak")
    ]
    assert core["Block"]["__init__"][2] == "group=''"
    assert core["NvmlDevice"]["free"] == "set"
    assert core["Plan"]["totals"] is None
    assert core[""]["host_memory"] == []
