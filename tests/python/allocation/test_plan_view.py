# SPDX-License-Identifier: Apache-2.0
"""What is shown of a plan: rows, strip, step, the resolved string; and the pictures made of it."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from distorch import allocation, plan_drawing, plan_view
from distorch.tools.cli import main

GB, MB = 1 << 30, 1 << 20
DEVICES = [
    allocation.Device("cuda:0", 24 * GB, 24 * GB),
    allocation.Device("cuda:1", 24 * GB, 24 * GB, link_gbps=20.0),
    allocation.Device("cpu", 64 * GB, 64 * GB, link_gbps=10.0),
]
BLOCKS = [allocation.Block(f"blocks.{i}.a", 256 * MB, f"blocks.{i}") for i in range(40)]


def plan(text: str, blocks: list[allocation.Block] = BLOCKS) -> allocation.Plan:
    return allocation.make_plan(text, blocks, DEVICES, "cuda:0", allocation.Options(slots=None))


def test_a_row_has_the_cap_and_the_slots_that_count_against_it() -> None:
    seen = plan_view.view(plan("cuda:0,4gb;cuda:1,1gb;cpu,*"), DEVICES)
    here = seen.devices[0]
    assert (here.device, here.cap, here.how) == ("cuda:0", 4 * GB, "resident")
    assert here.weights + here.slots <= here.cap
    assert here.slots == pytest.approx(seen.slot_count * 256 * MB, abs=4096)
    assert sum(row.weights for row in seen.devices) == seen.model_bytes == 10 * GB
    assert seen.streamed_bytes == 10 * GB - here.weights


def test_the_strip_is_in_the_models_order_and_in_bytes() -> None:
    blocks = [*BLOCKS[:2], allocation.Block("blocks.2.a", 3 * GB, "blocks.2")]
    seen = plan_view.view(plan("cuda:0,512mb;cpu,*", blocks), DEVICES)
    assert sum(part.bytes for part in seen.strip) == seen.model_bytes
    assert sum(part.blocks for part in seen.strip) == 3
    assert seen.strip[-1].bytes == 3 * GB
    assert seen.strip[-1].how == "streamed"


@pytest.mark.parametrize(
    "text",
    [
        "auto",
        "cuda:0,4gb;cuda:1,1gb;cpu,*",
        "cuda:0,50%;cuda:1,50%",
        "cuda:0,25%;cpu,75%",
        "cuda:0,3gb;cuda:1,*,mode=migrate",
        "cuda:1,1gb;cpu,*#cuda:0",
    ],
)
def test_the_resolved_string_places_as_the_string_does(text: str) -> None:
    first = plan(text)
    again = plan(plan_view.resolved(first))
    assert again.totals == {d: n for d, n in first.totals.items() if d in again.totals}
    assert again.placement == first.placement


def test_a_step_says_what_bounds_it_or_what_it_lacks() -> None:
    one = plan("cuda:0,4gb;cpu,*")
    fast = plan_view.view(one, DEVICES, 0.1).step
    copies = fast.copies["cpu"]
    assert fast.seconds == pytest.approx(copies)
    assert (fast.bound, fast.missing) == ("cpu", ())
    assert plan_view.view(one, DEVICES, 60.0).step.bound == "compute"
    assert plan_view.view(one, DEVICES).step.missing == ("compute",)
    no_links = [allocation.Device(d.device, d.total, d.free) for d in DEVICES]
    lacking = plan_view.view(one, no_links, 0.1).step
    assert (lacking.seconds, lacking.missing) == (None, ("cpu",))
    assert "distorch links" in plan_drawing.step_text(lacking)


def test_svg_is_to_scale_and_escapes_names() -> None:
    blocks = [allocation.Block("a<b", 3 * MB, ""), allocation.Block("c", MB, "")]
    seen = plan_view.view(plan("cuda:0,3mb;cpu,*", blocks), DEVICES)
    root = ET.fromstring(plan_drawing.svg([seen], width=400))
    space = "{http://www.w3.org/2000/svg}"
    drawn = [r for r in root.iter(f"{space}rect") if r.find(f"{space}title") is not None]
    widths = [float(r.get("width", "0")) for r in drawn]
    assert widths == [300.0, 100.0]


def test_the_command_compares_two_strings_and_draws_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "b.json").write_text(
        '[{"name": "blocks.0.a", "bytes": 1048576}, {"name": "blocks.1.a", "bytes": 1048576}]'
    )
    (tmp_path / "d.json").write_text(
        '[{"device": "cuda:0", "total": 1e9, "free": 1e9}, {"device": "cpu", "link_gbps": 1}]'
    )
    picture = tmp_path / "p.svg"
    given = ["--blocks", str(tmp_path / "b.json"), "--devices", str(tmp_path / "d.json")]
    strings = ["--alloc", "cuda:0,1mb;cpu,*", "--against", "cuda:0,*", "--svg", str(picture)]
    assert main(["plan", *given, *strings]) == 0
    out = capsys.readouterr().out
    assert "(a)" in out
    assert "(b)" in out
    assert "cuda:0,1mb;cpu,*" in picture.read_text()
    assert main(["plan", *given, *strings, "--json"]) == 2
    assert "--against is for people" in capsys.readouterr().out
