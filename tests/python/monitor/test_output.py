# SPDX-License-Identifier: Apache-2.0
"""Timeline, plot, Prometheus, and what the terminal shows."""

from __future__ import annotations

import io
import os
import re
import socket
import struct
import threading
import time
import urllib.error
import urllib.request
import xml.etree.ElementTree as ElementTree

import pytest
from rich.console import Console

from distorch.tools.monitor import DeviceSample, Gap, Mark, ModelSample, NodeRun, PromptRun, Sample
from distorch.tools.monitor.bars import Row, bar, sparkline, widths
from distorch.tools.monitor.chart import Panel, Span, scale_of_data, scale_of_device
from distorch.tools.monitor.exporter import PrometheusSink
from distorch.tools.monitor.lines import Chosen
from distorch.tools.monitor.plot import render_svg
from distorch.tools.monitor.recorder import ClockJump
from distorch.tools.monitor.sample import Queue
from distorch.tools.monitor.sinks import Point, Series, StatisticsSink, Timeline
from distorch.tools.monitor.view import LiveView, PlainView, progress, progress_text
from distorch.whole_file import write_whole

GB, MB = 2**30, 2**20
NOON = time.mktime((2026, 11, 21, 12, 0, 0, 0, 0, -1))
SVG = "{http://www.w3.org/2000/svg}"


def every() -> Chosen:
    return Chosen(every=True)


def sample(at: float, used: int, peak: int | None = None, **more) -> Sample:
    return Sample(
        NOON + at,
        "history",
        (DeviceSample("cuda:0", used, 24 * GB - used, 24 * GB, peak, "RTX"),),
        **more,
    )


def gap(at: float) -> Gap:
    return Gap(NOON + at, (("system_stats", "connection refused"),))


def working(at: float) -> Sample:
    nodes = (NodeRun("4", "Loader", NOON, NOON + 2), NodeRun("3", "KSampler", NOON + 2))
    run = PromptRun("0123456789", NOON, nodes=nodes)
    models = (ModelSample("flux [bold]", "diffusion", {"cuda:0": 9 * GB, "cpu": GB}),)
    return sample(at, 9 * GB, 10 * GB, runs=(run,), queue=Queue("0123456789", 4, 2), models=models)


def test_a_timeline_is_bounded_and_keeps_the_largest() -> None:
    timeline = Timeline(every(), capacity=50)
    for i in range(10_000):
        timeline.take(
            gap(i) if 3000 <= i < 3010 else sample(i, i % 997, 5 * GB if i == 7777 else None)
        )
    (series,) = timeline.series()
    assert len(series.points) <= 50
    assert max(p.used or 0 for p in series.points) == 996
    assert max(p.peak or 0 for p in series.points) == 5 * GB
    times = [p.time for p in series.points]
    assert times == sorted(times)


def test_a_device_that_is_missing_has_a_gap() -> None:
    timeline = Timeline(every())
    both = (DeviceSample("cuda:0", 1, 1, 2), DeviceSample("cuda:1", 1, 1, 2))
    for at, devices in enumerate([both, both[:1], both]):
        timeline.take(Sample(NOON + at, "nvml", devices))
    assert [[p.used for p in s.points] for s in timeline.series()] == [[1, 1, 1], [1, None, 1]]


def picture() -> str:
    timeline = Timeline(every())
    for i in range(100):
        timeline.take(
            gap(i) if 40 <= i < 50 else sample(i, i % 20 * GB, 23 * GB if i == 60 else None)
        )
    timeline.take(Mark(NOON + 30, "scene <1>"))
    timeline.take(Mark(NOON + 30.5, "hidden"))
    run = PromptRun("p1", NOON + 10, NOON + 35, "error")
    timeline.take(sample(100, GB, runs=(run,)))
    return render_svg(timeline, "A & B")


def test_the_plot_is_svg_with_panels_peaks_gaps_marks_and_prompts() -> None:
    root = ElementTree.fromstring(picture())
    texts = [e.text or "" for e in root.iter(f"{SVG}text")]
    assert "A & B" in texts
    assert "cuda:0  RTX" in texts
    assert "peak 23.00 GB of 24.00 GB at 12:01:00" in texts
    assert "scene <1>" in texts
    assert "hidden" not in texts  # it would lie over the other; its tooltip has it
    assert {"0 GB", "8 GB", "16 GB", "24 GB"} <= set(texts)
    assert "12:00:30" in texts
    classes = [e.get("class") for e in root.iter() if e.get("class")]
    assert classes.count("peak") == 1
    assert classes.count("gap") == 1
    assert classes.count("used") == 2  # before and after the gap
    assert "hidden 12:00:30" in [e.text for e in root.iter(f"{SVG}title")]
    bands = [e for e in root.iter(f"{SVG}rect") if e.get("fill") == "#c62828"]
    assert len(bands) == 1


def labels(scale: tuple[float, float]) -> list[str]:
    series = Series("cuda:0", 10, points=[Point(0.0, MB)])
    drawn = "".join(Panel(0, Span(0, 1), series, scale).axes([]))
    return re.findall(r">([^<]+)</text>", drawn)


