# SPDX-License-Identifier: Apache-2.0
"""What is written: text, JSON, JUnit XML, the picture; lines and bars while it runs."""

from __future__ import annotations

import pathlib
import random
import re
from xml.etree import ElementTree

import pytest
from fake_comfy import GB, MB
from hypothesis import given
from hypothesis import strategies as st

from distorch.tools.e2e import plot, report
from distorch.tools.e2e.drift import Drift
from distorch.tools.e2e.events import Outcome, Status
from distorch.tools.e2e.results import NodeTime, RunResult, SceneResult
from distorch.tools.monitor import DeviceSample, Gap, Sample
from distorch.tools.monitor.lines import Chosen
from distorch.tools.monitor.sinks import StatisticsSink, Timeline
from distorch.tools.stats import read_logs

ROOT = pathlib.Path(__file__).resolve().parents[3]


def scene(number: int, status: Status = Status.SUCCESS, message: str = "", **more) -> SceneResult:
    start = 1_000_000.0 + number * 100
    made = {
        "queued": start,
        "ended": start + 80,
        "seconds": 79.5,
        "prompt_id": f"id-{number}",
        "nodes": 3,
    }
    return SceneResult(
        number, f"wan.json #{number}", "wan.json", Outcome(status, message), **{**made, **more}
    )


def recorded(*events) -> tuple[Timeline, StatisticsSink]:
    """What the sinks of a run make of events."""
    sinks = Timeline(Chosen(every=True)), StatisticsSink(Chosen(every=True))
    for event in events:
        for sink in sinks:
            sink.take(event)
    return sinks


def device(name: str, used: int, peak: int | None = None, model: str = "") -> DeviceSample:
    return DeviceSample(name, used, 24 * GB - used, 24 * GB, peak, model)


def example(leak: int = 0, scenes: int = 12) -> tuple[RunResult, Timeline]:
    """A run on two devices, of which the second loses `leak` bytes a scene."""
    source = random.Random(3)
    result = RunResult(
        "http://127.0.0.1:8188", "0.33.0", 1_000_090.0, 1_000_100.0 + scenes * 100, True
    )
    events: list[Sample | Gap] = []
    for n in range(1, scenes + 1):
        for second in range(0, 100, 5):
            moment = 1_000_000.0 + n * 100 + second
            high = (15 * GB if 5 < second < 75 else GB) + source.randrange(200) * MB
            low = 2 * GB + leak * n + (6 * GB if 20 < second < 60 else 0)
            first = device("cuda:0", high, high + 300 * MB, "NVIDIA GeForce RTX 4090")
            events.append(Sample(moment, "system_stats", (first, device("cuda:1", low))))
        if n == 6:
            events.append(Gap(1_000_698.0, (("system_stats", "connection refused"),)))
        rest = {"cuda:0": GB, "cuda:1": 2 * GB + leak * n}
        result.scenes.append(
            scene(
                n,
                rest=rest,
                rested=1_000_085.0 + n * 100,
                peak={"cuda:0": 15 * GB, "cuda:1": 8 * GB},
            )
        )
    timeline, statistics = recorded(*events)
    result.statistics = statistics.result()
    verdict = "leak" if leak else "clean"
    result.drift = [
        Drift("cuda:0", "clean", scenes, GB, GB, 0.0, 0.0, 0.0, 1.0, 0.0),
        Drift(
            "cuda:1", verdict, scenes, 2 * GB, 2 * GB + leak * scenes, leak, leak, leak, 4e-5, leak
        ),
    ]
    return result, timeline


# -- the exit status -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (Status.SUCCESS, 0), (Status.REFUSED, 1), (Status.FAILED, 1), (Status.INTERRUPTED, 1), (Status.TIMEOUT, 3),
        (Status.LOST, 5),
    ],
)  # fmt: skip
def test_exit_status_of_one_scene(status, expected) -> None:
    assert RunResult("x", scenes=[scene(1), scene(2, status)]).exit_status == expected


