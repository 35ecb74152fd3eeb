# SPDX-License-Identifier: Apache-2.0
"""What widgets become: an allocation string in its full form."""

from __future__ import annotations

import logging
import pathlib
import types

import pytest
import torch

from distorch.allocation import AllocationError, parse


@pytest.mark.parametrize(
    ("expert", "gigabytes", "donors", "text"),
    [
        ("sim:1,2gb;sim:0,*", 4.0, ["cpu"], "sim:1,2gb;sim:0,*#sim:0"),
        ("", 4.0, ["cpu"], "#sim:0;4gb;cpu"),
        ("  ", 2.5, ["sim:1", "cpu"], "#sim:0;2.5gb;sim:1,cpu"),
        ("", 4.0, ["sim:0"], "sim:0,*#sim:0"),  # the compute device is no donor
        ("", 0.0, ["cpu"], "sim:0,*#sim:0"),
        ("#sim:0;4;cpu", 1.0, ["sim:1"], "#sim:0;4gb;cpu"),
        ("#sim:0", 1.0, ["sim:1"], "#sim:0;0b;cpu"),
        ("0.8", 4.0, ["cpu"], "0.8#sim:0"),
        ("auto,reserve=1gb", 4.0, ["cpu"], "auto,reserve=1gb#sim:0"),
        ("cuda:7,2gb;sim:1,2gb;sim:0,*", 4.0, ["cpu"], "sim:1,2gb;sim:0,*#sim:0"),
        ("sim:1,2gb;cuda:7,*", 4.0, ["cpu"], "sim:1,2gb;sim:0,*#sim:0"),
        ("cuda:7,50%", 4.0, ["cpu"], "sim:0,*#sim:0"),
        ("sim:0,2gb;cuda:7,*", 4.0, ["cpu"], "sim:0,2gb;cpu,*#sim:0"),
        ("SIM,2gb;cuda:7,8gb;cpu,4gb", 4.0, ["cpu"], "sim:0,2gb;cpu,*#sim:0"),
        ("cuda:7,8gb;cpu,4gb", 4.0, ["cpu"], "cpu,4gb;sim:0,*#sim:0"),
        ("sim:0,25%;cuda:7,75%", 4.0, ["cpu"], "sim:0,25%#sim:0"),
        ("sim:0,25%,mode=stream;cuda:7,75%", 4.0, ["cpu"], "sim:0,25%,mode=stream#sim:0"),
        ("#cuda:7;4;SIM:1,cuda:8", 4.0, ["cpu"], "#sim:0;4gb;sim:1,cpu"),
        ("#sim:1;4;sim:0", 4.0, ["cpu"], "sim:0,*#sim:0"),
    ],
)
def test_what_widgets_ask_for(pack, expert, gigabytes, donors, text) -> None:
    made = pack.load("patches.placing.request").spec_for("sim:0", expert, gigabytes, donors)
    assert str(made) == text
    assert parse(text, ["cpu", "sim:0", "sim:1", "sim:2"]) == made


def test_a_wrong_string_points_to_its_fault(pack) -> None:
    with pytest.raises(AllocationError, match=r"unknown unit 'xb' at offset 7(.|\n)*\^~"):
        pack.load("patches.placing.request").spec_for("sim:0", "sim:1,2xb;sim:0,*", 4.0, ["cpu"])


def test_missing_devices_are_named_with_what_there_is(pack, caplog) -> None:
    request = pack.load("patches.placing.request")
    with caplog.at_level(logging.WARNING, "DisTorch"):
        assert request.available("cuda:3") == "sim:0"
        assert request.available("cuda:3", default="cpu") == "cpu"
        assert request.available("sim:2") == "sim:2"
        assert request.available(None) == "sim:0"
    assert [r.getMessage() for r in caplog.records] == [
        "the workflow asks for device cuda:3, which is not here: sim:0 is used instead "
        "(there are: cpu, sim:0, sim:1, sim:2)",
        "the workflow asks for device cuda:3, which is not here: cpu is used instead "
        "(there are: cpu, sim:0, sim:1, sim:2)",
    ]


def test_devices_left_out_are_named_once(pack, caplog) -> None:
    with caplog.at_level(logging.WARNING, "DisTorch"):
        pack.load("patches.placing.request").spec_for(
            "sim:0", "cuda:7,2gb;sim:1,1gb;xpu,*", 4.0, []
        )
    assert [r.getMessage() for r in caplog.records] == [
        "the allocation string names devices that are not here: cuda:7, xpu:0 left out "
        "(there are: cpu, sim:0, sim:1, sim:2)"
    ]


def test_other_kinds_store_but_do_not_compute(pack, monkeypatch) -> None:
    module = types.ModuleType("torch.npu")
    module.device_count = lambda: 1
    module.is_initialized = lambda: False
    monkeypatch.setattr(torch, "npu", module, raising=False)
    request, devices = pack.load("patches.placing.request"), pack.load("patches.seams.devices")
    assert request.available("npu", default="cpu") == "npu:0"
    assert request.available("npu:0") == "sim:0"
    assert "npu:0" in devices.names()
    assert "npu:0" not in devices.computing()
    made = request.spec_for("sim:0", "npu:0,2gb;cpu,*", 4.0, [])
    assert str(made) == "npu:0,2gb;cpu,*#sim:0"


def test_our_own_folder_is_not_taken_for_the_predecessor(pack, tmp_path) -> None:
    nodes = pack.load("nodes")
    own = pathlib.Path(nodes.__file__).resolve().parent.parent
    (tmp_path / "ComfyUI-MultiGPU").symlink_to(own)
    (tmp_path / "ComfyUI-GGUF").mkdir()
    (tmp_path / "notes.py").touch()
    assert nodes.other_folders([tmp_path, tmp_path / "missing"]) == ["ComfyUI-GGUF"]
