# SPDX-License-Identifier: Apache-2.0
"""Devices, caches and snapshots, on simulated devices and on stand-ins for other vendors' modules."""

from __future__ import annotations

import gc
import os
import re
import subprocess
import sys
import types

import distorch_sim
import pytest
import torch

from distorch import _load, caches, devices
from distorch._load import core
from distorch.allocation import parse
from distorch.device_table import concerned, device_table
from distorch.memory import snapshots

MIB = 1 << 20


@pytest.fixture(autouse=True)
def _sim() -> None:
    gc.collect()
    distorch_sim.install([64 * MIB, 32 * MIB, MIB], {("cpu", "sim:0"): 10.0})
    for index in range(3):
        torch.sim.reset_peak_memory_stats(index)


def other_kind(monkeypatch, kind: str = "npu", **functions) -> types.ModuleType:
    """Give torch the device module of another vendor, with two devices."""
    module = types.ModuleType(f"torch.{kind}")
    for name, function in {"device_count": lambda: 2, **functions}.items():
        setattr(module, name, function)
    monkeypatch.setattr(torch, kind, module, raising=False)
    return module


def must_not_run(*_args):
    # Not an error that the code under test would take for "cannot answer".
    pytest.fail("an unused device was touched")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("SIM:1", "sim:1"),
        ("sim", "sim:0"),
        (" cpu ", "cpu"),
        ("CPU:0", "cpu"),
        ("mps:0", "mps"),
        ("corex:1", "cuda:1"),
        ("IXUCA", "cuda:0"),
        ("directml:0", "privateuseone:0"),
    ],
)
def test_names_become_canonical(text: str, name: str) -> None:
    assert devices.canonical_name(*devices.parse_name(text)) == name


@pytest.mark.parametrize("text", ["", "sim:", "sim:x", "1", "sim:-1", "a b"])
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{text!r} is no device name; expected a kind")):
        devices.parse_name(text)


@pytest.mark.parametrize("name", ["sim:3", "warp:0"])
def test_a_device_that_does_not_exist_names_those_that_do(name: str) -> None:
    with pytest.raises(
        ValueError, match=rf"there is no device {name}; there are: .*sim:0, sim:1, sim:2, cpu$"
    ):
        devices.device_info(name)


def test_device_modules() -> None:
    assert devices.device_module("sim") is torch.sim
    assert devices.device_module("cpu") is None
    assert devices.device_module("warp") is None
    assert devices.device_count("warp") == 0


def test_lists_every_device_cpu_last() -> None:
    infos = devices.list_devices()
    sims = [info for info in infos if info.kind == "sim"]
    assert [info.device for info in sims] == ["sim:0", "sim:1", "sim:2"]
    assert [info.total for info in sims] == [64 * MIB, 32 * MIB, MIB]
    assert sims[1].name == "Simulated accelerator 1"
    assert [info.device for info in infos if info.kind == "cpu"] == ["cpu"]
    assert infos[-1].device == "cpu"


def test_memory_follows_allocations() -> None:
    held = torch.empty(MIB, dtype=torch.uint8, device="sim:1")
    assert devices.free_memory("sim:1") == 31 * MIB
    assert devices.device_info("sim:1").used == MIB
    assert devices.device_info("sim:1").allocated == MIB
    del held
    assert devices.free_memory("sim:1") == 32 * MIB


def test_looking_allocates_nothing() -> None:
    distorch_sim.reset_counters()
    devices.list_devices()
    snapshots.snapshot_line("x")
    caches.clear_caches()
    assert [distorch_sim.allocation_count(f"sim:{i}") for i in range(3)] == [0, 0, 0]
    assert not torch.cuda.is_initialized()


