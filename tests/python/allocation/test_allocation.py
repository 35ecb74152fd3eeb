# SPDX-License-Identifier: Apache-2.0
"""The Python face of the grammar and the planner."""

from __future__ import annotations

import json
import re
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distorch import allocation
from distorch.allocation import (
    AllocationError,
    Block,
    Device,
    Options,
    PlanError,
    format_spec,
    make_plan,
    parse,
)

MB, GB = 1 << 20, 1 << 30


def devices() -> list[Device]:
    return [
        Device("cuda:0", total=24 * GB, free=24 * GB, link_gbps=50.0),
        Device("cuda:1", total=24 * GB, free=24 * GB, link_gbps=25.0),
        Device("cpu", total=64 * GB, free=64 * GB),
    ]


def blocks(count: int = 40, size: int = 300 * MB) -> list[Block]:
    return [Block(f"b{i}", size) for i in range(count)]


def test_equal_blocks_fill_the_caps():
    plan = make_plan("cuda:0,2.5gb;cuda:1,3.0g;cpu,*", blocks(), devices(), "cuda:0")
    assert plan.totals == {"cuda:0": 2400 * MB, "cuda:1": 3000 * MB, "cpu": 6600 * MB}
    assert plan.caps == {"cuda:0": 2560 * MB, "cuda:1": 3 * GB, "cpu": 64 * GB}
    assert list(plan.placement) == [f"b{i}" for i in range(40)]
    assert plan.notes == []
    assert plan.compute == "cuda:0"
    assert plan.model_bytes == 12000 * MB
    plan.check_invariants()
    assert plan.reasons["b0"] == "cpu takes the rest"
    assert set(plan.reasons) == set(plan.placement)
    assert plan.tables().startswith("DisTorch2 Model Virtual VRAM Analysis\n")


def test_order_and_modes_reach_the_plan():
    text = "cuda:0,600mb;cuda:1,600mb,mode=migrate;cpu,*"
    plan = make_plan(text, blocks(6), devices(), "cuda:0", Options(order="contiguous"))
    assert list(plan.placement.values()) == ["cuda:0"] * 2 + ["cuda:1"] * 2 + ["cpu"] * 2
    assert plan.modes == {"cuda:0": "auto", "cuda:1": "migrate", "cpu": "auto"}
    with pytest.raises(ValueError, match="unknown order 'sideways'"):
        Options(order="sideways")


def test_full_json_has_everything():
    plan = make_plan("cuda:0,1gb", blocks(8), devices(), "cuda:0")
    full = json.loads(plan.to_json())
    assert full["version"] == 1
    assert full["placement"] == plan.placement
    assert full["totals"] == plan.totals
    assert full["caps"] == plan.caps
    assert full["modes"] == plan.modes
    assert full["reasons"] == plan.reasons
    assert full["notes"] == plan.notes
    assert full["allocation"] == "cuda:0,1gb"


def test_an_error_points_into_the_string():
    with pytest.raises(AllocationError) as caught:
        parse("cuda:0,1.5xyz;cpu,*")
    error = caught.value
    assert isinstance(error, ValueError)
    assert (error.offset, error.fragment) == (10, "xyz")
    assert error.expected == "b, kb, mb, gb, tb or %"
    assert error.caret == "  cuda:0,1.5xyz;cpu,*\n            ^~~"
    assert str(error) == error.message
    assert error.message.endswith(error.caret)


def test_offsets_count_characters():
    text = "cuda:0,1gb;é€1"
    with pytest.raises(AllocationError, match="at offset 11;") as caught:
        parse(text)
    assert (caught.value.offset, caught.value.fragment) == (11, "é")
    text = "cuda:0,1gb,mode=é;x"
    with pytest.raises(AllocationError, match="unknown mode at offset 16;"):
        parse(text)


