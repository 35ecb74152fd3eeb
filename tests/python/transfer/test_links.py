# SPDX-License-Identifier: Apache-2.0
"""`distorch links`: measuring, keeping, and feeding the planner, on fake CUDA devices and on simulated ones."""

from __future__ import annotations

import gc
import json
import os
import threading
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import distorch_sim
import pytest
import torch
from fake_cuda import LIBRARY, library

from distorch import allocation, devices, links, transfer
from distorch._load import core
from distorch.device_table import device_table
from distorch.links import cache, identity, measuring
from distorch.tools.cli import main
from distorch.whole_file import read_whole

GIB = 2**30
SIZE = 1 << 16


def gpu(index: int, **differs: Any) -> Any:
    """Return one of NVML's devices: PCIe 4.0 x16, idling at generation 1."""
    device = core().NvmlDevice()
    fields = {
        "index": index,
        "uuid": f"GPU-{index}abc",
        "name": "Imaginary 9000",
        "total": 24 * GIB,
        "free": 20 * GIB,
        "pcie_generation": 4,
        "pcie_width": 16,
        "pcie_current_generation": 1,
        "pcie_current_width": 16,
        **differs,
    }
    for name, value in fields.items():
        setattr(device, name, value)
    return device


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    identity.forget()
    yield
    identity.forget()
    transfer._router.cache_clear()


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """A machine with three fake CUDA devices: 0 and 1 joined by NVLink, 2 in a slot of four lanes."""
    library().fake_reset(
        1
    )  # it would refuse host memory where the tests before gave some of its own back
    state = types.SimpleNamespace(
        nvml={0: gpu(0, nvlinks=4), 1: gpu(1, nvlinks=4), 2: gpu(2, pcie_current_width=4)},
        pairs=frozenset({(0, 1)}),
        driver="570.1",
        routers=0,
    )

    def router(*_: Any) -> Any:
        state.routers += 1
        return core().TransferRouter(LIBRARY, LIBRARY, sample_bytes=65536, chunk=16384)

    monkeypatch.setattr(
        identity,
        "read_machine",
        lambda: identity.Machine(dict(state.nvml), state.pairs, state.driver),
    )
    monkeypatch.setattr(measuring, "_router", router)
    monkeypatch.setattr(measuring, "accelerators", lambda: ["cuda:0", "cuda:1", "cuda:2"])
    return state


def report(**options: Any) -> links.Report:
    return links.report(sample_bytes=SIZE, **options)


def test_every_pair_is_measured_and_kept(machine: types.SimpleNamespace) -> None:
    lines: list[str] = []
    first = report(progress=lines.append)
    assert len(first.links) == 3 * 4 + 6
    assert not [link.error for link in first.links if link.error]
    assert all(link.gbps > 0 and link.bytes == SIZE and link.measured for link in first.links)
    assert lines[0] == "1 of 18: cpu to cuda:0, pinned memory"
    again = report(progress=lines.append)
    assert again.cached
    assert again.links == first.links
    assert len(lines) == 18, "nothing was measured again"
    assert machine.routers == 1
    assert not report(refresh=True).cached
    assert machine.routers == 2


def test_links_say_what_they_are(machine: types.SimpleNamespace) -> None:
    found = report()
    kinds = {
        (link.source, link.target): (link.kind, link.nominal, link.peer_access)
        for link in found.links
    }
    assert kinds["cuda:0", "cuda:1"] == ("NVLink x4", 50.8, True)
    assert kinds["cuda:1", "cuda:2"] == ("PCIe 4.0 x4", 0.0, True)
    assert kinds["cpu", "cuda:0"] == ("PCIe 4.0 x16", 27.2, None)
    assert found.link("cuda:0", "cuda:1").way in ("peer", "staged")  # type: ignore[union-attr]
    assert found.link("cpu", "cuda:0", "pinned").way == "direct"  # type: ignore[union-attr]
    assert found.link("cpu", "cuda:9") is None
    assert found.gbps("cpu", "cuda:9") == 0.0


@pytest.mark.parametrize(
    ("change", "value"), [("driver", "580.2"), ("torch", "9.9"), ("schema", 0), ("links", [{}])]
)
def test_the_cache_is_ignored_when_it_may_be_wrong(
    machine: types.SimpleNamespace, change: str, value: Any
) -> None:
    report()
    assert links.cached_gbps("cpu", "cuda:0") > 0
    contents = json.loads(links.cache_path().read_text())
    links.cache_path().write_text(json.dumps({**contents, change: value}))
    assert links.cached_gbps("cpu", "cuda:0") == 0.0
    assert links.cached_ways() == []
    assert not report().cached


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"schema": 1}', "\udcff"])
def test_a_damaged_cache_counts_as_none(machine: types.SimpleNamespace, text: str) -> None:
    links.cache_path().parent.mkdir(parents=True)
    links.cache_path().write_bytes(text.encode(errors="surrogateescape"))
    assert links.cached_gbps("cpu", "cuda:0") == 0.0
    assert len(report().links) == 18
    assert links.cached_gbps("cpu", "cuda:0") > 0


