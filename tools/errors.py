#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes docs/errors.md: every message of an error in the sources, what raises it, and which test asks for it.

    tools/errors.py            writes the page
    tools/errors.py --check    fails where the page is not what the sources say, or no test asks for a message

What the code puts in stands as `…`. A test asks for a message when one of its strings has a piece of it: tests of this
project compare messages, so one that does not occur, or occurs with other words, fails.
"""

from __future__ import annotations

import argparse
import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "errors.md"
SOURCES = ("allocation", "distorch", "bindings", "patches", "nodes")
HOLE = "…"
ENOUGH = 16  # characters that tell a message from others
# These are seen by nobody: what was tried is tried in another way, or another error is raised in their place.
INTERNAL = {"no room for slots", "the backend raised", "expected fewer devices"}
HEAD = """# Errors

Every message that DisTorch raises, made by `tools/errors.py` from the sources; {count} of them, each asked for by a test
(`make errors` fails where one is not). `…` stands for what is put in. In Python an `InvalidArgument` of the core is a
ValueError, a `ResourceExhausted` a MemoryError (on a device torch.OutOfMemoryError), and everything else a RuntimeError.

An error about memory names the device, what was asked, what is free, and one thing to do. Those that torch raises itself
pass through with torch's own words, which name the first three. "Asked for by a test" means that a test's text holds a
piece of the message.
"""
PARTS = {
    "allocation/": "Allocation strings and plans",
    "distorch/device/": "Devices and the system",
    "distorch/transfer/": "Copies between devices",
    "distorch/execution/": "Streaming",
    "distorch/placement/": "Placing",
    "distorch/telemetry/": "Files, logs and samples",
    "distorch/": "The C++ library, the rest",
    "bindings/distorch/tools/": "Programs: the command line, the monitor, end-to-end runs, the doctor",
    "bindings/distorch/": "The Python package",
    "bindings/": "The bindings",
    "patches/": "The pack in ComfyUI",
    "nodes/": "Nodes",
}

STRING = r'"(?:\\.|[^"\\\n])*"'
TOKEN = re.compile(rf"//[^\n]*|/\*.*?\*/|{STRING}|'(?:\\.|[^'\\\n])*'|\w+|[^\s\w]", re.DOTALL)
RAISES = re.compile(
    r"absl::(?P<status>\w+)Error\(|throw (?:\w+::)*(?P<thrown>\w+)\(|PyErr_SetString\((?:PyExc_(?P<set>\w+)),"
    r"|\b(?:return |in\.|in->)(?P<refused>Fail|FailHere|Refuse)\(|failure(?:\.|->)(?P<plan>problem) =",
)
KINDS = {
    "Fail": "InvalidArgument",
    "FailHere": "InvalidArgument",
    "Refuse": "InvalidArgument",
    "problem": "ResourceExhausted",
    "invalid_argument": "ValueError",
    "value_error": "ValueError",
    "index_error": "IndexError",
    "runtime_error": "RuntimeError",
    "_explain": "LoadError",
    "_ERRORS.get(kind, RuntimeError)": "ValueError, MemoryError or RuntimeError",
}


@dataclass(frozen=True, order=True)
class Message:
    """What is raised in one place."""

    file: str
    line: int
    kind: str
    text: str

    @property
    def pieces(self) -> list[str]:
        """What is always the same in it."""
        return [
            piece.strip(" .,:;()'\"") for piece in re.split(rf"{HOLE}|\n|; expected ", self.text)
        ]


def unescaped(literal: str) -> str:
    """Return what a string of C++ says."""
    return re.sub(r"\\(.)", lambda m: {"n": "\n", "t": "\t"}.get(m[1], m[1]), literal[1:-1])


def cc_text(code: str) -> str:
    """Return the strings of some C++, with a hole for what stands between them."""
    out, hole = "", False
    for token in TOKEN.findall(re.sub(r"\b(absl|std)::\w+", "", code)):
        if token.startswith('"'):
            out += HOLE * hole + unescaped(token)
            hole = False
        elif token not in ("(", ")", ","):
            hole = True
    return (out + HOLE * hole) if out else ""


def closing(code: str, at: int, ends: str = ")") -> int:
    """Return where what begins at `at` ends: at a bracket that was not opened, or at one of `ends` outside of all."""
    depth = 0
    for found in TOKEN.finditer(code, at):
        token = found.group()
        if depth == 0 and token in ends:
            return found.start()
        depth += (token in "([{") - (token in ")]}")
    raise ValueError(f"no end: {code[at : at + 60]}")


def named(code: str, at: int, name: str) -> str:
    """Return the text that a variable was given before `at`."""
    begin = max(code.rfind("\n}", 0, at), 0)
    wanted = re.compile(rf"\b{name}(?: =|\()|StrAppend\(\s*&{name},")
    texts = [
        cc_text(code[m.end() : closing(code, m.end(), ";)")])
        for m in wanted.finditer(code, begin, at)
    ]
    return HOLE.join(text for text in texts if text)


def cc_messages(file: str, code: str) -> Iterator[Message]:
    """Yield the messages of a C++ source."""
    for found in RAISES.finditer(code):
        line_begin = code.rfind("\n", 0, found.start()) + 1
        if "//" in code[line_begin : found.start()]:
            continue
        word = next(value for value in found.groups() if value)
        end = closing(code, found.end(), ";" if word == "problem" else ")")
        arguments = code[found.end() : end]
        if word in ("Fail", "FailHere"):
            first = closing(arguments + ")", 0, ",)")
            text = cc_text(arguments[:first])
            rest = arguments[first + 1 :]
            expected = cc_text(rest[: closing(rest + ")", 0, ",)")]) if rest.strip() else ""
            text = f"{HOLE} where {text} should be" if word == "FailHere" and text else text
            text = f"{text}; expected {expected}" if expected.strip(HOLE) else text
        elif re.fullmatch(r"\s*\w+\s*", arguments):
            text = named(code, found.start(), arguments.strip())
        else:
            text = cc_text(arguments)
        if text.strip(HOLE + " ") and text not in INTERNAL:
            kind = KINDS.get(word, word)
            yield Message(file, code.count("\n", 0, found.start()) + 1, kind, text)


def py_text(node: ast.expr) -> str:
    """Return the text of an expression, with a hole for what is put in."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(
            v.value if isinstance(v, ast.Constant) and isinstance(v.value, str) else HOLE
            for v in node.values
        )
    if isinstance(node, ast.BinOp):
        return py_text(node.left) + (py_text(node.right) or HOLE)
    return ""


