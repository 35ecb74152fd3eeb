# SPDX-License-Identifier: Apache-2.0
"""The table of devices that the pack plans with is the library's."""

from __future__ import annotations

import distorch_sim
import pytest
import torch

from distorch.allocation import Block, Options, make_plan, parse
from distorch.device_table import device_table
from distorch.devices import device_names

MB, GB = 1 << 20, 1 << 30


@pytest.fixture(autouse=True)
def _slow_and_fast_donor(comfy) -> None:
    distorch_sim.install([GB] * 3, {("sim:0", "sim:1"): 5.0, ("sim:0", "sim:2"): 50.0})


def rows(table) -> list[tuple[str, int | None, float]]:
    return [(row.device, row.total, row.link_gbps) for row in table]


def test_auto_takes_donors_by_their_links(pack) -> None:
    donors = pack.load("patches.placing.donors")
    spec = parse("auto").on("sim:0")
    table = donors.table(spec, "sim:0", empty=False)
    assert rows(table) == rows(device_table("sim:0", spec))
    assert [(row.device, row.link_gbps) for row in table] == [
        ("sim:0", 0.0),
        ("sim:1", 5.0),
        ("sim:2", 50.0),
        ("cpu", distorch_sim.HOST_LINK_GBPS),
    ]
    blocks = [Block(f"b{i}", 100 * MB) for i in range(12)]
    plan = make_plan(spec, blocks, table, options=Options(order="contiguous"))
    assert plan.totals == {"sim:0": 900 * MB, "sim:2": 300 * MB, "sim:1": 0, "cpu": 0}


def test_what_counts_as_free(pack) -> None:
    donors = pack.load("patches.placing.donors")
    held = [torch.empty(MB, dtype=torch.uint8, device=f"sim:{i}") for i in range(2)]
    spec = parse("sim:1,1mb;cpu,*", device_names())

    def taken(empty: bool) -> dict[str, int]:
        table = donors.table(spec, "sim:0", empty=empty)
        return {row.device: row.total - row.free for row in table}

    # The core makes room on the compute device, and the weights are in the host's memory already.
    assert taken(empty=False) == {"sim:0": 0, "sim:1": MB, "sim:2": 0, "cpu": 0}
    assert taken(empty=True) == {"sim:0": 0, "sim:1": 0, "sim:2": 0, "cpu": 0}
    del held


def test_no_room_is_asked_of_the_core_on_a_kind_that_it_does_not_manage(
    pack, comfy, monkeypatch
) -> None:
    donors, devices = pack.load("patches.placing.donors"), pack.load("patches.seams.devices")
    asked: list[str] = []
    monkeypatch.setattr(comfy.mm, "load_models_gpu", lambda models: asked.append(models))
    monkeypatch.setattr(devices, "computing", lambda: ["cpu", "sim:0"])
    donors._make_room(None, None, "npu:0")
    assert asked == []


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("sim:0,*#sim:0", ["sim:0", "cpu"]),
        ("SIM:2,1mb;sim:0,*#sim:0", ["sim:0", "sim:2", "cpu"]),
        ("#sim:0;4.0;sim:1", ["sim:0", "sim:1", "cpu"]),
        ("auto#sim:0", ["sim:0", "sim:1", "sim:2", "cpu"]),
    ],
)
def test_devices_that_the_string_does_not_name_are_left_alone(
    pack, monkeypatch, text, asked
) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr(
        "distorch.device_table.list_devices",
        lambda asked: seen.append(list(filter(asked, device_names()))) or [],
    )
    pack.load("patches.placing.donors").table(parse(text, device_names()), "sim:0", empty=False)
    assert seen == [asked], "CUDA makes a context on each device that is asked"
