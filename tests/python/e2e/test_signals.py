# SPDX-License-Identifier: Apache-2.0
"""The signals that end a command in order. A second one that ends it at once: test_ending.py."""

from __future__ import annotations

import signal

from distorch.tools.cli import signals


def test_two_signals_that_come_together_are_one() -> None:
    """As the kernel and the shell send them when a terminal is closed: the clean end goes on."""
    stopped: list[int] = []
    before = signal.getsignal(signal.SIGTERM)
    with signals.first_signal(stopped.append):
        for _ in range(3):
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
    assert stopped == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGTERM) == before


def test_what_nohup_ignores_stays_ignored(monkeypatch) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert signal.SIGHUP not in signals.ending()
        with signals.stop_event() as stopped:
            signal.raise_signal(signal.SIGHUP)
            assert not stopped.is_set()
            signal.raise_signal(signal.SIGTERM)
            assert stopped.is_set()
    finally:
        signal.signal(signal.SIGHUP, before)
    monkeypatch.delattr(signal, "SIGHUP")  # Windows
    assert signals.ending() == [signal.SIGINT, signal.SIGTERM]
