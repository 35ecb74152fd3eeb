# SPDX-License-Identifier: Apache-2.0
"""The background monitor: pace, bounds, sinks that fail, and a thread that always ends."""

from __future__ import annotations

import threading
import time

import pytest
from fake_comfy import GB, FakeComfy, FakeDevice
from waiting import wait_for

from distorch.tools.monitor import BackgroundMonitor, DeviceSample, Gap, Mark, Sample, open_sources
from distorch.tools.monitor.recorder import ClockJump, next_tick


def one(used: int = 5) -> Sample:
    return Sample(time.time(), "nvml", (DeviceSample("cuda:0", used, 10 - used, 10),))


class Reader:
    """Answers at once, or as `script` says."""

    def __init__(self, script=None) -> None:
        self.script = script
        self.reads = 0
        self.closed = threading.Event()

    def read(self):
        self.reads += 1
        return self.script(self) if self.script else one()

    def close(self) -> None:
        self.closed.set()


class Sink:
    def __init__(self, fails: bool = False) -> None:
        self.events: list = []
        self.closed = 0
        self.fails = fails

    def take(self, event) -> None:
        self.events.append(event)
        if self.fails:
            raise OSError(28, "No space left on device")

    def close(self) -> None:
        self.closed += 1


def test_samples_marks_and_order() -> None:
    sink = Sink()
    with BackgroundMonitor(Reader(), 0.01, [sink]) as monitor:
        wait_for(lambda: monitor.taken >= 3)
        monitor.mark("scene 1")
        wait_for(lambda: monitor.taken >= 6)
    assert not monitor.running
    assert len(monitor.samples()) == monitor.taken
    assert [m.label for m in monitor.marks()] == ["scene 1"]
    times = [event.time for event in sink.events]
    assert times == sorted(times)
    assert sum(isinstance(event, Mark) for event in sink.events) == 1
    assert sink.closed == 1


def test_what_is_kept_is_bounded() -> None:
    with BackgroundMonitor(Reader(), 0.001, capacity=7) as monitor:
        wait_for(lambda: monitor.taken >= 20)
    assert len(monitor.samples()) == 7
    assert monitor.taken >= 20


def test_a_first_look_at_once_and_a_last_one_at_the_end() -> None:
    reader = Reader()
    monitor = BackgroundMonitor(reader, 3600).start()
    wait_for(lambda: reader.reads == 1)
    assert monitor.stop() is True
    assert reader.reads == 2
    assert monitor.stop() is True
    assert reader.reads == 2


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (100.0, 105.0),
        (104.9, 105.0),
        (105.0, 105.0),
        (105.1, 110.0),
        (117.0, 120.0),
        (1e6 + 1, 1e6 + 5),
    ],
)
def test_ticks_that_were_missed_are_dropped_and_the_pace_is_kept(now, expected) -> None:
    assert next_tick(100.0, now, 5.0) == pytest.approx(expected)


def test_a_slow_look_is_followed_by_one_not_by_a_burst() -> None:
    def slow(reader: Reader) -> Sample:
        time.sleep(0.55 if reader.reads == 2 else 0)
        return one()

    with BackgroundMonitor(Reader(slow), 0.1) as monitor:
        wait_for(lambda: monitor.taken >= 6)
        times = [s.time for s in monitor.samples()]
    assert times[1] - times[0] > 0.5
    assert times[5] - times[1] > 0.2  # at the old pace, whatever was missed


def test_gaps_are_counted_and_told() -> None:
    def script(reader: Reader):
        return Gap(time.time(), (("nvml", "no driver"),)) if reader.reads % 2 else one()

    sink = Sink()
    with BackgroundMonitor(Reader(script), 0.005, [sink]) as monitor:
        wait_for(lambda: monitor.gaps >= 3)
    assert monitor.last_gap is not None
    assert monitor.last_gap.reason == "nvml: no driver"
    assert sum(isinstance(e, Gap) for e in sink.events) == monitor.gaps


def test_a_sink_that_fails_costs_nothing_but_its_events() -> None:
    bad, good = Sink(fails=True), Sink()
    with BackgroundMonitor(Reader(), 0.005, [bad, good]) as monitor:
        wait_for(lambda: monitor.taken >= 4)
    assert monitor.sink_errors == monitor.taken
    assert "No space left on device" in monitor.last_sink_error
    assert len(good.events) == len(bad.events) == monitor.taken
    assert bad.closed == good.closed == 1


def test_a_clock_that_is_set_is_told() -> None:
    offset = [0.0]
    sink = Sink()
    with BackgroundMonitor(
        Reader(), 0.01, [sink], wall=lambda: time.monotonic() + offset[0], monotonic=time.monotonic
    ) as monitor:
        wait_for(lambda: monitor.taken >= 2)
        offset[0] = -3600.0
        wait_for(lambda: any(isinstance(e, ClockJump) for e in sink.events))
        offset[0] = 0.0
        wait_for(lambda: sum(isinstance(e, ClockJump) for e in sink.events) == 2)
    assert [round(e.seconds) for e in sink.events if isinstance(e, ClockJump)] == [-3600, 3600]


def test_stopping_ends_a_question_that_hangs() -> None:
    with FakeComfy() as server:
        server.fault = "hang"
        monitor = BackgroundMonitor(open_sources(server.url, timeout=60, local=False), 1).start()
        wait_for(lambda: bool(server.requests))
        start = time.monotonic()
        assert monitor.stop(timeout=1) is True
        assert time.monotonic() - start < 20


def test_a_reader_that_never_returns_does_not_hold_the_caller() -> None:
    release = threading.Event()

    def script(reader: Reader) -> Sample:
        release.wait(30)
        return one()

    sink = Sink()
    monitor = BackgroundMonitor(Reader(script), 1, [sink]).start()
    assert monitor.stop(timeout=0.2) is False
    assert sink.closed == 1
    release.set()
    wait_for(lambda: not monitor.running)
    assert sink.events == []  # nothing after close


def test_eight_devices_through_a_restart() -> None:
    devices = [FakeDevice(f"cuda:{i}", used=i * GB) for i in range(8)]
    with FakeComfy(devices) as server:
        live = server.live_history()
        with BackgroundMonitor(open_sources(server.url, local=False), 0.02) as monitor:
            wait_for(lambda: monitor.taken >= 3)
            server.restart(down=0.2)
            before = monitor.taken
            wait_for(lambda: monitor.taken >= before + 3, 20)
            devices[7].used, live.peak = 20 * GB, None
            wait_for(lambda: monitor.samples()[-1].devices[7].used == 20 * GB)
    assert monitor.gaps >= 1
    assert [d.device for d in monitor.samples()[-1].devices] == [f"cuda:{i}" for i in range(8)]


def test_stopping_what_never_began_closes_its_sinks() -> None:
    sink, reader = Sink(), Reader()
    assert BackgroundMonitor(reader, 1, [sink]).stop() is True
    assert (sink.closed, reader.reads, reader.closed.is_set()) == (1, 0, True)


def test_a_monitor_runs_once_and_at_a_positive_interval() -> None:
    with pytest.raises(ValueError, match="the interval must be positive, not 0"):
        BackgroundMonitor(Reader(), 0)
    monitor = BackgroundMonitor(Reader(), 1).start()
    with pytest.raises(RuntimeError, match="runs once"):
        monitor.start()
    monitor.stop()
