# SPDX-License-Identifier: Apache-2.0
"""Where samples come from: every form of /system_stats, the pack's history, faults, falling back and returning."""

from __future__ import annotations

import re
import threading
import time

import pytest
from fake_comfy import (
    FAULTS,
    FORMS,
    GB,
    MB,
    FakeComfy,
    FakeDevice,
    device_history,
    history,
    node_run,
    prompt_run,
)
from waiting import wait_for

from distorch.tools.monitor import Gap, Sample, SourceChain, answers, gpus, open_sources
from distorch.tools.monitor.http_json import FetchError, JsonClient
from distorch.tools.monitor.sources import is_this_machine


def chain(server: FakeComfy, timeout: float = 2.0) -> SourceChain:
    """The server's sources alone."""
    return open_sources(server.url, timeout, local=False)


def sample(sources: SourceChain) -> Sample:
    found = sources.read()
    assert isinstance(found, Sample), found
    return found


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_system_stats(form: str) -> None:
    devices = [
        FakeDevice(used=9 * GB),
        FakeDevice("cuda:1", total=12 * GB, used=0, name="RTX 3060"),
    ]
    with FakeComfy(devices) as server:
        server.form = form
        found = sample(chain(server))
    assert found.source == "system_stats"
    assert [(d.device, d.used, d.free, d.total) for d in found.devices] == [
        ("cuda:0", 9 * GB, 15 * GB, 24 * GB),
        ("cuda:1", 0, 12 * GB, 12 * GB),
    ]
    assert all(d.peak is None for d in found.devices)
    if form != "used_and_free":
        assert [d.name for d in found.devices] == ["NVIDIA GeForce RTX 4090", "RTX 3060"]


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"vram_total": 10, "vram_used": 4}, (4, 6, 10)),
        ({"vram_used": 4}, (4, 0, 0)),
        ({"used_mem_mb": 1.5, "total_mem_mb": 4}, (3 * MB // 2, 5 * MB // 2, 4 * MB)),
        ({"vram_total": 10, "vram_free": 11}, (0, 11, 10)),
        ({"vram_used": 5, "used_mem_mb": 99, "vram_free": 5}, (5, 5, 10)),
        ({"vram_total": 10}, None),
        ({"vram_total": True, "vram_free": False}, None),
        ({"vram_total": 2**60, "vram_free": 1}, None),
    ],
)
def test_two_of_three_figures_are_enough(entry: dict, expected: tuple | None) -> None:
    answer = {"devices": [entry]}
    if expected is None:
        with pytest.raises(answers.AnswerError, match="no device with its memory"):
            answers.system_stats(answer)
        return
    (device,) = answers.system_stats(answer)
    assert (device.used, device.free, device.total) == expected


@pytest.mark.parametrize(
    ("entry", "device", "name"),
    [
        ({"type": "cuda", "index": None, "name": "cuda:0 A : native"}, "cuda:0", "A"),
        ({"type": "cpu", "index": None, "name": "cpu"}, "cpu", ""),
        ({"type": "mps", "index": 0, "name": "mps"}, "mps", ""),
        ({"type": "sim", "index": 3, "name": "sim:3"}, "sim:3", ""),
        ({"name": "xpu:1 Intel Arc"}, "xpu:1", "Intel Arc"),
        ({"name": "some card"}, "cuda:0", "some card"),
        ({"type": "bad\nkind", "index": 0, "name": "a\nb"}, "cuda:0", "a b"),
    ],
)
def test_a_device_is_called_as_torch_calls_it(entry: dict, device: str, name: str) -> None:
    (found,) = answers.system_stats({"devices": [{**entry, "vram_total": 2, "vram_free": 1}]})
    assert (found.device, found.name) == (device, name)


