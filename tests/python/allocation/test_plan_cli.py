# SPDX-License-Identifier: Apache-2.0
"""`distorch plan`: the stable interface, byte for byte where it is stable."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from slowness import slowness

from distorch.tools.cli import main

MB, GB = 1 << 20, 1 << 30
DEVICES = [
    {"device": "cuda:0", "total": 24 * GB, "free": 24 * GB, "link_gbps": 50},
    {"device": "cuda:1", "total": 24 * GB, "free": 24 * GB, "reserve": 0, "link_gbps": 25.5},
    {"device": "cpu", "total": 64 * GB, "free": 64 * GB},
]


def write(path: Path, value: object) -> str:
    path.write_text(json.dumps(value))
    return str(path)


@pytest.fixture
def plan(tmp_path, capsys):
    """Run `distorch plan --json` on data; returns the exit status and what it printed as JSON."""

    def run(alloc, blocks, devices=DEVICES, compute="cuda:0", *more):
        status = main(
            [
                "plan",
                "--blocks",
                write(tmp_path / "blocks.json", blocks),
                "--devices",
                write(tmp_path / "devices.json", devices),
                "--alloc",
                alloc,
                "--compute",
                compute,
                "--json",
                *more,
            ]
        )
        printed = capsys.readouterr()
        assert printed.err == ""
        return status, json.loads(printed.out)

    return run


def equal(count: int, size: int = 300 * MB) -> list[dict]:
    return [{"name": f"b{i}", "bytes": size} for i in range(count)]


def test_memory_may_be_unknown(plan):
    devices = [{"device": "cuda:0", "total": None}, {"device": "cpu"}]
    status, found = plan("cuda:0,1gb;cpu,*", equal(10), devices)
    assert status == 0
    assert found["totals"] == {"cuda:0": 900 * MB, "cpu": 2100 * MB}
    assert found["notes"][0].startswith("nobody tells how much memory cuda:0 has free")


@pytest.mark.parametrize("form", [["--json"], []], ids=["json", "tables"])
def test_ten_microseconds_a_block(tmp_path, capsys, form):
    count = 50_000
    rows = [
        {
            "name": f"blocks.{i // 10}.layer.{i % 10}.query",
            "bytes": MB,
            "group": f"blocks.{i // 10}",
        }
        for i in range(count)
    ]
    arguments = [
        "plan",
        "--blocks",
        write(tmp_path / "b.json", rows),
        "--alloc",
        "cuda:0,2gb;cpu,*",
    ]
    arguments += ["--devices", write(tmp_path / "d.json", DEVICES), *form]
    begin = time.process_time()
    assert main(arguments) == 0
    seconds = time.process_time() - begin
    assert "cuda:0" in capsys.readouterr().out
    assert seconds < count * 10e-6 * slowness()


def test_the_cap_of_the_compute_device_counts_the_slots(plan, tmp_path, capsys):
    rows = [
        {"name": f"blocks.{i // 2}.{i % 2}", "bytes": 100 * MB, "group": f"blocks.{i // 2}"}
        for i in range(40)
    ]
    _, found = plan("cuda:0,1gb;cpu,*", rows)
    assert found["totals"] == {"cuda:0": 600 * MB, "cpu": 3400 * MB}  # two slots of 200 MB
    _, found = plan("cuda:0,1gb;cpu,*", rows, DEVICES, "cuda:0", "--slots", "0")
    assert found["totals"] == {"cuda:0": 1000 * MB, "cpu": 3000 * MB}
    arguments = ["plan", "--blocks", str(tmp_path / "blocks.json"), "--alloc", "cuda:0,1gb;cpu,*"]
    arguments += ["--devices", str(tmp_path / "devices.json")]
    assert main(arguments) == 0
    assert "2 of 200.00 MB" in capsys.readouterr().out
    assert main([*arguments, "--slots", "-1"]) == 2
    assert "--slots must be a number of slots, 0 or more" in capsys.readouterr().err


def test_a_plan_has_three_keys(plan):
    status, out = plan("cuda:0,2.5gb;cuda:1,3.0g;cpu,*", equal(40))
    assert status == 0
    assert list(out) == ["placement", "totals", "notes"]
    assert out["totals"] == {"cuda:0": 2400 * MB, "cuda:1": 3000 * MB, "cpu": 6600 * MB}
    assert list(out["placement"]) == [f"b{i}" for i in range(40)]
    assert out["notes"] == []


def test_every_field_of_a_block_counts(plan):
    blocks = [
        {"name": "embed", "bytes": MB, "pinned": True, "patched": True},
        {"name": "head", "bytes": MB, "pinned": "must stay", "group": None},
        {"name": "a", "bytes": 1.0 * MB, "group": "g", "tied": "t", "pinned": False},
        {"name": "b", "bytes": MB, "group": "g", "tied": "t", "pinned": None},
    ]
    status, out = plan("cuda:0,3mb;cuda:1,*", blocks)
    assert status == 0
    assert out["placement"] == {"embed": "cuda:0", "head": "cuda:0", "a": "cuda:1", "b": "cuda:1"}


def test_a_bad_string_is_status_2_with_its_place(plan):
    status, out = plan("cuda:0,1.5xyz;cpu,*", equal(2))
    assert status == 2
    assert out == {
        "error": {
            "message": "allocation string: unknown unit 'xyz' at offset 10; expected b, kb, mb, "
            "gb, tb or %\n  cuda:0,1.5xyz;cpu,*\n            ^~~",
            "offset": 10,
            "expected": "b, kb, mb, gb, tb or %",
        }
    }
    status, out = plan("cuda:9,1gb", equal(2))
    assert (status, out["error"]["offset"]) == (2, 0)
    assert out["error"]["expected"] == "one of cuda:0, cuda:1, cpu"


def test_nothing_fits_is_status_2_with_the_candidates(plan):
    status, out = plan("cuda:0,1gb;cpu,1gb", equal(40))
    assert status == 2
    assert list(out["error"]) == ["message", "candidates"]
    assert out["error"]["candidates"] == [
        {"device": "cuda:0", "asked": GB, "cap": GB, "free": 24 * GB},
        {"device": "cpu", "asked": 11100 * MB, "cap": GB, "free": 64 * GB},
    ]


def test_strict_and_order_are_options(plan):
    devices = [dict(row) for row in DEVICES]
    devices[1]["free"] = GB
    text = "cuda:0,600mb;cuda:1,2gb;cpu,*"
    status, out = plan(text, equal(10), devices)
    assert status == 0
    assert out["totals"]["cuda:1"] == 900 * MB
    assert "its cap is lowered to 1.00 GB" in out["notes"][0]
    status, out = plan(text, equal(10), devices, "cuda:0", "--strict")
    assert status == 2
    assert "(strict)" in out["error"]["message"]
    _, out = plan(text, equal(4), DEVICES, "cuda:0", "--order", "contiguous")
    assert list(out["placement"].values()) == ["cuda:0"] * 2 + ["cuda:1"] * 2


@pytest.mark.parametrize(
    ("blocks", "devices", "compute", "message"),
    [
        ({}, DEVICES, "cuda:0", "blocks.json: expected a list, found dict"),
        ([1], DEVICES, "cuda:0", "blocks.json: row 0: expected an object, found int"),
        ([{"bytes": 1}], DEVICES, "cuda:0", 'row 0: "name" must be a string'),
        ([{"name": "a"}], DEVICES, "cuda:0", '"bytes" must be a number of bytes, 0 or more'),
        ([{"name": "a", "bytes": -1}], DEVICES, "cuda:0", '"bytes" must be a number of bytes'),
        ([{"name": "a", "bytes": True}], DEVICES, "cuda:0", '"bytes" must be a number of bytes'),
        ([{"name": "a", "bytes": 1, "tied": 3}], DEVICES, "cuda:0", '"tied" must be a string'),
        (
            [{"name": "a", "bytes": 1, "pinned": 3}],
            DEVICES,
            "cuda:0",
            '"pinned" must be true, false',
        ),
        ([{"name": "a", "bytes": 1, "patched": "no"}], DEVICES, "cuda:0", '"patched" must be true'),
        ([{"name": "\ud800", "bytes": 1}], DEVICES, "cuda:0", '"name" has half of a surrogate'),
        ([], [{**DEVICES[0], "link_gbps": float("nan")}], "cuda:0", '"link_gbps" must be a number'),
        ([], [{**DEVICES[0], "link_gbps": float("inf")}], "cuda:0", '"link_gbps" must be a number'),
        ([], [], "cuda:5", "there is no compute device cuda:5; expected one of cpu"),
        ([], [{"device": "x y", "total": 1, "free": 1}], "cpu", "not the name of a device: 'x y'"),
        ([], [{**DEVICES[0], "link_gbps": -1}], "cuda:0", '"link_gbps" must be a number of GB/s'),
        ([], DEVICES, "cuda:5", "there is no compute device cuda:5"),
        ([], DEVICES, "?", "--compute: not the name of a device: '?'"),
        (equal(1) * 2, DEVICES, "cuda:0", "two blocks are named 'b0'"),
    ],
)
def test_wrong_input_is_status_2(plan, blocks, devices, compute, message):
    status, out = plan("cpu,*", blocks, devices, compute)
    assert status == 2
    assert message in out["error"]["message"]


def test_a_string_that_is_no_text_is_an_error_with_its_place(plan):
    status, out = plan("cuda:0,1gb\udcff;cpu,*", equal(2))
    assert status == 2
    assert out["error"]["offset"] == 10
    assert out["error"]["message"].endswith("\n  cuda:0,1gb?\n            ^")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[" * 100_000, "blocks.json: nested too deeply"),
        ("{", "blocks.json: Expecting property name"),
        ("\ufeff[]", None),
    ],
)
def test_files_are_read_or_refused(tmp_path, capsys, text, expected):
    path = tmp_path / "blocks.json"
    path.write_text(text, encoding="utf-8")
    table = write(tmp_path / "d.json", DEVICES)
    status = main(["plan", "--blocks", str(path), "--devices", table, "--alloc", "cpu,*", "--json"])
    out = json.loads(capsys.readouterr().out)
    if expected is None:
        assert (status, out["placement"]) == (0, {})
    else:
        assert status == 2
        assert expected in out["error"]["message"]


@pytest.mark.parametrize(
    "arguments", [["nowhere.safetensors"], ["--blocks", "nowhere.safetensors"]]
)
def test_a_file_that_is_not_there_is_named_once(tmp_path, capsys, arguments):
    table = write(tmp_path / "d.json", DEVICES)
    assert main(["plan", *arguments, "--devices", table, "--alloc", "cpu,*"]) == 2
    said = capsys.readouterr().err
    assert said.count("nowhere.safetensors") == 1
    assert "No such file or directory" in said


def test_without_json_the_tables_and_a_plain_error(tmp_path, capsys):
    arguments = [
        "plan",
        "--blocks",
        write(tmp_path / "b.json", equal(4)),
        "--devices",
        write(tmp_path / "d.json", DEVICES),
    ]
    assert main([*arguments, "--alloc", "cuda:0,600mb;cpu,*"]) == 0
    assert "DisTorch2 Model Final Device/Layer Assignments" in capsys.readouterr().out
    assert main([*arguments, "--alloc", "cuda:0"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("distorch plan: allocation string: the string ends where")
    assert main(["plan", "--alloc", "auto"]) == 2
    assert "give either a model file or --blocks" in capsys.readouterr().err
    assert main(["plan", "--blocks", "nowhere.json", "--devices", "x", "--alloc", "auto"]) == 2
    assert "No such file" in capsys.readouterr().err


def test_the_command_runs_as_a_process(tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "distorch",
            "plan",
            "--blocks",
            write(tmp_path / "b.json", equal(4)),
            "--devices",
            write(tmp_path / "d.json", DEVICES),
            "--alloc",
            "cuda:0,600mb;cpu,*",
            "--compute",
            "cuda:0",
            "--json",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["totals"] == {"cuda:0": 600 * MB, "cpu": 600 * MB}


def safetensors(path: Path, tensors: dict[str, int]) -> Path:
    header, offset = {}, 0
    for name, size in tensors.items():
        header[name] = {"dtype": "U8", "shape": [size], "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(offset))
    return path


def test_a_file_is_planned_from_its_header(tmp_path, capsys):
    tensors = {"embed.weight": 64}
    for layer in range(4):
        for part in ("q", "k"):
            tensors[f"layers.{layer}.{part}.weight"] = 96
            tensors[f"layers.{layer}.{part}.bias"] = 4
    path = safetensors(tmp_path / "model.safetensors", tensors)
    table = write(tmp_path / "d.json", DEVICES)
    arguments = ["plan", str(path), "--devices", table, "--alloc", "cuda:0,464b;cpu,*", "--json"]
    assert main([*arguments, "--order", "contiguous"]) == 0
    out = json.loads(capsys.readouterr().out)
    assert out["totals"] == {"cuda:0": 464, "cpu": 400}
    on_gpu = [name for name, device in out["placement"].items() if device == "cuda:0"]
    assert on_gpu == ["embed", "layers.0.q", "layers.0.k", "layers.1.q", "layers.1.k"]
    path.write_bytes(b"not a model")
    assert main(arguments) == 2
    assert "model.safetensors" in json.loads(capsys.readouterr().out)["error"]["message"]


def test_without_a_table_the_devices_of_this_machine_are_used(tmp_path, capsys):
    path = safetensors(tmp_path / "model.safetensors", {"a.weight": 64, "b.weight": 32})
    assert main(["plan", str(path), "--alloc", "cpu,*", "--compute", "cpu", "--json"]) == 0
    out = json.loads(capsys.readouterr().out)
    assert out["placement"] == {"a": "cpu", "b": "cpu"}
    assert out["totals"] == {"cpu": 96}


def grouped(count: int) -> list[dict]:
    return [{"name": f"l.{i}.w", "bytes": 300 * MB, "group": f"l.{i}"} for i in range(count)]


def test_a_step_is_predicted_with_the_way_of_each_donor(plan):
    string = "cuda:0,6601mb;cuda:1,*"  # 20 groups, and two slots
    status, shown = plan(
        string, grouped(40), DEVICES, "cuda:0", "--step-seconds", "0.1", "--activations", "10485760"
    )
    assert status == 0
    # 20 groups of 300 MB at 25.5 GB/s, or 20 MB there and back.
    assert shown["step"]["modes"] == {"cuda:1": "migrate"}
    assert shown["step"]["seconds"] == pytest.approx(0.1 + 20 * MB / (25.5 * GB))
    _, shown = plan(
        f"{string},mode=stream", grouped(40), DEVICES, "cuda:0", "--step-seconds", "0.1"
    )
    assert shown["step"]["modes"] == {"cuda:1": "stream"}
    assert shown["step"]["seconds"] == pytest.approx(6000 / 1024 / 25.5)
    _, shown = plan("cuda:0,50%;cpu,*", grouped(40), DEVICES, "cuda:0", "--step-seconds", "0.1")
    assert shown["step"] == {"seconds": 0.0, "modes": {"cpu": "stream"}}
    for seconds in ("0", "nan", "inf"):
        assert plan("cpu,*", grouped(4), DEVICES, "cpu", "--step-seconds", seconds)[0] == 2


def test_the_predicted_step_in_words(tmp_path, capsys):
    arguments = ["plan", "--blocks", write(tmp_path / "b", grouped(4))]
    arguments += ["--devices", write(tmp_path / "d", DEVICES), "--alloc", "cuda:0,50%;cpu,*"]
    assert main([*arguments, "--step-seconds", "0.1"]) == 0
    printed = capsys.readouterr().out
    lacks = "step: not known: it lacks the speed of the link from cpu (distorch links)\n"
    assert lacks in printed
    assert printed.endswith("  cpu: stream, its link was not measured\n")
