# SPDX-License-Identifier: Apache-2.0
"""bench/gpu/run.py: all of it on a simulated device, and the parts that need a GPU on stand-ins."""

from __future__ import annotations

import gc
import importlib
import json
import os
import stat
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import distorch_sim
import pytest
import torch

pytestmark = pytest.mark.skipif(
    os.name == "nt", reason="bench/gpu is for Linux: what takes too long is ended by a signal"
)

FOLDER = Path(__file__).resolve().parents[3] / "bench/gpu"
GB = 2**30


@pytest.fixture(scope="module")
def bench() -> Iterator[ModuleType]:
    sys.path.insert(0, str(FOLDER))
    try:
        yield importlib.import_module("run")
    finally:
        sys.path.remove(str(FOLDER))
        for name in ("run", "cases", "copies", "dit", "report", "ways", "plot"):
            sys.modules.pop(name, None)


def test_the_tiny_run_writes_table_json_and_plot(
    bench: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--tiny", "--sizes", "flux-12b", "--tokens", "16", "--steps", "3"]
    arguments += ["--ways", "streamed,per_leaf,accelerate", "--json", str(tmp_path / "more.json")]
    assert bench.main([*arguments, "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "hardware simulated device: bytes, no seconds" in out
    assert "every goal is met" in out
    text = (tmp_path / "results.json").read_text()
    assert (tmp_path / "more.json").read_text() == text
    contents = json.loads(text)
    assert [row["share"] for row in contents["rows"]] == [0.25, 0.5, 1.0]
    for row in contents["rows"]:
        assert row["values"]["streamed"] == row["streamed_bytes"] > 0
        assert row["values"]["resident"] == 0
        assert row["fraction_of_bound"] == 1.0
        assert set(row["ratio"]) == {"per_leaf", "accelerate"}
        assert all(ratio >= 1 for ratio in row["ratio"].values())
    picture = ET.parse(tmp_path / "results.svg").getroot()
    bars = [e for e in picture.iter() if e.tag.endswith("rect") and len(e)]
    assert len(bars) == 3 * 4


def test_the_context_needs_no_git(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    report = importlib.import_module("report")
    assert set(report.context("sim:0")) == {"hardware", "torch", "python", "date", "commit"}
    monkeypatch.setattr(report.shutil, "which", lambda _: None)
    assert set(report.context("sim:0")) == {"hardware", "torch", "python", "date"}


def test_without_a_gpu_it_says_so(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert bench.main([]) == 3
    assert "no CUDA device: nothing was measured" in capsys.readouterr().err


def test_too_little_memory_says_what_is_needed_and_free(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    import distorch.devices

    free = {"cuda:0": 24 * GB, "cpu": 200 * GB}
    monkeypatch.setattr(distorch.devices, "free_memory", free.__getitem__)
    args = bench.parse(["--sizes", "flux-12b"])
    with pytest.raises(bench.NotPossibleError, match=r"^flux-12b needs 28\.\d GB on cuda:0, where 24\.0 GB are free: take a smaller one by --sizes") as error:  # fmt: skip
        bench.check_memory(args)
    assert error.value.status == 4
    free.update({"cuda:0": 80 * GB, "cpu": 30 * GB})
    with pytest.raises(bench.NotPossibleError, match=r"on cpu, where 30\.0 GB are free"):
        bench.check_memory(args)
    free["cpu"] = 200 * GB
    bench.check_memory(args)


def test_the_sizes_are_the_real_ones(bench: ModuleType) -> None:
    dit = importlib.import_module("dit")
    billions = {
        name: dit.parameter_bytes(size, torch.bfloat16) / 2e9 for name, size in dit.SIZES.items()
    }
    assert 11.5 < billions["flux-12b"] < 12.5
    assert 13.5 < billions["wan-14b"] < 14.5
    assert 3 < billions["flux-4b"] < 4.5
    assert 4 < billions["wan-5b"] < 5.5
    for size in dit.SIZES.values():  # whole steps, of shapes only
        with torch.device("meta"):
            model = dit.DiT(size).to(torch.bfloat16)
        args = dit.inputs(size, 256, "meta", torch.bfloat16)
        assert model(*args).shape == (1, 256, 64), size.name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sizes", "huge"], "unknown size huge; there are flux-12b, wan-14b"),
        (["--tokens", "many"], "flux-12b:many:25 is no case: expected SIZE:TOKENS:PERCENT"),
        (["--cases", "flux-12b:16"], "flux-12b:16 is no case"),
        (["--shares", "101"], "101 percent of the blocks are more than all"),
        (["--ways", "magic"], "unknown way magic; there are resident, streamed, per_leaf"),
        (["--steps", "0"], "--steps must be at least 1"),
    ],
)
def test_wrong_arguments(
    bench: ModuleType, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as exit_:
        bench.parse(arguments)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_cases_of_one_model_come_one_behind_the_other(bench: ModuleType) -> None:
    args = bench.parse(["--cases", "wan-14b:8:100,flux-12b:8:50,wan-14b:4:25"])
    assert [(c.size, c.tokens, c.share) for c in args.cases] == [
        ("wan-14b", 8, 1.0),
        ("wan-14b", 4, 0.25),
        ("flux-12b", 8, 0.5),
    ]
    args = bench.parse(["--sizes", "wan-14b", "--tokens", "8", "--shares", "50,100"])
    assert [(c.size, c.tokens, c.share) for c in args.cases] == [("wan-14b", 8, 0.5), ("wan-14b", 8, 1.0)]  # fmt: skip


def program(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_the_copies_come_from_the_binary(bench: ModuleType, tmp_path: Path) -> None:
    rows = [
        {"way": way, "source": "cpu", "target": "cuda:0", "bytes": size, "gbps": gbps}
        for way, size, gbps in (
            ("pinned", 4096, 99.0),
            ("pinned", 64 << 20, 24.0),
            ("pinned", 1 << 30, 25.0),
            ("pageable", 1 << 30, 40.0),
        )
    ]
    lines = "\n".join(f"echo '{json.dumps(row)}'" for row in rows)
    bench = importlib.import_module("copies")
    found = bench.measure_copies(program(tmp_path / "copies", lines))
    assert found == rows
    assert bench.peak_gbps(found, "cuda:0") == 25.0
    with pytest.raises(bench.NotPossibleError, match="no registered copy of 32 MiB or more"):
        bench.peak_gbps(found, "cuda:0", "registered")
    lines = bench.copies_table(found)
    assert lines[0].split() == ["GB/s", "4", "KiB", "64", "MiB", "1", "GiB"]
    assert lines[1].split() == ["pinned", "cpu", "to", "cuda:0", "99.00", "24.00", "25.00"]
    assert lines[2].split() == ["pageable", "cpu", "to", "cuda:0", "-", "-", "40.00"]
    with pytest.raises(bench.NotPossibleError, match="no pinned copy of 32 MiB or more to cuda:1"):
        bench.peak_gbps(found, "cuda:1")
    with pytest.raises(bench.NotPossibleError, match=r"is not there: build it by tools/compile"):
        bench.measure_copies(tmp_path / "nothing")
    kept = tmp_path / "kept.json"
    kept.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    assert bench.measure_copies(kept) == rows
    failing = program(tmp_path / "failing", "echo no CUDA device >&2; exit 3")
    with pytest.raises(bench.NotPossibleError, match="failing failed: no CUDA device") as error:
        bench.measure_copies(failing)
    assert error.value.status == 3


class Seconds:
    """A clock that knows what each way takes, in the order in which they are run."""

    unit = "s"
    device = "sim:0"

    def __init__(self, *seconds: float) -> None:
        self.seconds = iter(seconds)
        self.warm_ups: list[int] = []

    def step(self, run: Any, warm_up: int) -> float:
        self.warm_ups.append(warm_up)
        run()
        return next(self.seconds)


WAYS = ("streamed", "per_leaf", "accelerate")


def tiny(bench: ModuleType, meter: Any, limits: Any = None) -> Any:
    distorch_sim.install([64 << 20])
    cases = importlib.import_module("cases")
    dit = importlib.import_module("dit")
    return cases.Bench(meter, dit.TINY["wan-14b"], limits or cases.Limits())


def test_seconds_are_set_against_bound_and_rivals(bench: ModuleType) -> None:
    meter = Seconds(1.0, 2.05, 4.1, 2.0, 3.0)
    cases, report = importlib.import_module("cases"), importlib.import_module("report")
    one = tiny(bench, meter)
    dit = importlib.import_module("dit")
    away = importlib.import_module("ways").group_bytes(one.model, dit.groups(one.model)[::2])
    gbps = {"pinned": away / 2.0 / GB, "registered": away / 2.5 / GB}  # the link takes two seconds
    seen: list[int] = []
    row = one.run(
        cases.Case("wan-14b", 8, 0.5), WAYS, gbps, lambda r: seen.append(len(r["values"]))
    )
    assert seen == [2, 3, 4], "written after each way"
    assert meter.warm_ups == [1, 4, 1, 1], "ours learns, rivals are warm"
    assert row["problems"] == {}
    assert row["streamed_bytes"] == away
    assert row["compute_seconds"] == 1.0
    assert row["link_seconds"] == pytest.approx(2.0)
    assert row["link_seconds_registered"] == pytest.approx(2.5)
    assert row["bound"] == pytest.approx(2.0)
    assert row["fraction_of_bound"] == pytest.approx(2.0 / 2.05)
    assert row["ratio"] == {"per_leaf": 2.0, "accelerate": pytest.approx(2.0 / 2.05)}
    assert cases.missed(row) == ["wan-14b, 8 tokens, 50% away: slower than accelerate (0.98)"]
    lines = report.table([row])
    assert lines[0].split() == ["model", "tokens", "away", "T", "C", "B/W", "bound/T", "per_leaf/T", "accelerate/T"]  # fmt: skip
    assert lines[1].split() == ["wan-14b", "8", "50%", "2.0500", "1.0000", "2.0000", "0.976", "2.000", "0.976"]  # fmt: skip
    again = one.run(cases.Case("wan-14b", 8, 1.0), ("streamed",), gbps)
    assert again["values"] == {"resident": 1.0, "streamed": 3.0}, "C is found once"
    slow = {**row, "fraction_of_bound": 0.9, "ratio": {"per_leaf": 1.0, "accelerate": 1.0}}
    assert cases.missed(slow) == ["wan-14b, 8 tokens, 50% away: 0.90 of the bound"]


def test_the_whole_run_with_seconds(
    bench: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cases, dit = importlib.import_module("cases"), importlib.import_module("dit")
    distorch_sim.install([64 << 20])
    copies = [
        {"way": way, "source": "cpu", "target": "sim:0", "bytes": 64 << 20, "gbps": gbps}
        for way, gbps in (("pinned", 20.0), ("registered", 19.0))
    ]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(bench, "check_memory", lambda _: None)
    monkeypatch.setattr(bench.copies, "measure_copies", lambda _: copies)
    monkeypatch.setattr(cases, "Clock", lambda *_: Seconds(1.0, 1.01, 3.0, 1.02, 3.0))
    monkeypatch.setattr(dit, "SIZES", dit.TINY)
    arguments = ["--device", "sim:0", "--cases", "flux-12b:8:50,flux-12b:8:100"]
    arguments += ["--ways", "streamed,per_leaf", "--out", str(tmp_path)]
    assert bench.main(arguments) == 0
    out = capsys.readouterr().out
    assert "W: 20.0 GB/s, pinned, host to sim:0" in out
    assert "W: 19.0 GB/s, registered, host to sim:0" in out
    assert "every goal is met" in out
    contents = json.loads((tmp_path / "results.json").read_text())
    assert contents["copies"] == copies
    assert [row["ratio"]["per_leaf"] for row in contents["rows"]] == [3 / 1.01, 3 / 1.02]


def test_a_wrong_result_is_recorded_and_ends_nothing(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = importlib.import_module("cases")
    one = tiny(bench, Seconds(1, 1, 1, 1))
    answers = iter([True, False, True])
    monkeypatch.setattr(torch, "equal", lambda *_: next(answers))
    gbps = {"pinned": 1.0, "registered": 1.0}
    row = one.run(cases.Case("wan-14b", 8, 0.5), WAYS, gbps)
    assert row["problems"] == {
        "per_leaf": "another result than the resident model's: 0.00e+00 of its norm apart"
    }
    assert set(row["values"]) == {"resident", "streamed", "accelerate"}
    assert cases.missed({**row, "problems": {"streamed": "wrong"}, "fraction_of_bound": None}) == ["wan-14b, 8 tokens, 50% away: streamed: wrong"]  # fmt: skip


def test_what_takes_too_long_or_fails_is_recorded_and_ends_nothing(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = importlib.import_module("cases")

    class Slow(Seconds):
        def step(self, run: Any, warm_up: int) -> float:
            seconds = super().step(run, warm_up)
            if seconds < 0:
                raise torch.OutOfMemoryError("no room for it")
            time.sleep(30 if seconds > 1 else 0)
            return seconds

    one = tiny(bench, Slow(1, 1, 2, -1), cases.Limits(way=5.0))
    row = one.run(cases.Case("wan-14b", 8, 0.5), WAYS, {"pinned": 1.0, "registered": 1.0})
    assert row["values"] == {"resident": 1, "streamed": 1}
    assert row["problems"] == {
        "per_leaf": "OutOfTimeError: not done within 5 s",
        "accelerate": "OutOfMemoryError: no room for it",
    }
    gc.collect()
    assert torch.sim.memory_allocated(0) == 0
    with pytest.raises(cases.OutOfTimeError, match="no time was left"), cases.at_most(0):
        pass


def test_the_plot_scales_to_the_highest_bar(bench: ModuleType) -> None:
    plot = importlib.import_module("plot")
    cases = [
        {"label": "a < b\n5", "values": {"streamed": 2.0, "per_leaf": 4.0}, "bound": 1.5},
        {"label": "c", "values": {"streamed": None}, "bound": None},
    ]
    root = ET.fromstring(plot.svg("title & more", cases, "seconds"))
    bars = [e for e in root.iter() if e.tag.endswith("rect") and len(e)]
    assert [float(bar.attrib["height"]) for bar in bars] == [150.0, 300.0]
    texts = [e.text for e in root.iter() if e.tag.endswith("text")]
    assert "a < b" in texts
    assert "title & more" in texts
    assert root.attrib["width"] == "620"