def test_history_is_preferred_and_carries_peaks_runs_and_models() -> None:
    with FakeComfy([FakeDevice(used=3 * GB)]) as server:
        now = time.time()
        loaded = [{"name": "flux1-dev", "type": "diffusion", "bytes": {"cuda:0": 2 * GB}}]
        nodes = [
            node_run("4", "CheckpointLoaderSimple", now - 9, now - 5, {"cuda:0": GB}, loaded),
            node_run("3", "KSampler", now - 5),
        ]
        server.live_history().runs.append(prompt_run("p1", now - 9, nodes))
        server.models = [
            {"name": "vae", "type": "vae", "bytes": {"cuda:0": 5}},
            {"name": "flux1-dev", "type": "diffusion", "bytes": {"cuda:0": 2 * GB, "cpu": GB}},
        ]
        server.queue = {
            "queue_running": [[1, "p1", {"3": {}, "4": {}}, {}, []]],
            "queue_pending": [1],
        }
        found = sample(chain(server))
    assert found.source == "history"
    (device,) = found.devices
    assert (device.used, device.free, device.total) == (3 * GB, 21 * GB, 24 * GB)
    assert (device.peak, device.allocated, device.reserved) == (3 * GB, 3 * GB // 2, 9 * GB // 4)
    assert [m.name for m in found.models] == ["flux1-dev", "vae"]
    assert found.models[0].total == 3 * GB
    (run,) = found.runs
    assert run.running_node is not None
    assert run.running_node.kind == "KSampler"
    assert run.nodes[0].loaded[0].bytes == {"cuda:0": 2 * GB}
    assert found.queue is not None
    assert (found.queue.prompt, found.queue.nodes, found.queue.pending) == ("p1", 2, 1)


def test_runs_that_were_over_before_the_first_look_are_not_told() -> None:
    with FakeComfy([FakeDevice()]) as server:
        now = time.time()
        live = server.live_history()
        live.runs += [prompt_run("before", now - 30, []), prompt_run("going on", now - 9, [])]
        live.runs[0].update(ended=now - 20, status="success")
        sources = chain(server)
        assert [run.prompt for run in sample(sources).runs] == ["going on"]
        live.runs[1].update(ended=now + 2, status="success")
        live.runs.append(
            {**prompt_run("short", now + 2, []), "ended": now + 3, "status": "success"}
        )
        assert [run.prompt for run in sample(sources).runs] == ["going on", "short"]


def test_a_burst_between_two_looks_is_in_the_peak() -> None:
    with FakeComfy([FakeDevice(used=2 * GB)]) as server:
        live = server.live_history()
        sources = chain(server)
        assert sample(sources).devices[0].peak == 2 * GB
        live.peak = 3 * GB  # 1 GB for 50 ms, between two samples of the server
        live({})
        live({})
        found = sample(sources).devices[0]
        assert (found.used, found.peak) == (2 * GB, 3 * GB)
        assert sample(sources).devices[0].peak == 2 * GB


def test_a_sample_that_is_seen_again_has_no_peak_of_its_own() -> None:
    """The pack samples once a second, a look may come more often: its peak was told, and is over."""
    with FakeComfy([FakeDevice(used=2 * GB)]) as server:
        server.live_history()
        sources = chain(server)
        sample(sources)
        newest = {
            "time": time.time() + 1,
            "devices": device_history([FakeDevice(used=GB)], peak=9 * GB),
        }
        server.history = history([newest])
        looks = [sample(sources).devices[0] for _ in range(3)]
    assert [(d.used, d.peak) for d in looks] == [(GB, 9 * GB), (GB, GB), (GB, GB)]


def test_a_peak_before_the_first_look_is_not_counted() -> None:
    with FakeComfy([FakeDevice(used=2 * GB)]) as server:
        live = server.live_history()
        live.peak = 9 * GB
        live({})
        assert sample(chain(server)).devices[0].peak == 2 * GB


def test_a_history_of_the_first_kind_without_peaks_is_read() -> None:
    devices = {"cuda:0": {"used": 5, "total": 9}, "cpu": {"used": 1, "total": 2}}
    with FakeComfy() as server:
        server.history = {"seconds": 1, "samples": [{"time": 5.0, "devices": devices}]}
        found = sample(chain(server))
    assert [(d.device, d.used, d.free, d.peak) for d in found.devices] == [
        ("cuda:0", 5, 4, None),
        ("cpu", 1, 1, None),
    ]


def test_a_sampler_that_stands_still_is_not_believed(monkeypatch) -> None:
    monkeypatch.setattr("distorch.tools.monitor.sources._STALE", 0.2)
    with FakeComfy([FakeDevice()]) as server:
        server.history = {
            **history([{"time": 5.0, "devices": device_history(server.devices)}]),
            "interval": 0.01,
        }
        sources = chain(server)
        assert sample(sources).source == "history"
        time.sleep(0.3)
        found = sample(sources)
        assert found.source == "system_stats"
        assert found.missed[0][0] == "history"
        assert "no new sample for" in found.missed[0][1]
        server.live_history()
        assert sample(sources).source == "history"


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_answer_is_a_gap_in_bounded_time_and_no_longer(fault: str) -> None:
    with FakeComfy() as server:
        server.live_history()
        server.fault = fault
        sources = chain(server, timeout=0.3)
        start = time.monotonic()
        found = sources.read()
        assert time.monotonic() - start < 10
        assert isinstance(found, Gap)
        assert [source for source, _ in found.reasons] == ["history", "system_stats"]
        assert all(why and len(why) < 250 and why.isprintable() for _, why in found.reasons)
        server.fault = None
        assert isinstance(sources.read(), Sample)


def test_a_history_that_is_too_large_is_begun_anew(monkeypatch) -> None:
    monkeypatch.setattr("distorch.tools.monitor.http_json.MAX_BYTES", 2000)
    with FakeComfy() as server:
        live = server.live_history()
        sources = chain(server)
        assert sample(sources).source == "history"
        for _ in range(50):
            live({})
        found = sample(sources)
        assert found.source == "system_stats"
        assert found.missed == (("history", "the answer is larger than 2000 bytes"),)
        del live.samples[:]
        assert sample(sources).source == "history"


def test_a_bad_history_falls_back_to_system_stats_and_returns() -> None:
    with FakeComfy() as server:
        server.live_history()
        sources = chain(server, timeout=0.5)
        assert sample(sources).source == "history"
        server.fault, server.faulty_paths = "error500", {"/distorch/history"}
        found = sample(sources)
        assert found.source == "system_stats"
        assert found.missed == (("history", "HTTP 500"),)
        server.fault = None
        assert sample(sources).source == "history"


def test_a_source_that_hangs_does_not_delay_every_look() -> None:
    with FakeComfy() as server:
        server.live_history()
        server.fault, server.faulty_paths = "hang", {"/distorch/history"}
        sources = chain(server, timeout=0.2)
        for _ in range(12):
            assert sample(sources).source == "system_stats"
        asked = sum(r.path == "/distorch/history" for r in server.requests)
        assert 2 <= asked <= 6  # it rests between two tries, and longer each time
        assert sum(r.path == "/system_stats" for r in server.requests) == 12


def test_models_and_queue_that_hang_hold_nothing_up(monkeypatch) -> None:
    monkeypatch.setattr("distorch.tools.monitor.sources._EXTRAS_TIME", 0.3)
    monkeypatch.setattr("distorch.tools.monitor.sources._EXTRAS_EVERY", 0.0)
    with FakeComfy() as server:
        server.live_history()
        server.models = [{"name": "vae", "type": "vae", "bytes": {"cuda:0": 5}}]
        sources = chain(server)
        assert [m.name for m in sample(sources).models] == ["vae"]
        server.fault, server.faulty_paths = "hang", {"/queue", "/distorch/models"}
        start = time.time()
        found = sample(sources)
        took = time.time() - start
        assert found.time - start < took - 0.2  # the memory was read before the question that hung
        assert found.source == "history"
        assert [m.name for m in found.models] == ["vae"]  # as they were
        asked = len(server.requests)
        sample(sources)
        later = [r.path for r in server.requests[asked:]]
        assert later == ["/distorch/history"]  # the others are not asked again for a while


def test_a_restart_is_a_gap_and_the_pack_may_be_new_then() -> None:
    with FakeComfy() as server:
        sources = chain(server)
        assert sample(sources).source == "system_stats"
        server.stop()
        gap = sources.read()
        assert isinstance(gap, Gap)
        assert "system_stats: connection refused" in gap.reason
        server.live_history()
        server.start()
        assert sample(sources).source == "history"


def test_nothing_raises_when_a_source_has_a_fault_of_its_own() -> None:
    class Broken:
        name = "broken"

        def read(self):
            raise ZeroDivisionError

    gap = SourceChain([Broken()]).read()
    assert isinstance(gap, Gap)
    assert gap.reasons == (("broken", "ZeroDivisionError"),)


def test_the_drivers_figures_stand_in_for_a_server_of_this_machine(monkeypatch) -> None:
    gpu = gpus.Gpu(0, "GPU-1", "RTX", 10, 4, 6)
    monkeypatch.setattr(gpus, "nvml_gpus", lambda: [gpu])
    monkeypatch.setattr(gpus, "_driver_uuids", lambda: None)
    with FakeComfy([FakeDevice(name="RTX")]) as server:
        sources = open_sources(server.url)
        assert sample(sources).source == "system_stats"
        server.stop()
        found = sample(sources)
        assert found.source == "nvml"
        assert [(d.device, d.used) for d in found.devices] == [("cuda:0", 4)]
        server.start()
        assert sample(sources).source == "system_stats"


def test_a_server_elsewhere_has_no_stand_in() -> None:
    assert [s.name for s in open_sources("http://192.0.2.1:8188").sources] == [
        "history",
        "system_stats",
    ]
    assert [s.name for s in open_sources(None).sources] == ["nvml", "nvidia-smi"]
    assert is_this_machine("127.0.0.1")
    assert is_this_machine("::1")
    assert is_this_machine("localhost")
    assert not is_this_machine("192.0.2.1")
    assert not is_this_machine("gpu-server.example")


@pytest.mark.parametrize(
    "url",
    ["ftp://x", "http://", "", "http://[::1", "127.0.0.1:99999", "x:0", "http://x/?a=1", "x#y"],
)
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(repr(url))} is no address; expected one"):
        open_sources(url)


def test_closing_ends_the_exchange_under_way() -> None:
    with FakeComfy() as server:
        server.fault = "hang"
        client = JsonClient(server.url, timeout=20)
        reasons: list[str] = []

        def ask() -> None:
            try:
                client.get("/system_stats")
            except FetchError as error:
                reasons.append(str(error))

        thread = threading.Thread(target=ask)
        thread.start()
        wait_for(lambda: server.requests)
        time.sleep(0.1)
        client.close()
        thread.join(5)
        assert not thread.is_alive()
        assert len(reasons) == 1
        with pytest.raises(FetchError, match="closed"):
            client.get("/system_stats")


def test_an_address_with_a_path_and_without_a_scheme() -> None:
    with FakeComfy() as server:
        JsonClient(f"127.0.0.1:{server.port}").get("/system_stats")
        with pytest.raises(FetchError, match="HTTP 404"):
            JsonClient(f"{server.url}/comfy/").get("/system_stats")
        assert server.requests[-1].path == "/comfy/system_stats"
