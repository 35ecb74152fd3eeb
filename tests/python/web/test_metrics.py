# SPDX-License-Identifier: Apache-2.0
"""The metrics' text form, and the dashboard that shows them."""

from __future__ import annotations

import json
import pathlib
import re

from stand_in import StandInBackend, load_patches, row

ROOT = pathlib.Path(__file__).resolve().parents[3]
metrics = load_patches("view.metrics")


def full_state() -> object:
    backend = StandInBackend()
    history = backend.history(600)
    return metrics.State(
        devices=backend.devices()["devices"],
        models=[row(1, 'a "b"\\\n', "vae", {"cuda:0": 5}, 1).as_json()],
        samples=history["samples"],
        placements=backend.placements()["placements"],
        runs={"success": 3, "error": 1},
        last_peak={"cuda:0": 7},
        nodes={"KSampler": 4},
        node_seconds={"KSampler": 1.5},
        loaded={"cuda:0": 11},
        jobs={("eject", "done"): 2},
        freed={"cuda:0": 13},
        scan_seconds=0.002,
        sampler_seconds=1e-4,
    )


def families(text: str) -> dict[str, str]:
    return dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))


def test_every_figure_is_there_once_and_names_are_escaped() -> None:
    text = metrics.metrics(full_state())
    lines = text.splitlines()
    for line in (
        'distorch_device_bytes{device="cuda:0",part="unused"} 2147483648',
        r'distorch_model_bytes{id="1",name="a \"b\"\\\n",type="vae",device="cuda:0"} 5',
        'distorch_runs_total{status="success"} 3',
        'distorch_run_peak_bytes{device="cuda:0"} 7',
        'distorch_nodes_total{kind="KSampler"} 4',
        'distorch_node_seconds_total{kind="KSampler"} 1.5',
        'distorch_loaded_bytes_total{device="cuda:0"} 11',
        'distorch_jobs_total{kind="eject",state="done"} 2',
        'distorch_freed_bytes_total{device="cuda:0"} 13',
        'distorch_predicted_step_seconds{model="Wan2_2-T2V-A14B-HIGH",key="1"} 1.03',
        'distorch_measured_step_seconds{model="Wan2_2-T2V-A14B-HIGH",key="1"} 1.0842',
        "distorch_scan_seconds 0.002",
        "distorch_sampler_cpu_seconds_total 0.0001",
    ):
        assert lines.count(line) == 1, line
    assert text.endswith("\n")


def test_the_peak_is_the_largest_of_the_samples() -> None:
    text = metrics.metrics(full_state())
    peaks = [s["devices"]["cuda:0"]["peak"] for s in StandInBackend().history(600)["samples"]]
    assert f'distorch_device_peak_bytes{{device="cuda:0"}} {max(peaks)}' in text.splitlines()


def test_each_line_belongs_to_the_family_before_it() -> None:
    name = ""
    for line in metrics.metrics(full_state()).splitlines():
        if line.startswith("# TYPE"):
            name = line.split()[2]
        elif not line.startswith("#"):
            assert re.match(rf"{name}(\{{|\s)", line), line


def test_nothing_known_is_no_error() -> None:
    assert families(metrics.metrics(metrics.State())) == families(metrics.metrics(full_state()))


def test_the_dashboard_shows_exactly_the_metrics_that_exist() -> None:
    dashboard = json.loads((ROOT / "docs/grafana-dashboard.json").read_text())
    questions = [t["expr"] for panel in dashboard["panels"] for t in panel.get("targets", [])]
    questions += [v["query"] for v in dashboard["templating"]["list"] if v["type"] == "query"]
    asked = set(re.findall(r"distorch_\w+", " ".join(questions)))
    known = families(metrics.metrics(metrics.State()))
    assert asked == set(known), asked ^ set(known)


def test_counters_are_asked_for_their_increase() -> None:
    text = (ROOT / "docs/grafana-dashboard.json").read_text()
    for name, kind in families(metrics.metrics(metrics.State())).items():
        for use in re.findall(rf"(\w*)\({name}\b", text):
            assert (use in ("rate", "increase")) == (kind == "counter"), (name, use)