def test_the_worst_decides_the_exit_status() -> None:
    leak, _ = example(64 * MB)
    assert leak.exit_status == 4
    leak.scenes[3].figures_hold = False
    assert leak.exit_status == 4
    leak.scenes[4].outcome = Outcome(Status.TIMEOUT)
    assert leak.exit_status == 3
    leak.scenes[5].outcome = Outcome(Status.FAILED)
    assert leak.exit_status == 1
    leak.scenes[6].outcome = Outcome(Status.LOST)
    assert leak.exit_status == 5
    leak.signal = 15
    assert leak.exit_status == 143


def test_a_cached_scene_that_failed_is_a_failure() -> None:
    assert RunResult("x", scenes=[scene(1, Status.FAILED, figures_hold=False)]).exit_status == 1


# -- text ----------------------------------------------------------------------------------------------------------


def test_the_summary_has_the_statistics_block() -> None:
    result, _ = example(64 * MB)
    said = report.text(result).splitlines()
    assert said[1:5] == [
        "12 scenes in 1210 s: 12 success",
        "",
        "=== VRAM Usage Statistics (cuda:0) ===",
        f"Peak VRAM: {result.statistics.devices[0].peak} MB (from 240 samples)",
    ]
    second = said.index("=== VRAM Usage Statistics (cuda:1) ===")
    assert said[second + 1 : second + 4] == [
        "Peak VRAM: 8960 MB (from 240 samples)",
        f"Average VRAM: {round(result.statistics.devices[1].average)} MB",
        "Minimum VRAM: 2112 MB",
    ]
    assert "No answer 1 times: system_stats: connection refused" in said
    assert said[-3:] == [
        "=== Memory at rest after each scene ===",
        "cuda:0: clean, +0.00 MB/scene (+0.00 to +0.00) over 12 scenes; 1024.0 MB after the first scene, "
        "1024.0 MB after the last",
        "cuda:1: LEAK, +64.00 MB/scene (+64.00 to +64.00) over 12 scenes, p = 4e-05; 2048.0 MB after the first "
        "scene, 2816.0 MB after the last",
    ]


# -- JUnit ---------------------------------------------------------------------------------------------------------


def test_junit_has_a_case_a_scene_and_one_a_device() -> None:
    result, _ = example(64 * MB)
    result.scenes[1].outcome = Outcome(Status.FAILED, "node 2: boom\nand more", "2", "ValueError")
    result.scenes[2].outcome = Outcome(Status.LOST, "gone")
    result.scenes[3].outcome = Outcome(Status.NOT_RUN)
    result.scenes[4].figures_hold, result.scenes[4].notes = False, ["it was cached"]
    result.scenes[5].ran = [NodeTime("2", "KSampler", "KSampler", 4.25)]
    root = ElementTree.fromstring(report.junit(result))
    suite = root.find("testsuite")
    assert suite is not None
    assert {k: suite.get(k) for k in ("tests", "failures", "errors", "skipped", "time")} == {
        "tests": "14", "failures": "3", "errors": "1", "skipped": "1", "time": "1210.000",
    }  # fmt: skip
    cases = {c.get("name"): c for c in suite.findall("testcase")}
    failure = cases["2 wan.json #2"].find("failure")
    assert failure is not None
    assert (failure.get("type"), failure.get("message"), failure.text) == (
        "ValueError", "node 2: boom", "node 2: boom\nand more",
    )  # fmt: skip
    assert cases["3 wan.json #3"].find("error") is not None
    assert cases["4 wan.json #4"].find("skipped") is not None
    assert cases["5 wan.json #5"].find("failure").get("type") == "cached"
    assert "KSampler (2): 4.250 s" in cases["6 wan.json #6"].find("system-out").text
    assert cases["memory comes back: cuda:1"].find("failure").get("type") == "leak"
    assert len(cases["memory comes back: cuda:0"]) == 0


def test_junit_of_a_run_that_did_not_begin_is_an_error(e2e, server, tmp_path) -> None:
    server.fault = "html"
    assert e2e("--junit", str(tmp_path / "run.xml")).status == 5
    suite = ElementTree.parse(tmp_path / "run.xml").getroot().find("testsuite")
    assert (suite.get("errors"), suite.get("skipped")) == ("1", "1")
    assert "no ComfyUI answers at" in suite.find("testcase/error").get("message")


