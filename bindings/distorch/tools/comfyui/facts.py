# SPDX-License-Identifier: Apache-2.0
"""What a name in a ComfyUI is, read from its sources or seen in the running process."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol


@dataclasses.dataclass(frozen=True)
class Facts:
    """A function, or something else (`parameters` is None)."""

    parameters: tuple[str, ...] | None = None  # those that can be given by position
    defaults: int = 0  # how many of the last ones have a default
    more: bool = False  # takes *args
    coroutine: bool = False
    mentions: frozenset[str] = frozenset()  # names and words in the body
    opaque: bool = False  # compiled, or put there by another pack, which answers for it


class Tree(Protocol):
    """Where to look."""

    def has(self, module: str) -> bool:
        """Whether the module can be looked at."""

    def find(self, module: str, name: str) -> Facts | None:
        """What a name ("Class.method") is, None if it is not there."""


class Source:
    """A folder with ComfyUI's sources; nothing of it is imported."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._module = functools.cache(self._read)

    def has(self, module: str) -> bool:
        """Whether its file is there."""
        return self._path(module).is_file()

    def find(self, module: str, name: str) -> Facts | None:
        """See `Tree`; raises SyntaxError for a file that this Python cannot read."""
        nodes = self._module(module)
        for part in name.split(".")[:-1]:
            found = nodes.get(part)
            nodes = _names(found.body) if isinstance(found, ast.ClassDef) else {}
        node = nodes.get(name.rpartition(".")[2])
        return None if node is None else _facts_of_node(node)

    def _path(self, module: str) -> Path:
        return self.folder.joinpath(*module.split(".")).with_suffix(".py")

    def _read(self, module: str) -> dict[str, ast.stmt]:
        path = self._path(module)
        if not path.is_file():
            return {}
        return _names(ast.parse(path.read_bytes(), str(path)).body)


def _names(body: list[ast.stmt]) -> dict[str, ast.stmt]:
    """What a body defines, also under a condition; the last one counts."""
    found: dict[str, ast.stmt] = {}
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found[node.name] = node
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found.update({t.id: node for t in targets if isinstance(t, ast.Name)})
        elif isinstance(node, (ast.If, ast.Try)):
            handlers = [h.body for h in getattr(node, "handlers", [])]
            for part in (node.body, *handlers, node.orelse):
                found.update(_names(part))
    return found


def _facts_of_node(node: ast.stmt) -> Facts:
    if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return Facts()
    arguments = node.args
    return Facts(
        tuple(a.arg for a in (*arguments.posonlyargs, *arguments.args)),
        len(arguments.defaults),
        arguments.vararg is not None,
        isinstance(node, ast.AsyncFunctionDef),
        frozenset(_words(node)),
    )


def _words(node: ast.AST) -> Iterator[str]:
    for part in ast.walk(node):
        if isinstance(part, ast.Name):
            yield part.id
        elif isinstance(part, ast.Attribute):
            yield part.attr
        elif isinstance(part, ast.Constant) and isinstance(part.value, str):
            yield part.value


class Running:
    """The ComfyUI of this process, as far as its modules are loaded; nothing is imported, nothing is called."""

    def has(self, module: str) -> bool:
        """Whether the module is loaded."""
        return module in sys.modules

    def find(self, module: str, name: str) -> Facts | None:
        """See `Tree`. Of a function that packs have wrapped, what it was before that counts."""
        found: object = sys.modules[module]
        for part in name.split("."):
            found = getattr(found, part, _ABSENT)
            if found is _ABSENT:
                return None
        return _facts_of_object(found, module)


_ABSENT = object()


def _facts_of_object(found: object, module: str) -> Facts:
    if not callable(found) or isinstance(found, type):
        return Facts()
    function = inspect.unwrap(found)
    if not isinstance(function, types.FunctionType) or function.__module__ != module:
        return Facts((), opaque=True)
    code = function.__code__
    return Facts(
        code.co_varnames[: code.co_argcount],
        len(function.__defaults__ or ()),
        bool(code.co_flags & inspect.CO_VARARGS),
        inspect.iscoroutinefunction(function),
        frozenset(_words_of_code(code)),
    )


def _words_of_code(code: types.CodeType) -> Iterator[str]:
    yield from (*code.co_names, *code.co_varnames, *code.co_freevars, *code.co_cellvars)
    for constant in code.co_consts:
        if isinstance(constant, str):
            yield constant
        elif isinstance(constant, types.CodeType):
            yield from _words_of_code(constant)