def test_looking_in_a_fresh_process_initialises_no_cuda() -> None:
    code = (
        "import torch; from distorch import devices, caches; from distorch.memory import snapshots;"
        "devices.list_devices(); caches.clear_caches(); print(snapshots.snapshot_line('t'));"
        "assert not torch.cuda.is_initialized()"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.startswith("tag=t|cpu=")


def test_host_memory_is_within_the_machines() -> None:
    host = devices.device_info("cpu")
    assert 0 < host.free <= host.total


def test_an_uninitialised_kind_is_not_touched(monkeypatch) -> None:
    touching = (
        "mem_get_info",
        "memory_reserved",
        "memory_allocated",
        "get_device_name",
        "get_device_properties",
        "set_device",
        "synchronize",
        "empty_cache",
    )
    other_kind(monkeypatch, is_initialized=lambda: False, **dict.fromkeys(touching, must_not_run))
    info = next(i for i in devices.list_devices() if i.device == "npu:1")
    assert (info.total, info.free, info.used, info.initialized) == (None, None, None, False)
    assert not any(name.startswith("npu") for name in devices.devices_in_use())
    assert caches.clear_caches(["npu:0", "npu:1"]).before == {}


def test_cached_memory_counts_as_free(monkeypatch) -> None:
    other_kind(
        monkeypatch,
        mem_get_info=lambda _: (10, 100),
        memory_reserved=lambda _: 40,
        memory_allocated=lambda _: 15,
    )
    info = devices.device_info("npu:0")
    assert (info.total, info.free, info.allocated, info.reserved) == (100, 35, 15, 40)


def test_a_module_that_tells_nothing_leaves_memory_unknown(monkeypatch) -> None:
    other_kind(monkeypatch)
    info = devices.device_info("npu:0")
    assert (info.total, info.free, info.allocated, info.name) == (None, None, 0, "")


def test_the_one_device_of_a_kind_tells_by_other_functions(monkeypatch) -> None:
    mps = other_kind(
        monkeypatch,
        "mps",
        recommended_max_memory=lambda: 100,
        driver_allocated_memory=lambda: 40,
        current_allocated_memory=lambda: 15,
    )
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    info = devices.device_info("mps")
    assert (info.total, info.free, info.allocated, info.reserved) == (100, 60, 15, 40)
    del mps.recommended_max_memory
    assert devices.device_info("mps").free is None


def test_directml_is_an_add_on(monkeypatch) -> None:
    assert "privateuseone:0" not in devices.device_names()
    module = types.ModuleType("torch_directml")
    module.device_count = lambda: 2
    module.device_name = lambda index: f"Radeon {index}"
    monkeypatch.setitem(sys.modules, "torch_directml", module)
    monkeypatch.setattr(torch._C, "_get_privateuse1_backend_name", lambda: "privateuseone")
    assert {"privateuseone:0", "privateuseone:1"} <= set(devices.device_names())
    info = devices.device_info("directml:1")
    assert (info.device, info.name, info.free) == ("privateuseone:1", "Radeon 1", None)


class Lazy:
    """A kind that is initialised by the first question for memory, and counts those."""

    def __init__(self, monkeypatch, kind: str = "npu") -> None:
        self.asked: list[int] = []
        other_kind(
            monkeypatch,
            kind,
            is_initialized=lambda: bool(self.asked),
            mem_get_info=self.mem_get_info,
            memory_reserved=lambda _: 0,
            memory_allocated=lambda _: 0,
        )

    def mem_get_info(self, index: int) -> tuple[int, int]:
        self.asked.append(index)
        return 6 << 30, 8 << 30


def free_of(table, name: str) -> int | None:
    return next(row.free for row in table if row.device == name)


def test_a_device_that_the_string_names_is_asked(monkeypatch) -> None:
    lazy = Lazy(monkeypatch)
    assert free_of(device_table("sim:0"), "npu:0") is None
    assert free_of(device_table("sim:0", parse("cpu,*")), "npu:1") is None
    assert lazy.asked == []
    spec = parse("npu:1,1gb;cpu,*", devices.device_names())
    assert free_of(device_table("sim:0", spec), "npu:1") == 6 << 30
    assert lazy.asked == [1]


def test_auto_asks_devices_of_the_compute_devices_kind(monkeypatch) -> None:
    lazy = Lazy(monkeypatch)
    spec = parse("auto")

    def names(compute: str) -> list[str]:
        return [name for name in devices.device_names() if concerned(spec, compute)(name)]

    assert names("sim:0") == ["sim:0", "sim:1", "sim:2", "cpu"]
    assert free_of(device_table("sim:0", spec), "npu:0") is None
    assert lazy.asked == []
    assert names("npu:0") == ["npu:0", "npu:1", "cpu"]
    assert free_of(device_table(spec=spec.on("npu:0")), "npu:1") == 6 << 30


def test_the_table_counts_devices_as_empty_where_it_is_told() -> None:
    held = torch.empty(MIB, dtype=torch.uint8, device="sim:0")
    assert free_of(device_table("sim:0"), "sim:0") == 63 * MIB
    assert free_of(device_table("sim:0", empty=["sim:0"]), "sim:0") == 64 * MIB
    del held


def gpu(index: int, name: str = "G") -> object:
    device = core().NvmlDevice()
    device.index, device.uuid, device.name = index, f"GPU-{index}{index}", name
    device.total, device.used, device.free = 24 << 30, (4 - index) << 30, (20 + index) << 30
    return device


def piece(index: int, number: int) -> object:
    """A slice of GPU `index`, of 5 GB."""
    device = gpu(index)
    device.slice, device.uuid, device.name = number, f"MIG-{index}{number}", "G MIG 1g.5gb"
    device.total, device.free = 5 << 30, 4 << 30
    return device


def cuda_machine(monkeypatch, gpus: list, visible: str | None) -> None:
    """Let NVML know these GPUs; touching one through torch.cuda fails the test."""
    binary = types.SimpleNamespace(
        nvml_devices=lambda: (gpus, "580", ""),
        visible_nvml=core().visible_nvml,
        torch_kind=core().torch_kind,
        host_memory=core().host_memory,
    )
    monkeypatch.setattr(_load, "C", binary)
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    count = len(core().visible_nvml(gpus))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    for name in ("mem_get_info", "memory_reserved", "current_device", "get_device_name"):
        monkeypatch.setattr(torch.cuda, name, must_not_run)


@pytest.mark.parametrize(
    ("visible", "order"),
    [
        (None, [0, 1, 2]),
        ("1,0", [1, 0]),
        ("GPU-22", [2]),
        ("0,9,1", [0]),
        ("-1", []),
        pytest.param(
            "",
            [],
            marks=pytest.mark.skipif(os.name == "nt", reason="Windows knows no empty variable"),
        ),
    ],
)
def test_unused_cuda_devices_are_asked_through_nvml(monkeypatch, visible, order) -> None:
    cuda_machine(monkeypatch, [gpu(0), gpu(1), gpu(2)], visible)
    infos = [i for i in devices.list_devices() if i.kind == "cuda"]
    assert [i.nvml_index for i in infos] == order
    assert [i.uuid for i in infos] == [f"GPU-{n}{n}" for n in order]
    assert [i.free >> 30 for i in infos] == [20 + n for n in order]
    assert not any(i.initialized for i in infos)


@pytest.mark.parametrize(
    ("visible", "cuda", "order"),
    [
        (None, ["11", "00"], [1, 0]),  # the fastest first
        ("1,0", ["00", "11"], [0, 1]),  # they number CUDA's devices, not the slots
        ("0", ["11"], [1]),
        (None, ["unknown", "11"], [0, 1]),
        (None, ["11", "unknown"], [1, None]),  # its place in the order is taken
    ],
)
def test_cuda_devices_in_use_are_told_apart_by_uuid(monkeypatch, visible, cuda, order) -> None:
    cuda_machine(monkeypatch, [gpu(0), gpu(1)], visible)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 0)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: -1)
    monkeypatch.setattr(
        torch.cuda,
        "get_device_properties",
        lambda index: types.SimpleNamespace(uuid=cuda[index]),
    )
    infos = [i for i in devices.list_devices() if i.kind == "cuda"]
    assert [i.nvml_index for i in infos] == order
    known = [None if n is None else 20 + n for n in order]
    assert [i.free and i.free >> 30 for i in infos] == known


