# SPDX-License-Identifier: Apache-2.0
"""Prints a header with its comments as Doxygen reads them; `docs/Doxyfile` calls it for each.

    python tools/doxygen_comments.py distorch/placement/placement.h

Comments in the headers are plain: what stands above a declaration, or behind it on its line, is about it, and the first
block is about the file. Lines that are indented further than the text are code.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

_WHOLE = re.compile(r"^(\s*)//(.*)$")
_BEHIND = re.compile(r'^(?P<code>(?:[^"/]|"(?:[^"\\]|\\.)*"|/(?!/))*\S)\s+// ?(?P<text>.*)$')
_SPECIAL = re.compile(r"[\\@<>#&$%]|::")


def _text(line: str) -> str:
    """Nothing in the comments is markup."""
    return _SPECIAL.sub(lambda found: "\\" + found[0], line)


def _block(comments: list[str], indent: str, *, of_file: bool) -> list[str]:
    """Comment lines without their slashes -> as Doxygen's; code between \\code and \\endcode."""
    lines = [r"\file"] if of_file else []
    inside = False
    for n, line in enumerate(comments):
        code = line.startswith("   ") or (
            inside
            and not line.strip()
            and any(c.startswith("   ") for c in comments[n + 1 : n + 2])
        )
        if code != inside:
            lines.append(r"\code{.unparsed}" if code else r"\endcode")
            inside = code
        lines.append(line[3:] if code else _text(line.removeprefix(" ")))
    if inside:
        lines.append(r"\endcode")
    return [f"{indent}/// {line}".rstrip() for line in lines]


def documented(text: str) -> str:
    """Return a header with Doxygen's comments."""
    result: list[str] = []
    comments: list[str] = []
    indent, seen_file, column = "", False, -1
    for line in text.splitlines():
        whole = _WHOLE.match(line)
        if whole and len(whole[1]) == column:  # goes on with what stands behind the line above
            result.append(f"{whole[1]}///< {_text(whole[2].strip())}")
            continue
        column = -1
        if whole:
            indent = whole[1]
            if "SPDX-License-Identifier" not in line:
                comments.append(whole[2])
            continue
        if comments:
            result += _block(comments, indent, of_file=not seen_file)
            seen_file, comments = True, []
        behind = None if line.startswith(("#", "}")) else _BEHIND.match(line)
        if behind:
            column = behind.start("text") - 3
            line = f"{behind['code']}  ///< {_text(behind['text'])}"
        result.append(line)
    return "\n".join(result) + "\n"


if __name__ == "__main__":
    sys.stdout.write(documented(Path(sys.argv[1]).read_text(encoding="utf-8")))
