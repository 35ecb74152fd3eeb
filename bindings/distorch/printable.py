# SPDX-License-Identifier: Apache-2.0
"""Text for terminals and logs. A terminal obeys what it is given, and names of files and tensors may be anything."""

from __future__ import annotations

import logging


def printable(words: str, instead: str = "?") -> str:
    """Return words with `instead` for each character that is not shown, but for line breaks."""
    if words.isprintable():
        return words
    return "".join(c if c.isprintable() or c == "\n" else instead for c in words)


class Printable(logging.Filter):
    """Lets every record of a logger pass, its words printable."""

    def filter(self, record: logging.LogRecord) -> bool:
        words = record.getMessage()
        if not words.isprintable():
            record.msg, record.args = printable(words), ()
        return True


def logger(name: str) -> logging.Logger:
    """Return a logger whose records are printable."""
    made = logging.getLogger(name)
    if not any(isinstance(each, Printable) for each in made.filters):
        made.addFilter(Printable())
    return made
