# SPDX-License-Identifier: Apache-2.0
"""What tools/mutants.py can change in a C++ source, and the source in which each change acts when it is asked to."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

# Text is read as these; comments and strings are no code.
TOKEN = re.compile(
    r"""//[^\n]*|/\*.*?\*/|\#[^\n]*|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|[A-Za-z_]\w*|\d[\w.']*"""
    r"""|<<|>>|->|::|\+\+|--|[-+*/%]=|[<>=!]=|&&|\|\||[^\s\w]""",
    re.DOTALL,
)
SWAPPED = {
    "<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "==", "&&": "||", "||": "&&",
    "+": "-", "-": "+", "*": "+", "/": "*", "%": "/", "+=": "-=", "-=": "+=",
}  # fmt: skip
UNARY = {"++": "--", "--": "++", "true": "false", "false": "true"}


@dataclass(frozen=True)
class Mutant:
    """One change: `text[begin:end]` becomes `new`."""

    file: str
    begin: int
    end: int
    new: str
    what: str
    row: int
    line: str  # the source line
    changed: str
    occurrence: int = 0  # of the same change in equal lines of the file

    @property
    def name(self) -> str:
        """What docs/reliability.md calls it: the same after lines elsewhere have moved."""
        times = f" ({self.occurrence + 1})" if self.occurrence else ""
        return f"{self.file}{times}: `{self.line}` → `{self.changed}`"


def tokens(text: str) -> list[tuple[int, str]]:
    """Return where each piece of code begins, and it; without comments, strings and directives."""
    return [
        (found.start(), found.group())
        for found in TOKEN.finditer(text)
        if not found.group().startswith(("//", "/*", "#", '"', "'"))
    ]


def changes(text: str) -> Iterator[tuple[int, int, str, str]]:
    """Yield (begin, end, new text, what it is) of every mutant of a C++ source."""
    code, depth = tokens(text), 0
    for i, (at, token) in enumerate(code):
        depth += (token == "(") - (token == ")")
        spaced = (
            text[at - 1 : at].isspace() and text[at + len(token) : at + len(token) + 1].isspace()
        )
        if token in SWAPPED and spaced:
            yield at, at + len(token), SWAPPED[token], "operator"
        elif token in UNARY:
            yield at, at + len(token), UNARY[token], "operator"
        elif re.fullmatch(r"\d+", token):
            yield at, at + len(token), str(int(token) + 1), "constant"
        elif token in ("if", "while") and code[i + 1][1] == "(":
            begin, end = _condition(code, i + 1)
            yield begin, end, f"!({text[begin:end]})", "condition"
        if i and depth == 0 and code[i - 1][1] in ";{})" and re.match(r"[A-Za-z_]|\+\+|--", token):
            end = _statement(code, i)
            if end is not None:
                yield at, end + 1, ";", "statement"


def _condition(code: list[tuple[int, str]], i: int) -> tuple[int, int]:
    """Return where what stands in the brackets from `i` begins and ends, without a declaration before it."""
    depth, begin = 0, code[i][0] + 1
    for at, token in code[i:]:
        depth += (token == "(") - (token == ")")
        if depth == 1 and token == ";":
            begin = at + 1
        if depth == 0:
            return begin, at
    raise ValueError("brackets do not match")


def _is_declaration(code: list[tuple[int, str]], i: int) -> bool:
    """Whether what begins at `i` is a type and a name."""
    while re.match(r"[A-Za-z_]", code[i][1]):
        if code[i + 1][1] != "::":
            return code[i + 1][1] in ("<", "&", "*") or bool(re.match(r"[A-Za-z_]", code[i + 1][1]))
        i += 2
    return False


def _statement(code: list[tuple[int, str]], i: int) -> int | None:
    """Return where the semicolon of a call, an assignment or a jump stands; None for anything else."""
    if code[i][1] in (
        "if",
        "for",
        "while",
        "switch",
        "case",
        "using",
        "namespace",
        "const",
        "else",
    ):
        return None
    first = code[i][1]
    if first not in ("return", "break", "continue", "++", "--") and _is_declaration(code, i):
        return None
    if first == "return" and code[i + 1][1] != ";":
        return None  # without it the function has no value
    for at, token in code[i:]:
        if token in "{}":
            return None
        if token == ";":
            return at
    return None


