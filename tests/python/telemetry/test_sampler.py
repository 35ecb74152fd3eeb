# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time

import distorch_sim
import pytest
import torch

from distorch.memory import sampler as sampling

MB = 2**20


@pytest.fixture
def taken() -> sampling.Sampler:
    """A sampler whose samples the test takes, of two devices of 2 GB."""
    distorch_sim.install([2048 * MB, 2048 * MB])
    made = sampling.Sampler(interval=3600, capacity=10)
    made.refresh_devices()
    return made


def burst(size: int, device: str, seconds: float = 0.0) -> None:
    memory = torch.empty(size, dtype=torch.uint8, device=device)
    time.sleep(seconds)
    del memory


def test_a_sample_has_every_device_with_the_backends_figures(taken: sampling.Sampler) -> None:
    kept = torch.empty(5 * MB, dtype=torch.uint8, device="sim:1")
    before = time.time()
    taken.take_sample()
    (sample,) = taken.samples(0)
    assert before <= sample["time"] <= time.time()
    assert {"sim:0", "sim:1", "cpu"} <= set(sample["devices"])
    assert sample["devices"]["sim:1"] == {
        "used": 5 * MB, "total": 2048 * MB, "allocated": 5 * MB, "reserved": 5 * MB, "peak": 5 * MB,
    }  # fmt: skip
    assert sample["devices"]["sim:0"]["used"] == 0
    host = sample["devices"]["cpu"]
    assert 0 < host["used"] <= host["peak"] <= host["total"]
    del kept


def test_a_burst_of_one_gigabyte_for_50_ms_is_in_the_peak() -> None:
    distorch_sim.install([4096 * MB])
    made = sampling.Sampler(interval=0.4)
    made.start()
    try:
        deadline = time.monotonic() + 30
        while len(made.samples(0)) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        known = len(made.samples(0))
        burst(1024 * MB, "sim:0", seconds=0.05)
        while len(made.samples(0)) < known + 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        made.stop()
    figures = [s["devices"]["sim:0"] for s in made.samples(0)]
    assert max(f["peak"] for f in figures) == 1024 * MB
    # In the sample after it; in two where one was taken in its midst.
    assert sum(f["peak"] == 1024 * MB for f in figures) in (1, 2)
    torch.sim.reset_peak_memory_stats(0)


def test_others_peak_counter_is_left_alone(taken: sampling.Sampler) -> None:
    torch.sim.reset_peak_memory_stats(0)
    burst(7 * MB, "sim:0")
    taken.take_sample()
    burst(3 * MB, "sim:0")
    taken.take_sample()
    assert [s["devices"]["sim:0"]["peak"] for s in taken.samples(0)] == [7 * MB, 3 * MB]
    assert torch.sim.max_memory_allocated(0) == 7 * MB


def test_windows_follow_the_peaks_of_nodes(taken: sampling.Sampler) -> None:
    burst(9 * MB, "sim:0")
    prompt = taken.open_window()
    first = taken.open_window()
    burst(2 * MB, "sim:0")
    assert taken.close_window(first)["sim:0"] == 2 * MB
    burst(4 * MB, "sim:0")
    assert taken.window_peaks(prompt)["sim:0"] == 4 * MB
    peaks = taken.close_window(prompt)
    assert (peaks["sim:0"], peaks["sim:1"]) == (4 * MB, 0)
    assert peaks["cpu"] > 0


def test_the_history_is_bounded(taken: sampling.Sampler) -> None:
    for _ in range(15):
        taken.take_sample()
    samples = taken.samples(0)
    assert len(samples) == 10
    assert [s["time"] for s in samples] == sorted(s["time"] for s in samples)
    assert taken.samples(samples[-1]["time"]) == samples[-1:]


def test_the_thread_costs_next_to_nothing() -> None:
    made = sampling.Sampler(interval=0.01)
    made.start()
    deadline = time.monotonic() + 30
    while len(made.samples(0)) < 50:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    made.stop()
    # 0.1 % of a core at one sample a second is 1 ms.
    assert made.cpu_seconds / len(made.samples(0)) < 0.001


def test_starting_and_stopping_twice_is_no_error() -> None:
    made = sampling.Sampler(interval=3600)
    made.start()
    made.start()
    assert made.running
    made.stop()
    made.stop()
    assert not made.running


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True, text=True, timeout=280,
    )  # fmt: skip


def test_the_interpreter_ends_cleanly_while_it_samples() -> None:
    done = run_python("""
        import distorch_sim, time
        from distorch.memory import sampler
        distorch_sim.install([2**20])
        s = sampler.Sampler(interval=0.001)
        s.start()
        while len(s.samples(0)) < 20: time.sleep(0.001)
        print("ends")
    """)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ends\n", "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no fork")
def test_a_forked_child_has_no_thread_and_may_start_its_own() -> None:
    done = run_python("""
        import distorch_sim, os, time
        from distorch.memory import sampler
        distorch_sim.install([2**20])
        s = sampler.Sampler(interval=0.001)
        s.start()
        for _ in range(20):
            child = os.fork()
            if child == 0:
                assert not s.running
                known = len(s.samples(0))
                s.start()
                while len(s.samples(0)) <= known: time.sleep(0.001)
                s.stop()
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
        assert s.running
        s.stop()
        print("good")
    """)
    assert (done.returncode, done.stdout) == (0, "good\n"), done.stderr
