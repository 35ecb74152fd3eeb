# SPDX-License-Identifier: Apache-2.0
"""The forms of a line, each read back by the statistics."""

from __future__ import annotations

import json
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distorch.tools.monitor import DeviceSample, Gap, Mark, ModelSample, NodeRun, PromptRun, Sample
from distorch.tools.monitor.lines import Chosen, Csv, JsonLines, Lines
from distorch.tools.monitor.recorder import ClockJump
from distorch.tools.stats import StatisticsReader

MB = 2**20
NOON = time.mktime((2026, 11, 21, 12, 34, 56, 0, 0, -1)) + 0.25
TWO = (
    DeviceSample("cuda:0", 8123 * MB, 16453 * MB, 24576 * MB, 9000 * MB, allocated=5, reserved=7),
    DeviceSample("cuda:1", 10 * MB, 20 * MB, 30 * MB),
)
SAMPLE = Sample(NOON, "history", TWO)
EVERY = Chosen(every=True)


def read_back(form, *events):
    reader = StatisticsReader()
    reader.start("x")
    reader.feed((form.header + "\n" + "".join(map(form, events))).encode())
    found = reader.result()
    assert found.bad_lines == 0, found.first_bad_lines
    return found


def test_the_seed_form_is_exact_and_its_script_reads_it() -> None:
    line = Lines(Chosen(), named=False)(SAMPLE)
    assert line == "12:34:56,Used=8123MB,Free=16453MB\n"
    assert re.search(r"Used=(\d+)MB", line).group(1) == "8123"


def test_the_form_with_names_has_peaks() -> None:
    assert Lines(EVERY, named=True)(SAMPLE) == (
        "12:34:56,cuda:0,Used=8123MB,Free=16453MB,Peak=9000MB\n12:34:56,cuda:1,Used=10MB,Free=20MB\n"
    )


def test_csv() -> None:
    assert Csv(EVERY)(SAMPLE) == (
        f"{NOON:.3f},cuda:0,{8123 * MB},{16453 * MB},{24576 * MB},{9000 * MB},history\n"
        f"{NOON:.3f},cuda:1,{10 * MB},{20 * MB},{30 * MB},,history\n"
    )


def test_json_lines_have_everything() -> None:
    node = NodeRun(
        "3", "KSampler", 10.0, 12.5, {"cuda:0": 9 * MB}, (ModelSample("lora", "lora", {"cpu": 5}),)
    )
    running = NodeRun("4", "VAEDecode", 12.5)
    run = PromptRun("p1", 10.0, nodes=(node, running))
    models = (
        ModelSample("flux", "diffusion", {"cuda:0": 4 * MB}),
        ModelSample("flux", "diffusion", {"cuda:0": 1}),
    )
    form = JsonLines(EVERY)
    sample = Sample(NOON, "history", TWO, models, (run,))
    rows = [json.loads(line) for line in form(sample).splitlines()]
    assert rows[0] == {
        "time": NOON, "device": "cuda:0", "used": 8123 * MB, "free": 16453 * MB, "total": 24576 * MB,
        "peak": 9000 * MB, "allocated": 5, "reserved": 7, "source": "history",
    }  # fmt: skip
    assert rows[2] == {
        "time": NOON,
        "model": "flux",
        "type": "diffusion",
        "bytes": {"cuda:0": 4 * MB + 1},
    }
    assert rows[3] == {"time": NOON, "node": "3", "kind": "KSampler", "prompt": "p1", "started": 10.0,
                       "ended": 12.5, "peak": {"cuda:0": 9 * MB}}  # fmt: skip
    assert rows[4] == {
        "time": NOON,
        "model": "lora",
        "type": "lora",
        "bytes": {"cpu": 5},
        "loaded_by": "3",
    }
    assert len(rows) == 5
    # What has not changed is not written again; what is gone is.
    assert len(form(sample).splitlines()) == 2
    ended = PromptRun(
        "p1", 10.0, 13.0, "success", {"cuda:0": 9}, (node, NodeRun("4", "VAEDecode", 12.5, 13.0))
    )
    later = Sample(NOON + 5, "history", TWO, (), (ended,))
    rows = [json.loads(line) for line in form(later).splitlines()[2:]]
    assert [row.get("model") or row.get("node") or row.get("run") for row in rows] == [
        "flux",
        "4",
        "p1",
    ]
    assert rows[0]["bytes"] == {}
    assert rows[2]["status"] == "success"
    assert len(form(later).splitlines()) == 2
    found = read_back(JsonLines(EVERY), sample, later, Gap(NOON, (("nvml", "none"),)), Mark(NOON, "scene 1"),
                      ClockJump(NOON, -3.5))  # fmt: skip
    assert [(n.name, n.type, n.count) for n in found.nodes] == [
        ("KSampler", "3", 1),
        ("VAEDecode", "4", 1),
    ]
    assert {m.name: m.peaks for m in found.models} == {"flux": {"cuda:0": 4}, "lora": {"cpu": 0}}
    assert found.failures == {"nvml: none": 1}
    assert found.clock_changes == 1


def test_another_source_says_nothing_of_the_models() -> None:
    form = JsonLines(EVERY)
    form(Sample(NOON, "history", TWO, (ModelSample("flux", "", {"cuda:0": 4}),)))
    assert "model" not in form(Sample(NOON, "nvml", TWO))


def test_names_that_are_hard_to_write_are_read_back() -> None:
    name = 'a "b"\\\n\u2028é\ud83d'
    sample = Sample(NOON, "history", TWO, (ModelSample(name, "\t", {"cuda:0": MB}),))
    (model,) = read_back(JsonLines(EVERY), sample).models
    assert model.name == 'a "b"\\\n\u2028é?'
    assert model.peaks == {"cuda:0": 1}


@pytest.mark.parametrize("form", [Lines(EVERY, named=True), Csv(EVERY), JsonLines(EVERY)])
def test_every_form_is_read_back(form) -> None:
    found = read_back(form, SAMPLE, Sample(NOON + 5, "nvml", TWO))
    assert [(d.device, d.samples, d.peak, d.sampled_peak) for d in found.devices] == [
        ("cuda:0", 2, 9000, 8123),
        ("cuda:1", 2, 10, 10),
    ]
    assert found.devices[0].interval == 5


@given(
    st.lists(
        st.tuples(st.floats(0, 4e9), st.integers(0, 2**42), st.none() | st.integers(0, 2**42)),
        min_size=1,
    )
)
def test_own_json_lines_are_never_bad(rows) -> None:
    form = JsonLines(EVERY)
    events = [
        Sample(t, "nvidia-smi", (DeviceSample("cuda:0", used, 0, 0, peak),))
        for t, used, peak in rows
    ]
    (device,) = read_back(form, *events).devices
    assert device.samples == len(rows)
    highest = max(max(used, peak or 0) for _, used, peak in rows)
    assert device.peak == (highest + MB // 2) // MB


def test_the_first_device_stays_the_first() -> None:
    chosen = Chosen()
    assert [d.device for d in chosen.of(SAMPLE)] == ["cuda:0"]
    assert [d.device for d in chosen.of(Sample(NOON, "nvml", TWO[::-1]))] == ["cuda:0"]
    assert chosen.of(Sample(NOON, "nvml", TWO[1:])) == []
    assert [d.device for d in Chosen(["cuda:1", "cuda:7"]).of(SAMPLE)] == ["cuda:1"]