def py_messages(file: str, code: str) -> Iterator[Message]:
    """Yield the messages of a Python source."""
    for node in ast.walk(ast.parse(code)):
        if not isinstance(node, ast.Raise) or not isinstance(node.exc, ast.Call):
            continue
        texts = [
            text for argument in node.exc.args if (text := py_text(argument)).strip(HOLE + " ")
        ]
        kind = KINDS.get(ast.unparse(node.exc.func), ast.unparse(node.exc.func))
        if texts and kind != "AttributeError":  # those are asked for by Python itself
            yield Message(file, node.lineno, kind, max(texts, key=len))


def tracked(*patterns: str) -> list[str]:
    """Return the project's files that match."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [name for name in names.splitlines() if (ROOT / name).is_file()]


def messages() -> list[Message]:
    """Return all messages, by file and line."""
    found: list[Message] = []
    for name in tracked(*SOURCES):
        code = (
            (ROOT / name).read_text(encoding="utf-8") if name.endswith((".cc", ".h", ".py")) else ""
        )
        read = py_messages if name.endswith(".py") else cc_messages
        found += (
            {(m.kind, m.text): m for m in reversed([*read(name, code)])}.values() if code else []
        )
    return sorted(found)


def asked() -> list[str]:
    """Return every string of the tests, regular expressions taken apart."""
    found: set[str] = set()  # some of them regular expressions
    plain: set[str] = set()
    for name in tracked("tests"):
        if name.endswith(".py"):
            nodes = list(ast.walk(ast.parse((ROOT / name).read_text(encoding="utf-8"))))
            said = {
                id(node.value) for node in nodes if isinstance(node, ast.Expr)
            }  # to people alone
            for node in nodes:
                if isinstance(node, (ast.Constant, ast.JoinedStr)) and id(node) not in said:
                    found.update(py_text(node).split(HOLE))
        elif name.endswith((".cc", ".h")):
            code = (ROOT / name).read_text(encoding="utf-8")
            for row in re.finditer(rf"{STRING}(?:\s*{STRING})*", code):
                plain.add("".join(unescaped(s) for s in re.findall(STRING, row.group())))
    pieces = {
        p
        for text in found
        for p in re.split(r"\.[*+]\??|\[[^]]*\][+*]?|\\d\+?|\(\?:|[|^$\n]", text)
    }
    return sorted(plain | found | {re.sub(r"\\(\W)", r"\1", p) for p in pieces if p.strip()})


def is_asked(message: Message, strings: str) -> bool:
    """Whether a test asks for a message: a piece of it, of so many characters that no other has it, is in its strings."""
    longest = max(message.pieces, key=len)
    pieces = [piece for piece in message.pieces if len(piece) >= ENOUGH] or [longest]
    windows = (
        piece[i : i + ENOUGH] for piece in pieces for i in range(max(1, len(piece) - ENOUGH + 1))
    )
    return any(window in strings for window in windows)


def page(found: list[Message]) -> str:
    """Return the text of the page."""
    lines = [HEAD.format(count=len(found))]
    for folder, title in PARTS.items():
        part = (
            [m for m in found if next(p for p in PARTS if m.file.startswith(p)) == folder]
            if folder
            else []
        )
        if not part:
            continue
        lines += [f"## {title}", "", "| raised | message | by |", "|---|---|---|"]
        for m in part:
            text = m.text.strip().replace("\n", " ").replace("|", "\\|").replace("`", "'")
            lines.append(f"| {m.kind} | {text} | `{m.file}` |")
        lines.append("")
    return "\n".join(lines)


def main() -> int:
    """Run it; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--check", action="store_true", help="write nothing, compare")
    check = parser.parse_args().check
    found = messages()
    strings = "\0".join(asked())
    nobody = [m for m in found if not is_asked(m, strings)]
    for m in nobody:
        print(f"no test asks for {m.file}:{m.line}: {m.kind}: {m.text!r}")
    text = page(found)
    if not check:
        PAGE.write_text(text, encoding="utf-8")
    elif not PAGE.exists() or PAGE.read_text(encoding="utf-8") != text:
        print(f"{PAGE.relative_to(ROOT)} is not what the sources say: run tools/errors.py")
        return 1
    return 1 if nobody else 0


if __name__ == "__main__":
    sys.exit(main())
