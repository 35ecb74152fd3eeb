# SPDX-License-Identifier: Apache-2.0
"""Whatever a server answers is read, or refused with a reason; nothing else comes out."""

from __future__ import annotations

import math

from hypothesis import event, given, settings
from hypothesis import strategies as st

from distorch.tools.monitor import Sample, SourceChain, answers
from distorch.tools.monitor.lines import Chosen, Csv, JsonLines, Lines
from distorch.tools.monitor.sources import HistorySource, SystemStatsSource
from distorch.tools.stats import StatisticsReader

GB = 2**30
NAMES = st.sampled_from([
    "devices", "samples", "runs", "nodes", "time", "used", "total", "peak", "free", "vram_total", "vram_free",
    "vram_used", "used_mem_mb", "free_mem_mb", "total_mem_mb", "name", "type", "index", "cuda:0", "cpu", "prompt",
    "started", "ended", "status", "kind", "node", "loaded", "bytes", "models", "interval", "queue_running",
])  # fmt: skip
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.integers(0, 2**40)
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["cuda", "cuda:0 RTX : native", "sim", "\ud800", "a\nb"])
)
ANY = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=8),
    max_leaves=40,
)
SIZES = st.integers(0, 2**40) | st.integers(0, 2**40) | LEAVES
TIMES = st.floats(0, 2e9) | st.floats(0, 2e9) | LEAVES
DEVICE = st.fixed_dictionaries(
    {"used": SIZES, "total": SIZES, "vram_total": SIZES, "vram_free": SIZES},
    optional=dict.fromkeys(
        ["peak", "allocated", "used_mem_mb", "name", "type", "index", "vram_used"], SIZES
    ),
)
DEVICES = st.dictionaries(
    st.sampled_from(["cuda:0", "sim:1", "cpu"]) | st.text(max_size=5),
    DEVICE,
    min_size=1,
    max_size=3,
)
MODEL = st.fixed_dictionaries({"name": LEAVES, "type": LEAVES, "bytes": ANY | DEVICE})
NODE = st.fixed_dictionaries({
    "node": LEAVES, "kind": LEAVES, "started": TIMES, "ended": TIMES, "peak": ANY,
    "loaded": st.lists(MODEL, max_size=2),
})  # fmt: skip
RUN = st.fixed_dictionaries({
    "prompt": st.text(max_size=5) | LEAVES, "started": TIMES, "ended": TIMES, "status": LEAVES,
    "nodes": st.lists(NODE | ANY, max_size=3),
})  # fmt: skip
HISTORY = st.fixed_dictionaries({
    "samples": st.lists(st.fixed_dictionaries({"time": TIMES, "devices": DEVICES}), min_size=1, max_size=4),
    "runs": st.lists(RUN | ANY, max_size=2),
    "models": st.lists(MODEL, max_size=2),
    "interval": LEAVES,
})  # fmt: skip


class Client:
    """Answers what it was given, for every path."""

    def __init__(self, answer) -> None:
        self.answer = answer

    def get(self, path: str, most: float = 0.0):
        return self.answer

    def close(self) -> None:
        pass


def is_size(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**54


@settings(max_examples=400, deadline=None)
@given(answer=HISTORY | ANY | st.fixed_dictionaries({"devices": st.lists(DEVICE, max_size=4)}))
def test_any_answer_gives_good_samples_and_good_lines(answer) -> None:
    client = Client(answer)
    sources = SourceChain([HistorySource(client), SystemStatsSource(client)])
    for _ in range(2):
        found = sources.read()
        if not isinstance(found, Sample):
            assert found.reason
            continue
        event(found.source)
        assert found.devices
        assert len({d.device for d in found.devices}) == len(found.devices)
        for d in found.devices:
            assert is_size(d.used)
            assert is_size(d.free)
            assert is_size(d.total)
            assert d.peak is None or is_size(d.peak)
            assert d.highest >= d.used
        for run in found.runs:
            assert all(math.isfinite(node.started) for node in run.nodes)
        for form in (
            Lines(Chosen(every=True), named=True),
            Csv(Chosen(every=True)),
            JsonLines(Chosen(every=True)),
        ):
            reader = StatisticsReader()
            reader.start("x")
            reader.feed((form.header + "\n" + form(found)).encode())
            result = reader.result()
            wrong = [bad for bad in result.first_bad_lines if bad.reason != "more than 4 TB"]
            assert wrong == []
            assert len(result.devices) + result.bad_lines >= 1


def test_what_torch_holds_is_read_from_system_stats() -> None:
    about = {"type": "cuda", "index": 0, "vram_total": 24 * GB, "vram_free": 16 * GB}
    torch = {"torch_vram_total": 6 * GB, "torch_vram_free": GB}
    (device,) = answers.system_stats({"devices": [about | torch]})
    assert (device.allocated, device.reserved) == (5 * GB, 6 * GB)
    line = JsonLines(Chosen(every=True))(Sample(0.0, "system_stats", (device,)))
    assert f'"allocated":{5 * GB},"reserved":{6 * GB}' in line
    for more in (
        {},
        {"torch_vram_total": 24 * GB, "torch_vram_free": 16 * GB},
    ):  # no such allocator
        (device,) = answers.system_stats({"devices": [about | more]})
        assert (device.allocated, device.reserved) == (None, None)


def test_a_device_is_a_name_without_a_line_end() -> None:
    """It becomes a part of lines as it is."""
    row = {"used": GB, "total": 2 * GB}
    found = answers.history_devices(
        {"devices": {"cuda:0\n": row, "cuda:1": row, "cuda:\u0663": row}}
    )
    assert [d.device for d in found] == ["cuda:1"]
    assert answers.sizes({"cuda:0\n": 1, "cuda:1": 2}) == {"cuda:1": 2}
    (device,) = answers.system_stats(
        {"devices": [{"type": "cuda\n", "vram_total": 2, "vram_free": 1}]}
    )
    assert device.device == "cuda:0"


def test_numbers() -> None:
    assert answers.number(5) == 5.0
    assert answers.number(True) is None
    assert answers.number(float("nan")) is None
    assert answers.number(float("inf")) is None
    assert answers.number(-1) is None
    assert answers.number(10**400) is None
    assert answers.number("5") is None
    assert answers.size(1.9) == 1


def test_texts_are_cut_and_clean() -> None:
    assert answers.text("a\x00\x1b[31mb\n") == "a  [31mb "
    assert len(answers.text("x" * 1000)) == 200
    assert answers.text("\ud83d!") == "?!"
    assert answers.text(5) == ""
