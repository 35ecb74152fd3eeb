# SPDX-License-Identifier: Apache-2.0
"""What came through the websocket, as it is waited for: nothing is lost, least of all a Ctrl-C."""

from __future__ import annotations

import asyncio

import pytest

from distorch.tools.e2e.client import Feed


@pytest.mark.parametrize("turns", range(5))
def test_a_cancellation_that_comes_with_a_message_is_not_lost(turns) -> None:
    """`asyncio.wait_for` loses it before Python 3.12, and Ctrl-C would do nothing."""

    async def main() -> bool:
        feed = Feed()
        waiting = asyncio.create_task(_forever(feed))
        await asyncio.sleep(0.01)
        feed.put('{"type": "status", "data": {}}')
        for _ in range(turns):
            await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait({waiting}, timeout=2)
        return waiting.cancelled()

    assert asyncio.run(main())


async def _forever(feed: Feed) -> None:
    while True:
        await feed.get(0.5)


def test_messages_come_in_order_and_changes_of_the_connection_between_them() -> None:
    async def main() -> list:
        feed = Feed()
        feed.opened()
        feed.put('{"type": "a"}')
        feed.put("no JSON")
        feed.closed()
        feed.closed()
        return [await feed.get(0.01) for _ in range(4)] + [
            (feed.drops, feed.garbage, feed.connected)
        ]

    assert asyncio.run(main()) == [
        (True, None), (True, {"type": "a"}), (True, None), (False, None), (1, 1, False),
    ]  # fmt: skip


def test_a_message_ends_the_wait() -> None:
    async def main() -> float:
        feed = Feed()
        loop = asyncio.get_running_loop()
        loop.call_later(0.05, feed.put, '{"type": "a"}')
        start = loop.time()
        assert await feed.get(10) == (True, {"type": "a"})
        return loop.time() - start

    assert asyncio.run(main()) < 5