def mutants(file: str, text: str) -> list[Mutant]:
    """Return all mutants of a source."""
    found: list[Mutant] = []
    seen: dict[tuple[str, str], int] = {}
    for begin, end, new, what in changes(text):
        first = text.rfind("\n", 0, begin) + 1
        last = text.find("\n", end)
        line = " ".join(text[first:last].split())
        changed = " ".join((text[first:begin] + new + text[end:last]).split())
        occurrence = seen.get((line, changed), 0)
        seen[line, changed] = occurrence + 1
        row = text.count("\n", 0, begin) + 1
        found.append(Mutant(file, begin, end, new, what, row, line, changed, occurrence))
    return found


def spans(text: str) -> list[tuple[int, int, bool]]:
    """Return (begin, end, is statement) of what can stand there several times: conditions, first values, statements."""
    code, depth, found = tokens(text), 0, []
    for i, (_, token) in enumerate(code):
        depth += (token == "(") - (token == ")")
        if token in ("if", "while") and code[i + 1][1] == "(":
            found.append((*_condition(code, i + 1), False))
        elif token == "for" and code[i + 1][1] == "(" and (span := _for_condition(code, i + 1)):
            found.append((*span, False))
        elif depth or not i or not re.match(r"[A-Za-z_]|\+\+|--", token):
            continue
        elif code[i - 1][1] in (";", "{", "}", ")", "else"):
            found += _whole(code, i)
    return found


def _for_condition(code: list[tuple[int, str]], i: int) -> tuple[int, int] | None:
    """Return where the condition of a loop with a counter begins and ends."""
    depth, stops = 0, []
    for at, token in code[i:]:
        depth += (token == "(") - (token == ")")
        if depth == 1 and token == ";":
            stops.append(at)
        if depth == 0:
            break
    return (stops[0] + 1, stops[1]) if len(stops) == 2 else None


def _whole(code: list[tuple[int, str]], i: int) -> list[tuple[int, int, bool]]:
    """Return the statement that begins at `i`; of a declaration with `=` what comes behind that."""
    ends = next((j for j in range(i, len(code)) if code[j][1] in ";{}"), None)
    if ends is None or code[ends][1] != ";":
        return []
    end = code[ends][0]
    if code[i][1] == "return" or _statement(code, i) is not None:
        return [(code[i][0], end + 1, True)]
    if code[i][1] == "constexpr":
        return []
    values = [at for at, token in code[i:ends] if token == "="]
    return [(values[0] + 1, end, False)] if values else []


def with_mutants(text: str, numbered: dict[int, Mutant]) -> str:
    """Return a source in which each of these mutants acts when DISTORCH_MUTANT is its number."""
    out, last = "", 0
    for begin, end, is_statement in sorted(spans(text)):
        here = [(n, m) for n, m in numbered.items() if begin <= m.begin and m.end <= end]
        if not here or begin < last:
            continue
        whole = text[begin:end]
        for number, m in here:
            changed = text[begin : m.begin] + m.new + text[m.end : end]
            # On one line: those below keep their numbers, by which the compiler tells of it.
            changed = " ".join(re.sub(r"//[^\n]*", "", changed).split())
            acts = f"distorch_mutant == {number}"
            if is_statement:
                whole = f"if ({acts}) {{ {changed} }} else {{ {whole} }}"
            else:
                whole = f"({acts}) ? ({changed}) : ({whole})"
        out += text[last:begin] + (f"{{ {whole} }}" if is_statement else f" {whole}")
        last = end
    head = (
        '#include <cstdlib>\nstatic const int distorch_mutant = [] { const char* wanted = std::getenv("DISTORCH_MUTANT"); '
        "return wanted == nullptr ? 0 : std::atoi(wanted); }();\n#line 1\n"
    )
    return head + out + text[last:]