def test_a_cache_that_cannot_be_written_is_said_and_no_error(
    machine: types.SimpleNamespace, tmp_path: Path
) -> None:
    (tmp_path / "distorch").write_text("a file, not a folder")
    lines: list[str] = []
    assert len(report(progress=lines.append).links) == 18
    assert "could not be written" in lines[-1]


def test_devices_are_known_by_uuid_not_by_number(machine: types.SimpleNamespace) -> None:
    report()
    before = links.cached_gbps("cuda:2", "cuda:0")
    machine.nvml = {0: machine.nvml[2], 1: machine.nvml[0]}  # CUDA_VISIBLE_DEVICES=2,0
    identity.forget()
    assert links.cached_gbps("cuda:0", "cuda:1") == before
    assert links.cached_gbps("cuda:2", "cuda:0") == 0.0
    assert {pair[:2] for pair in links.cached_ways()} == {(0, 1), (1, 0), (-1, 0), (0, -1), (-1, 1), (1, -1)}  # fmt: skip


def test_other_devices_go_by_number_and_none_is_initialised(
    machine: types.SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def touched(*_: Any) -> str:
        pytest.fail("a device was asked for its name, which initialises it")

    monkeypatch.setattr(torch.cuda, "get_device_name", touched)
    assert identity.key_of("cuda:2") == "GPU-2abc"
    assert identity.key_of("cuda:5") == "cuda:5"
    assert identity.key_of("xpu") == "xpu:0"
    assert [identity.key_of(name) for name in ("cpu", "mps:0")] == ["cpu", "mps"]


def test_a_part_measured_again_keeps_the_rest(machine: types.SimpleNamespace) -> None:
    report()
    links.report(["cuda:0"], refresh=True, sample_bytes=SIZE // 2)
    assert links.cached_gbps("cuda:2", "cuda:1") > 0
    rows = json.loads(links.cache_path().read_text())["links"]
    assert len(rows) == 18
    assert sorted({row["bytes"] for row in rows}) == [SIZE // 2, SIZE]


def test_readers_see_a_whole_file_while_it_is_written(machine: types.SimpleNamespace) -> None:
    report()
    row = json.loads(links.cache_path().read_text())["links"][0]
    stop = threading.Event()
    seen: list[int] = []

    def read() -> None:
        while not stop.is_set():
            seen.append(len(json.loads(read_whole(links.cache_path()))["links"]))
            time.sleep(0.001)  # Windows replaces a file only between two readings

    thread = threading.Thread(target=read)
    thread.start()
    for _ in range(50):
        cache.save([row])
    stop.set()
    thread.join()
    assert set(seen) == {18}
    assert [p.name for p in links.cache_path().parent.iterdir()] == ["links.json"]


def test_the_planner_takes_donors_by_their_measured_speed(
    machine: types.SimpleNamespace,
) -> None:
    identity_keys = {i: machine.nvml[i].uuid for i in range(3)}
    rows = [
        {
            "source": identity_keys[donor],
            "target": identity_keys[0],
            "memory": "device",
            "gbps": gbps,
            "way": "peer",
            "peer_access": True,
            "kind": "",
            "bytes": SIZE,
            "measured": "2026-01-01T00:00:00+00:00",
        }
        for donor, gbps in ((1, 5.0), (2, 40.0))
    ]
    cache.save(rows)
    infos = [devices.DeviceInfo(f"cuda:{i}", "cuda", i, total=GIB, free=GIB) for i in range(3)]
    infos.append(devices.DeviceInfo("cpu", "cpu", 0, total=8 * GIB, free=8 * GIB))
    table = device_table("cuda:0", infos=infos)
    assert [d.link_gbps for d in table] == [0.0, 5.0, 40.0, 0.0]
    blocks = [allocation.Block(f"b{i}", 100 << 20) for i in range(15)]
    plan = allocation.make_plan(allocation.parse("auto", table), blocks, table, "cuda:0")
    held = set(plan.placement.values())
    assert held == {"cuda:0", "cuda:2"}, "the slower donor is not needed"


def test_the_measured_ways_are_taken_over_by_the_router(
    machine: types.SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    report()
    adopted: list[tuple[int, int, str, float]] = []
    fake = types.SimpleNamespace(adopt=lambda *way: adopted.append(way))
    monkeypatch.setattr(
        transfer, "core", lambda: types.SimpleNamespace(TransferRouter=lambda **_: fake)
    )
    transfer._router.cache_clear()
    assert transfer._router() is fake
    assert adopted == links.cached_ways()
    assert len(adopted) == 6 + 6


def test_a_link_that_fails_is_reported_and_not_kept(
    machine: types.SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing:
        def measure(self, source: int, *_: Any) -> float:
            if source == 1:
                raise RuntimeError("cudaMemcpyAsync failed\nwith detail")
            if source == 2:
                raise MemoryError
            return 3.0

        def choose(self, source: int, target: int) -> dict[str, Any]:
            return {"way": "staged", "peer_access": False}

    monkeypatch.setattr(measuring, "_router", Failing)
    found = report()
    bad = [link for link in found.links if link.error]
    assert {(link.source, link.error) for link in bad} == {
        ("cuda:1", "cudaMemcpyAsync failed"),
        ("cuda:2", "MemoryError"),
    }
    assert bad[0].gbps == 0.0
    assert links.cached_gbps("cuda:1", "cuda:0") == 0.0
    assert links.cached_gbps("cuda:0", "cuda:1") == 3.0


def test_the_command_prints_matrix_and_table(
    machine: types.SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["links", "--bytes", str(SIZE)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("Measured on 20")
    assert "GB/s from \\ to" in out
    row = next(line for line in out.splitlines() if line.startswith("cuda:0  cuda:1"))
    assert "NVLink x4" in row
    assert row.endswith("50.8")
    assert "  PCIe 3.0 x4     2.1" in out
    assert main(["links", "--json"]) == 0
    contents = json.loads(capsys.readouterr().out)
    assert contents["cached"]
    assert contents["driver"] == "570.1"
    assert len(contents["links"]) == 18
    assert contents["nominal"]["PCIe 4.0 x16"] == 27.2
    assert main(["links"]) == 0
    assert "; --refresh measures again." in capsys.readouterr().out


def test_progress_is_shown_after_a_second(
    machine: types.SimpleNamespace,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from distorch.tools.cli import links as command

    clock = iter([0.0] + [0.5] * 10 + [2.0] * 100)
    monkeypatch.setattr(command.time, "monotonic", lambda: next(clock))
    assert main(["links", "--bytes", "4096"]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("distorch links: 11 of 18: ")
    assert len(lines) == 8


def test_what_is_no_device_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["links", "--devices", "warp:0"]) == 2
    assert "there is no device warp:0; there are:" in capsys.readouterr().err
    distorch_sim.install([SIZE])
    assert main(["links", "--devices", "sim:0", "--bytes", "-5"]) == 2
    assert "a copy needs at least one byte, not -5" in capsys.readouterr().err


class TestSimulated:
    """Nominal links of simulated devices; nothing measured, nothing kept."""

    @pytest.fixture(autouse=True)
    def _sim(self) -> None:
        gc.collect()
        distorch_sim.install([SIZE] * 2, {("cpu", "sim:0"): 10.0, ("sim:0", "sim:1"): 33.0})

    def test_they_report_what_they_were_given(self) -> None:
        found = links.report(["sim:0", "sim:1"])
        assert {(x.source, x.target): x.gbps for x in found.links} == {
            ("cpu", "sim:0"): 10.0,
            ("sim:0", "cpu"): 10.0,
            ("cpu", "sim:1"): 25.0,
            ("sim:1", "cpu"): 25.0,
            ("sim:0", "sim:1"): 33.0,
            ("sim:1", "sim:0"): 33.0,
        }
        assert {x.memory for x in found.links} == {"nominal"}
        assert not links.cache_path().exists()
        assert distorch_sim.transfers() == {}

    def test_the_command_says_so(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["links", "--devices", "sim:0,sim:1,cpu"]) == 0
        out = capsys.readouterr().out
        assert out.startswith("Simulated devices: their nominal speeds, nothing was measured.")
        assert "\nsim:0           10.0      -   33.0\n" in out

    def test_torchs_own_copies_are_measured_and_verified(self) -> None:
        gbps = measuring._by_torch("cpu", "sim:0", "pageable", 4096)
        assert gbps > 0
        assert distorch_sim.copied("cpu", "sim:0") >= 4096 * (1 + measuring.REPEATS)

    def test_wrong_bytes_are_an_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch, "equal", lambda *_: False)
        with pytest.raises(RuntimeError, match="wrong bytes arrived on sim:0 from cpu"):
            measuring._by_torch("cpu", "sim:0", "pageable", 64)


def test_a_machine_without_accelerators_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "accelerators", list)
    assert main(["links"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("There is no accelerator on this machine: nothing to measure.\n")
    assert "NVLink         50.8" in out


def test_the_cache_is_where_the_desktop_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert links.cache_path() == tmp_path / "distorch/links.json"
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    home = tmp_path / ("local" if os.name == "nt" else ".cache")
    for unusable in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", unusable)
        monkeypatch.setenv("HOME", str(tmp_path))
        assert links.cache_path() == home / "distorch/links.json"