def test_a_device_that_does_not_answer_hides_no_other(monkeypatch) -> None:
    spec = parse("cuda:1,1gb;cpu,*")
    lost = gpu(1)
    lost.total = lost.used = lost.free = None
    cuda_machine(monkeypatch, [gpu(0), lost, gpu(2)], None)
    infos = [i for i in devices.list_devices() if i.kind == "cuda"]
    assert [i.free and i.free >> 30 for i in infos] == [20, None, 22]
    # A string that names it lets the device itself be asked: GB10 shares the host's memory.
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: ((7 + index) << 30, 9 << 30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 0)
    table = device_table("cuda:0", spec)
    assert free_of(table, "cuda:1") == 8 << 30


@pytest.mark.parametrize(
    ("visible", "names", "free"),
    [
        ("MIG-11", ["cuda:0"], [4]),
        ("0", ["cuda:0"], [20]),
        ("0,MIG-10", ["cuda:0", "cuda:1"], [20, 4]),
        ("MIG-9", [], []),
    ],
)
def test_slices_of_a_gpu_have_memory_of_their_own(monkeypatch, visible, names, free) -> None:
    cut = gpu(1)
    cut.cut = True
    cuda_machine(monkeypatch, [gpu(0), cut, piece(1, 0), piece(1, 1)], visible)
    infos = [i for i in devices.list_devices() if i.kind == "cuda"]
    assert [i.device for i in infos] == names
    assert [i.free >> 30 for i in infos] == free
    assert [i.name for i in infos if i.free == 4 << 30] == ["G MIG 1g.5gb"] * free.count(4)


def test_where_cuda_shows_one_device_it_is_the_slice(monkeypatch) -> None:
    cut = gpu(1)
    cut.cut = True
    cuda_machine(monkeypatch, [gpu(0), cut, piece(1, 0)], None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert devices.device_info("cuda:0").uuid == "MIG-10"


def test_a_whole_card_beside_a_slice_is_told_apart_by_uuid(monkeypatch) -> None:
    cut = gpu(1)
    cut.cut = True
    cuda_machine(monkeypatch, [gpu(0), cut, piece(1, 0)], None)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 0)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: -1)
    uuids = ["10", "00"]
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda i: types.SimpleNamespace(uuid=uuids[i])
    )
    infos = [i for i in devices.list_devices() if i.kind == "cuda"]
    assert [(i.uuid, i.total >> 30) for i in infos] == [("MIG-10", 5), ("GPU-00", 24)]