def test_axes_are_round_in_their_unit() -> None:
    assert labels(scale_of_device(24 * GB)) == ["0 GB", "8 GB", "16 GB", "24 GB"]
    assert labels(scale_of_device(512 * MB)) == ["0 GB", "0.25 GB", "0.5 GB"]
    assert labels(scale_of_device(80 * MB)) == ["0 MB", "32 MB", "64 MB"]
    assert labels(scale_of_data(2201 * MB)) == ["0 MB", "1000 MB", "2000 MB", "3000 MB"]
    assert labels(scale_of_data(9.5 * GB)) == ["0 GB", "5 GB", "10 GB"]
    assert labels(scale_of_data(44 * MB)) == ["0 MB", "20 MB", "40 MB", "60 MB"]


def test_no_time_is_cut_off_at_the_right_edge() -> None:
    last = re.findall(r'<text x="1080.0"[^>]*text-anchor="(\w+)"[^>]*>12:01:40<', picture())
    assert last == ["end"]


def test_a_plot_of_nothing_says_so() -> None:
    assert "no samples" in render_svg(Timeline(every()))
    timeline = Timeline(every())
    timeline.take(sample(0, 0))
    ElementTree.fromstring(render_svg(timeline))


def test_a_plot_is_written_whole_or_not_at_all(tmp_path) -> None:
    target = tmp_path / "x.svg"
    write_whole(target, "one")
    with pytest.raises(OSError, match="No such file"):
        write_whole(tmp_path / "none" / "x.svg", "two")
    assert [p.name for p in tmp_path.iterdir()] == ["x.svg"]
    assert target.read_text() == "one"


def fetch(port: int, path: str = "/metrics") -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
        assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        return answer.read().decode()


def test_prometheus_reads_the_last_sample() -> None:
    sink = PrometheusSink(0)
    try:
        assert "distorch_monitor_up 0\n" in fetch(sink.port)
        sink.take(sample(0, 3 * GB, 5 * GB))
        sink.take(sample(5, 2 * GB, models=(ModelSample('a "b"\n\\', "vae", {"cuda:0": 7}),)))
        text = fetch(sink.port)
        lines = text.splitlines()
        assert "distorch_monitor_up 1" in lines
        assert "distorch_monitor_samples_total 2" in lines
        assert f'distorch_monitor_used_bytes{{device="cuda:0",name="RTX"}} {2 * GB}' in lines
        assert f'distorch_monitor_peak_bytes{{device="cuda:0",name="RTX"}} {5 * GB}' in lines
        assert f'distorch_monitor_recent_peak_bytes{{device="cuda:0",name="RTX"}} {5 * GB}' in lines
        assert (
            r'distorch_monitor_model_bytes{model="a \"b\"\n\\",type="vae",device="cuda:0"} 7'
            in lines
        )
        assert f"distorch_monitor_last_sample_timestamp_seconds {NOON + 5:.3f}" in lines
        for name in {
            line.split("{")[0].split(" ")[0] for line in lines if not line.startswith("#")
        }:
            assert text.count(f"# TYPE {name} ") == text.count(f"# HELP {name} ") == 1
        sink.take(gap(10))
        assert {"distorch_monitor_up 0", "distorch_monitor_gaps_total 1"} <= set(
            fetch(sink.port).splitlines()
        )
        with pytest.raises(urllib.error.HTTPError, match="404"):
            fetch(sink.port, "/")
        with pytest.raises(OSError, match="10048" if os.name == "nt" else "in use"):
            PrometheusSink(sink.port)
    finally:
        sink.close()
    with pytest.raises(urllib.error.URLError):
        fetch(sink.port)


def test_a_client_that_goes_away_is_no_news_on_the_terminal(capfd) -> None:
    sink = PrometheusSink(0)
    try:
        for _ in range(3):
            client = socket.create_connection(("127.0.0.1", sink.port))
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
            client.close()  # a reset
        assert "distorch_monitor_up 0\n" in fetch(sink.port)
    finally:
        sink.close()
    for thread in threading.enumerate():
        if "process_request_thread" in thread.name:
            thread.join(15)
    assert capfd.readouterr() == ("", "")


def test_prometheus_on_an_address_of_ip_version_6() -> None:
    if not socket.has_ipv6:
        pytest.fail("this test needs IPv6")
    sink = PrometheusSink(0, "::1")
    try:
        assert sink.url == f"http://[::1]:{sink.port}/metrics"
        with urllib.request.urlopen(sink.url, timeout=5) as answer:
            assert b"distorch_monitor_up 0" in answer.read()
    finally:
        sink.close()


def test_progress_is_told_in_words() -> None:
    assert progress_text(progress(working(10))) == (
        "prompt 01234567, KSampler (node 3), 1 of 4 nodes in 10 s, 2 waiting"
    )
    assert progress_text(progress(sample(0, 1))) == ""
    assert (
        progress_text(progress(sample(0, 1, queue=Queue("p", 9, 0))))
        == "a prompt of 9 nodes is running"
    )


