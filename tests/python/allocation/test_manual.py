# SPDX-License-Identifier: Apache-2.0
"""The examples of docs/allocation-strings.md do what the page says."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from distorch.allocation import AllocationError, Block, Device, make_plan, parse

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "allocation-strings.md").read_text()
MB, GB = 1 << 20, 1 << 30
DEVICES = [Device(d, 24 * GB, 24 * GB) for d in ("cuda:0", "cuda:1", "cpu")]


def test_the_python_example_runs(tmp_path):
    (example,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    script = tmp_path / "example.py"
    script.write_text(example)
    assert "plan" in runpy.run_path(str(script))


def test_the_first_example_gives_the_numbers_of_the_page():
    (text,) = re.findall(r"^    (cuda:0,2\.5gb.*)$", PAGE, re.MULTILINE)
    plan = make_plan(text, [Block(f"b{i}", 300 * MB) for i in range(40)], DEVICES, "cuda:0")
    for device, total in plan.totals.items():
        name = "the CPU" if device == "cpu" else f"`{device}`"
        assert f"{total // MB} MB on {name}" in PAGE


def test_every_whole_string_is_read():
    table = PAGE.split("| the whole string | means |")[1].split("\n\n")[0]
    strings = re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)
    assert len(strings) == 5
    for text in strings:
        assert make_plan(text, [Block("b", MB)], DEVICES, "cuda:0").placement


def test_every_amount_and_device_of_the_table_is_read():
    for row, template in (("device", "{},1gb"), ("size", "cuda:0,{}"), ("share", "cuda:0,{}")):
        (cell,) = re.findall(rf"^\| {row} \| (.*) \|$", PAGE, re.MULTILINE)
        examples = re.findall(r"`([^`]+)`", cell)
        assert examples
        for example in examples:
            parse(template.format(example))


def test_the_error_is_printed_as_shown():
    with pytest.raises(AllocationError) as caught:
        parse("cuda:0,1.5xyz;cpu,*")
    shown = "\n".join("    " + line for line in caught.value.message.splitlines())
    assert shown in PAGE
