# SPDX-License-Identifier: Apache-2.0
"""The check of the order in which Python's locks are taken (DISTORCH_LOCK_ORDER=1) sees what it is for."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import lock_order
import pytest
from lock_order import Tracked


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(lock_order, "edges", {})
    yield
    lock_order.inversions()


def lock(place: str) -> Tracked:
    return Tracked(lock_order._make(), place)


def test_two_orders_are_told_though_nobody_waited() -> None:
    a, b, c = lock("a"), lock("b"), lock("c")
    with a, b, c:
        pass
    with b, c:
        pass
    assert lock_order.inversions() == []
    assert set(lock_order.edges) == {("a", "b"), ("a", "c"), ("b", "c")}
    with c, a:
        pass
    assert lock_order.inversions() == ["a is taken inside of c, and the other way round"]
    assert lock_order.inversions() == [], "told once"


def test_other_threads_and_what_was_let_go_do_not_count() -> None:
    a, b = lock("a"), lock("b")
    with a:
        other = threading.Thread(target=lambda: b.acquire() and b.release())
        other.start()
        other.join()
    with b:
        pass
    assert lock_order.edges == {}


def test_two_of_one_place_have_no_order() -> None:
    one, two = lock("a"), lock("a")
    with one, two:
        pass
    assert lock_order.inversions() == ["a is taken inside of a, and the other way round"]


def test_one_that_is_taken_again_and_one_with_a_condition() -> None:
    again = Tracked(threading.RLock(), "a")
    with again, again:
        pass
    condition = threading.Condition(Tracked(lock_order._make_again(), "b"))  # type: ignore[arg-type]
    with condition:
        assert not condition.wait(0)
    assert lock_order.inversions() == []


def test_only_locks_that_our_files_make_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_order, "OURS", (__file__,))
    made = lock_order._tracked(lock_order._make)()
    assert made.place.startswith("locks/test_lock_order.py:")
    monkeypatch.setattr(lock_order, "OURS", ("/elsewhere",))
    assert not isinstance(lock_order._tracked(lock_order._make)(), Tracked)
