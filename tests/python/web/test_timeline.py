# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))

from stand_in import StandInBackend, load_patches, row

timeline = load_patches("timeline")


def view(free: int) -> dict:
    return {"device": "cuda:0", "total": 100, "free": free}


def test_history_gives_the_last_seconds_and_is_bounded() -> None:
    line = timeline.Timeline()
    for second in range(timeline.KEPT_SAMPLES + 10):
        line.add([view(second % 100)], now=float(second))
    last = timeline.KEPT_SAMPLES + 9
    found = line.history(2, now=float(last))
    assert found["seconds"] == 2
    assert [s["time"] for s in found["samples"]] == [last - 2, last - 1, last]
    assert found["samples"][-1]["devices"] == {"cuda:0": {"used": 100 - last % 100, "total": 100}}
    assert len(line.history(10**6, now=float(last))["samples"]) == timeline.KEPT_SAMPLES


def test_metrics_name_each_part_and_escape_names() -> None:
    backend = StandInBackend()
    models = [row(1, 'a "b"\\\n', "vae", {"cuda:0": 5}, 1).as_json()]
    text = timeline.metrics(backend.devices()["devices"][:1], models)
    lines = text.splitlines()
    assert 'distorch_device_bytes{device="cuda:0",part="unused"} 2147483648' in lines
    assert r'distorch_model_bytes{id="1",name="a \"b\"\\\n",type="vae",device="cuda:0"} 5' in lines
    assert text.endswith("\n")
