# SPDX-License-Identifier: Apache-2.0
"""A budget for pinned memory, as ComfyUI counts."""

from __future__ import annotations


class Budget:
    """One limit, and one count that is everybody's."""

    def __init__(self, limit: int, used: int = 0) -> None:
        self.most, self.count = limit, used

    def limit(self) -> int:
        return self.most

    def used(self) -> int:
        return self.count

    def add(self, count: int) -> None:
        self.count += count
