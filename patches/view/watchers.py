# SPDX-License-Identifier: Apache-2.0
"""Which open pages want to be told of what: nothing is computed or sent for a page that shows nothing of it."""

from __future__ import annotations

import threading
from typing import Any

#: What a page can show, the less first: nothing, the badges in the top bar, the tab.
LEVELS = ("nothing", "badges", "tab")
_MOST = 256  # pages remembered; a closed one is forgotten by one more


class Watchers:
    """Pages by their websocket's id. Thread safe."""

    def __init__(self, server: Any) -> None:
        """`server`: ComfyUI's, with `sockets` by id and `send_sync`."""
        self._server = server
        self._levels: dict[str, str] = {}
        self._lock = threading.Lock()

    def watch(self, client: str, what: str) -> dict[str, str]:
        """Remember what a page shows from now on."""
        with self._lock:
            self._levels.pop(client, None)
            if what != LEVELS[0]:
                self._levels[client] = what
            while len(self._levels) > _MOST:
                del self._levels[next(iter(self._levels))]
        return {"client": client, "what": what}

    def of(self, level: str) -> list[str]:
        """Return the pages of a level whose socket is open."""
        with self._lock:
            there = self._server.sockets
            return [c for c, what in self._levels.items() if what == level and c in there]

    def tell(self, level: str, event: str, data: dict[str, Any]) -> int:
        """Send an event to each page of a level; returns how many there are."""
        pages = self.of(level)
        for page in pages:
            self._server.send_sync(event, data, page)
        return len(pages)