def test_links_are_known_for_simulated_devices_only() -> None:
    assert devices.host_link_gbps("sim:0") == 10.0
    assert devices.host_link_gbps("sim:1", "sim:0") == distorch_sim.PEER_LINK_GBPS
    assert devices.host_link_gbps("cpu") == 0.0
    assert devices.host_link_gbps("cuda:0") == 0.0


def test_the_planners_table() -> None:
    infos = [devices.device_info("sim:0"), devices.device_info("cpu")]
    own, host = device_table("sim:0", reserve=MIB, infos=infos)
    assert (own.device, own.total, own.reserve, own.link_gbps) == ("sim:0", 64 * MIB, MIB, 0.0)
    assert (host.device, host.reserve, host.link_gbps) == ("cpu", 0, 10.0)


def test_caches_are_cleared_and_the_current_device_kept() -> None:
    torch.sim.empty_cache_calls = 0
    torch.sim.set_device(2)
    report = caches.clear_caches(["sim:1", "sim:7"])
    assert list(report.before) == ["sim:1"]
    assert torch.sim.empty_cache_calls == 1
    assert torch.sim.current_device() == 2


def test_each_device_is_current_while_it_is_cleared(monkeypatch) -> None:
    current = [1]
    calls = []
    other_kind(
        monkeypatch,
        memory_reserved=lambda _: 1,
        current_device=lambda: current[0],
        set_device=lambda index: current.__setitem__(0, index),
        synchronize=lambda index: calls.append(("synchronize", index)),
        empty_cache=lambda: calls.append(("empty_cache", current[0])),
    )
    caches.clear_caches(["npu:0", "npu:1"])
    cleared = [("empty_cache", 0), ("empty_cache", 1)]
    assert calls == [("synchronize", 0), ("synchronize", 1), *cleared]
    assert current == [1]


def test_garbage_is_given_back_and_counted() -> None:
    cycle = [torch.empty(MIB, dtype=torch.uint8, device="sim:0")]
    cycle.append(cycle)
    gc.disable()
    try:
        del cycle
        assert caches.clear_caches(collect=False).collected == 0
        assert torch.sim.memory_allocated(0) == MIB
        assert caches.clear_caches().collected > 0
    finally:
        gc.enable()
    assert torch.sim.memory_allocated(0) == 0


def test_one_collection_at_most_and_none_without_a_device(monkeypatch) -> None:
    runs = []
    monkeypatch.setattr(gc, "collect", lambda: runs.append(1) or 0)
    caches.clear_caches(["sim:0", "sim:1"])
    assert len(runs) == 1
    report = caches.clear_caches([])
    assert len(runs) == 1
    assert str(report) == "no device has been used: nothing to clear"


def test_snapshot_line() -> None:
    held = torch.empty(16 * MIB, dtype=torch.uint8, device="sim:1")
    line = snapshots.snapshot_line("after load")
    assert line.startswith("tag=after load|cpu=")
    assert "|sim:1=0.02/0.03|" in line
    assert re.fullmatch(r"tag=after load(\|\w+(:\d+)?=\d+\.\d\d/\d+\.\d\d)+", line)
    del held


def test_a_series_that_is_off_looks_at_nothing(monkeypatch) -> None:
    monkeypatch.setattr(snapshots, "look", must_not_run)
    series = snapshots.SnapshotSeries()
    assert series.record("a", "b") is None
    assert series.summary() == "no snapshots"


def test_a_series_is_bounded_and_summed_up() -> None:
    series = snapshots.SnapshotSeries(capacity=2)
    series.start()
    series.record("run", "first")
    held = torch.empty(32 * MIB, dtype=torch.uint8, device="sim:0")
    series.record("run", "loaded")
    del held
    series.record("run", "unloaded")
    series.stop()
    assert series.record("run", "late") is None
    assert [entry.tag for entry in series.snapshots()] == ["loaded", "unloaded"]
    lines = series.summary().splitlines()
    assert lines[0] == "(1 older snapshots were dropped)"
    assert re.match(r"\[\d\d:\d\d:\d\d\.\d{3}\] run: tag=loaded\|cpu=", lines[1])
    assert "sim:0: min 0.00 GB, max 0.03 GB, change -0.03 GB" in lines
    with pytest.raises(ValueError, match="capacity must be at least 1, not 0"):
        snapshots.SnapshotSeries(0)