def test_devices_may_be_names_or_rows():
    for table in (["cuda:0", "sim:2"], [Device("cuda:0", 1, 1), Device("sim:2", 1, 1)]):
        assert str(parse("sim:2,1gb;cpu,*", table)) == "sim:2,1gb;cpu,*"
        with pytest.raises(AllocationError, match=r"there is no device cuda:3 .*sim:2, cpu"):
            parse("cuda:3,1gb", table)
        with pytest.raises(AllocationError, match="unknown kind of device 'gpu'"):
            parse("gpu,1gb", table)
    with pytest.raises(AllocationError, match="unknown kind of device 'sim'"):
        parse("sim:0,1gb")
    assert format_spec(parse("sim:0,1gb", kinds=["sim"])) == "sim:0,1gb"
    with pytest.raises(ValueError, match="not the name of a device: 'cuda:x'"):
        Device("cuda:x", 1, 1)


def test_specs_compare_and_print():
    spec = parse(" CUDA,2560MB ; cpu,* ; ")
    assert spec == parse("cuda:0,2.5gb;cpu,*")
    assert hash(spec) == hash(parse("cuda:0,2.5gb;cpu,*"))
    assert repr(spec) == "Spec('cuda:0,2.5gb;cpu,*')"
    assert spec.compute == ""
    assert parse("#cuda:1;4.0;cpu").compute == "cuda:1"


def test_nothing_fits_is_a_memory_error_with_candidates():
    table = [Device("cuda:0", 24 * GB, 1 * GB), Device("cpu", 64 * GB, 2 * GB)]
    with pytest.raises(PlanError) as caught:
        make_plan("cuda:0,1gb;cpu,*", blocks(), table, "cuda:0")
    error = caught.value
    assert isinstance(error, MemoryError)
    assert [c.device for c in error.candidates] == ["cuda:0", "cpu"]
    assert error.candidates[0] == allocation.Candidate("cuda:0", 1 * GB, 1 * GB, 1 * GB)
    assert error.candidates[1].free == 2 * GB
    assert error.message.splitlines()[0] == error.problem
    assert error.message.endswith("Remedy: " + error.remedy)


def test_wrong_blocks_are_a_value_error():
    with pytest.raises(AllocationError, match="two blocks are named 'b'") as caught:
        make_plan("cpu,*", [Block("b", 1), Block("b", 1)], devices(), "cuda:0")
    assert caught.value.offset is None


def test_names_are_grouped():
    names = ["layers.0.q", "layers.0.k", "layers.1.q", "layers.1.k", "norm"]
    assert allocation.group_names(names) == ["layers.0"] * 2 + ["layers.1"] * 2 + [""]
    assert allocation.text_encoder_head("shared") == "embedding of a text encoder"
    assert allocation.text_encoder_head("layers.0.q") == ""
    made = allocation.blocks_of_tensors([("a.weight", 10), ("a.bias", 1), ("b.weight", 5)])
    assert [(b.name, b.bytes) for b in made] == [("a", 11), ("b", 5)]
    assert allocation.format_bytes(5 * GB // 2) == "2.50 GB"


def test_planning_runs_on_many_threads():
    results: list[dict[str, int]] = []

    def work() -> None:
        for _ in range(20):
            results.append(make_plan("auto", blocks(), devices(), "cuda:0").totals)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 80
    assert all(r == results[0] for r in results)


@given(st.text(alphabet="cudapmx:0123456789.,;*% gb#=-\té\0", max_size=60))
@settings(max_examples=500, deadline=None)
def test_any_text_is_read_or_refused_with_a_place_in_it(text: str):
    spec, error = None, None
    try:
        spec = parse(text)
    except AllocationError as caught:
        error = caught
    if error is None:
        assert parse(format_spec(spec)) == spec
        return
    assert 0 <= error.offset <= len(text)
    assert text[error.offset :].startswith(error.fragment)
    assert re.match(r"allocation string: .+ at offset \d+", error.message)