@given(st.text(max_size=60))
def test_junit_is_xml_whatever_a_node_says(words) -> None:
    result = RunResult(words, words, scenes=[scene(1, Status.FAILED, words, notes=[words])])
    assert ElementTree.fromstring(report.junit(result).encode()).tag == "testsuites"


# -- the picture ---------------------------------------------------------------------------------------------------


def test_the_picture_has_each_device_each_scene_and_the_verdict() -> None:
    result, timeline = example(64 * MB)
    drawn = plot.svg(result, timeline)
    root = ElementTree.fromstring(drawn)
    words = [t.text for t in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"cuda:0  NVIDIA GeForce RTX 4090", "cuda:1", "1", "12"} <= set(words)
    assert "leak: +64.00 MB/scene" in words
    assert "clean: +0.00 MB/scene" in words
    titles = [t.text for t in root.iter("{http://www.w3.org/2000/svg}title")]
    assert titles.count("scene 7: wan.json #7, success") == 2
    assert titles.count("at rest: 1024.0 MB") == 12
    for number in re.findall(r'(?:x|y|cx|cy|x1|y1)="(-?[\d.]+)"', drawn):
        assert 0 <= float(number) <= 1100


@pytest.mark.parametrize("scenes", [0, 1])
def test_a_picture_of_almost_nothing(scenes) -> None:
    result = RunResult("http://x", scenes=[scene(i + 1) for i in range(scenes)])
    assert "No sample was taken." in plot.svg(result, recorded()[0])
    timeline, _ = recorded(Sample(1.0, "nvml", (DeviceSample("cuda:0", 0, 0, 0),)))
    ElementTree.fromstring(plot.svg(result, timeline))


@given(st.lists(st.none() | st.tuples(st.integers(0, 2**45), st.integers(0, 2**45)), max_size=40))
def test_any_series_can_be_drawn(values) -> None:
    timeline, _ = recorded(
        *(
            Gap(1_000_000.0 + i, ())
            if found is None
            else Sample(1_000_000.0 + i, "nvml", (device("cuda:0", found[0], sum(found), "a<b"),))
            for i, found in enumerate(values)
        )
    )
    result = RunResult("x", started=1_000_000.0, ended=1_000_040.0)
    ElementTree.fromstring(plot.svg(result, timeline))


# -- files written by the command ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "first", "figures"),
    [
        ("vram.log", r"\d\d:\d\d:\d\d,Used=\d+MB,Free=\d+MB\n", ",Used=500MB,Free=24076MB\n"),
        ("vram.csv", "time,device,", "sim:0"),
        ("vram.jsonl", "{", "sim:0"),
    ],
)
def test_every_sample_is_logged_in_the_form_that_the_ending_names(
    e2e, tmp_path, name, first, figures
) -> None:
    where = tmp_path / name
    ended = e2e("--log", str(where))
    assert re.match(first, where.read_text())
    assert figures in where.read_text()  # the first sample may still be of the run before
    read = read_logs([where])
    assert read.bad_lines == 0
    taken = {d["device"]: d["samples"] for d in ended.json["statistics"]["devices"]}
    assert read.devices[0].samples == taken["sim:0"] > 0


def test_the_json_has_the_fields_that_the_page_names(e2e, server) -> None:
    """docs/end-to-end.md names every field of the JSON, and no other."""
    found = e2e("--repeat", "10").json
    page = (ROOT / "docs/end-to-end.md").read_text()
    start = page.index("## The JSON file")
    block = page[start : page.index("\n## ", start)]
    scene = found["scenes"][0]
    for heading, fields in (
        ("The run:", set(found)),
        ("A scene:", set(scene)),
        ("The drift of a device, besides `scenes`", set(found["drift"][0]) - {"scenes"}),
    ):
        table = block.partition(heading)[2].split("\n\n")[1]
        assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == fields
    (ran,) = re.findall(r"^\| `ran` \|(.*)", block, re.MULTILINE)
    assert re.findall(r"`(\w+)`", ran) == list(scene["ran"][0])