def test_plain_lines_say_gaps_once() -> None:
    said: list[str] = []
    view = PlainView(said.append, every())
    for event in (working(0), gap(5), gap(10), gap(15), sample(20, GB), Mark(NOON + 21, "scene 2"),
                  ClockJump(NOON + 22, -3600.0)):  # fmt: skip
        view.take(event)
    assert said == [
        "12:00:00 history  cuda:0 9216/24576 MB 38% peak 10240  "
        "[prompt 01234567, KSampler (node 3), 1 of 4 nodes in 0 s, 2 waiting]",
        "12:00:05 no answer (system_stats: connection refused)",
        "12:00:20 back after 15 s, history  cuda:0 1024/24576 MB 4%",
        "12:00:21 --- scene 2",
        "12:00:22 the clock was set by -3600.0 s",
    ]


def shown(view: LiveView, width: int = 120) -> str:
    out = io.StringIO()
    Console(file=out, width=width, force_terminal=False).print(view)
    return out.getvalue()


def test_the_live_view_shows_bars_models_node_and_progress() -> None:
    view = LiveView(every(), ["log: x.log"])
    assert "first look" in shown(view)
    view.take(sample(0, 18 * GB))
    view.take(working(5))
    text = shown(view)
    assert "2 samples  from history" in text
    assert "9.0 / 24.0 GB" in text
    assert "peak 18.0" in text
    assert "█" * 11 + "░" * 10 + "|" in text  # 9 of 24 GB in 30 characters, the peak at 18
    assert "▇▄" in text
    assert "flux [bold]" in text  # a name is no markup
    assert "10.0 GB  cuda:0 9.0  cpu 1.0  diffusion" in text
    assert "KSampler (node 3), 1 of 4 nodes" in text
    assert "log: x.log" in text
    view.take(gap(10))
    assert "no answer for" in shown(view)
    assert "connection refused" in shown(view)
    for width in (20, 40, 200):
        shown(view, width)


def test_eight_devices_are_eight_bars() -> None:
    view = LiveView(every(), [])
    view.take(
        Sample(
            NOON, "nvml", tuple(DeviceSample(f"cuda:{i}", i * GB, GB, 24 * GB) for i in range(8))
        )
    )
    text = shown(view)
    assert [f"cuda:{i}" in text for i in range(8)] == [True] * 8


@pytest.mark.parametrize("width", [40, 60, 80, 100, 140])
def test_a_narrow_terminal_still_shows_whole_bars_and_the_newest_looks(width: int) -> None:
    view = LiveView(every(), [])
    for i in range(100):
        view.take(sample(i, GB))
    models = (ModelSample("wan2.2_t2v_high_noise_14B_fp8_scaled", "model", {"cuda:0": 12 * GB}),)
    view.take(sample(100, 12 * GB, models=models))
    lines = shown(view, width).splitlines()
    assert all(len(line) <= width for line in lines)
    (device,) = (line for line in lines if line.startswith("cuda:0"))
    drawn = re.search("[█|]+░+", device)
    assert drawn is not None  # half of it is filled, whatever its length
    assert abs(len(drawn[0]) / 2 - drawn[0].count("█")) <= 1
    assert "12.0 / 24.0 GB" in device
    assert "…" not in device
    if width >= 60:
        assert device.endswith("▁▅")
    (model,) = (line for line in lines if line.startswith("wan2.2"))
    assert "12.0 GB" in model
    if width >= 60:
        assert "cuda:0 12.0" in model


def test_a_device_that_holds_nothing_has_no_mark_of_a_peak() -> None:
    assert str(bar(0.0, 0.0, 8)) == "░" * 8
    assert str(bar(0.0, 0.01, 8)) == "░" * 8
    assert str(bar(0.25, 1.0, 8)) == "██░░░░░|"
    assert str(bar(2.0, 2.0, 8)) == "████████"


def test_small_devices_are_told_in_mb() -> None:
    assert Row("cuda:0", 201 * MB, 24 * GB, 201 * MB).sizes == "201 MB / 24.0 GB"
    assert Row("cuda:0", 201 * MB, 0, 201 * MB).sizes == "201 MB"
    assert Row("cuda:0", 19 * GB // 2, 24 * GB, 0).sizes == "9.5 / 24.0 GB"
    assert (widths(100), widths(40), widths(12), widths(-3)) == (
        (30, 60),
        (19, 19),
        (12, 0),
        (8, 0),
    )


def test_a_sparkline() -> None:
    timeline = Timeline(every())
    for i, used in enumerate([0, 12, 24]):
        timeline.take(sample(i, used * GB))
    timeline.take(gap(3))
    (series,) = timeline.series()
    assert sparkline(series.points, 24 * GB) == "▁▅█ "
    assert sparkline(series.points, 0) == ""
    assert sparkline(series.points, 24 * GB, 2) == "█ "


def test_statistics_of_a_run() -> None:
    sink = StatisticsSink(every())
    for event in (sample(0, GB), sample(5, 2 * GB, 3 * GB), gap(10), sample(65, GB)):
        sink.take(event)
    found = sink.result()
    (device,) = found.devices
    assert (device.samples, device.peak, device.sampled_peak, device.gaps) == (3, 3072, 2048, 1)
    assert found.failures == {"system_stats: connection refused": 1}
