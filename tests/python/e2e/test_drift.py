# SPDX-License-Identifier: Apache-2.0
"""Whether memory comes back: slopes, certainty, verdicts."""

from __future__ import annotations

import itertools
import math
import random
import statistics
import threading

import pytest
from fake_comfy import MB
from fake_runner import Play
from hypothesis import given
from hypothesis import strategies as st
from waiting import wait_for

from distorch.tools.e2e import drift

LEAST = 1.0 * MB


def judged(values: list[float], least: float = LEAST) -> drift.Drift:
    return drift.judge("sim:0", [(i, int(v)) for i, v in enumerate(values, 1)], least)


def noise(n: int, seed: int, spread: float = 100 * MB, slope: float = 0.0) -> list[float]:
    source = random.Random(seed)
    return [1e10 + slope * i + source.gauss(0, spread) for i in range(n)]


def test_the_slope_is_the_median_of_all_pairs() -> None:
    points = [(1.0, 10.0), (2.0, 12.0), (3.0, 14.0), (4.0, 99.0)]
    # 2, 2, 89/3, 2, 87/2, 85 in order: 2, 2, 2, 29.67, 43.5, 85
    assert drift.theil_sen(points)[0] == pytest.approx((2 + 89 / 3) / 2)


def test_one_wild_scene_does_not_move_it() -> None:
    values = [5.0 * MB * i for i in range(12)]
    values[7] = 4000.0 * MB
    assert drift.theil_sen(list(enumerate(values)))[0] == pytest.approx(5 * MB)


def test_sens_interval_of_a_known_series() -> None:
    """Ten values without ties: 45 slopes, 1.96 x sqrt(125) = 21.9, so that the 12th and the 34th bound it."""
    values = [3.0, 1.0, 4.0, 1.5, 5.0, 9.0, 2.0, 6.0, 5.5, 3.5]
    points = [(float(i), v) for i, v in enumerate(values)]
    slopes = sorted((b[1] - a[1]) / (b[0] - a[0]) for a, b in itertools.combinations(points, 2))
    assert drift.theil_sen(points) == (statistics.median(slopes), slopes[11], slopes[33])


@pytest.mark.parametrize("points", [[], [(1.0, 5.0)], [(1.0, 5.0), (1.0, 9.0)]])
def test_no_pair_no_slope(points) -> None:
    assert drift.theil_sen(points) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("values", "p"),
    [
        # S = 45, variance 125: z = 44 / 11.18 = 3.935
        (list(range(10)), 0.5 * math.erfc(44 / math.sqrt(2 * 125))),
        # five pairs of equal values: S = 40, variance 125 - 5 * 2 * 1 * 9 / 18 = 120
        ([0, 0, 1, 1, 2, 2, 3, 3, 4, 4], 0.5 * math.erfc(39 / math.sqrt(2 * 120))),
        ([7] * 10, 1.0),
        (list(range(10, 0, -1)), 1.0),  # falling: no rise at all
    ],
)
def test_chance_of_a_rise(values, p) -> None:
    assert drift.rising_chance(values) == pytest.approx(p)


@given(st.lists(st.integers(0, 2**40), min_size=2, max_size=25))
def test_order_is_all_that_matters_for_the_chance(values) -> None:
    assert drift.rising_chance(values) == drift.rising_chance([3 * v + 17 for v in values])
    assert 0 <= drift.rising_chance(values) <= 1
    # No series rises both ways.
    assert max(drift.rising_chance(values), drift.rising_chance(values[::-1])) == 1


@pytest.mark.parametrize("size", [16 * MB, 3 * MB])
def test_a_leak_in_every_scene(size) -> None:
    found = judged([500 * MB + size * i for i in range(10)])
    assert (found.verdict, found.slope, found.scenes) == (drift.LEAK, size, 10)
    assert (found.low, found.high) == (size, size)
    assert (found.baseline, found.last) == (500 * MB, 500 * MB + 9 * size)


def test_a_leak_in_every_third_scene() -> None:
    found = judged([500 * MB + 64 * MB * (i // 3) for i in range(12)])
    assert found.verdict == drift.LEAK
    assert found.slope == pytest.approx(64 * MB / 3, rel=0.15)


def test_a_leak_within_noise_is_found_when_there_are_scenes_enough() -> None:
    found = sum(judged(noise(30, seed, 100 * MB, 30 * MB)).leaks for seed in range(200))
    assert found >= 195


@pytest.mark.parametrize("n", [10, 20, 50])
def test_noise_alone_is_hardly_ever_a_leak(n) -> None:
    """Docs promise less than one run in a hundred a device."""
    alarms = sum(judged(noise(n, seed)).leaks for seed in range(1000))
    assert alarms <= 9


@pytest.mark.parametrize(
    "values",
    [
        [500 * MB] * 10,
        [500 * MB] + [900 * MB] * 9,  # a model that stays from the second scene on
        [900 * MB] + [500 * MB] * 9,
        [500 * MB + (i % 2) * 300 * MB for i in range(12)],  # two workflows in turn
        [500 * MB - 16 * MB * i for i in range(10)],
        [500 * MB + 0.5 * MB * i for i in range(40)],  # certain, and below the least that counts
        [500 * MB] * 5 + [3000 * MB] + [500 * MB] * 6,
    ],
)
def test_clean(values) -> None:
    assert judged(values).verdict == drift.CLEAN


def test_a_cache_that_fills_is_no_leak() -> None:
    found = judged([500 * MB + 50 * MB * min(i, 5) for i in range(12)])
    assert found.verdict == drift.LEVELLED
    assert not found.leaks
    assert found.late_slope == 0


def test_the_least_that_counts_is_the_callers() -> None:
    values = [500 * MB + 2 * MB * i for i in range(10)]
    assert judged(values, 1 * MB).leaks
    assert not judged(values, 4 * MB).leaks
    assert not judged([0.0] * 10, 0).leaks


@pytest.mark.parametrize("n", [0, 1, 2, 9])
def test_fewer_scenes_are_not_judged(n) -> None:
    found = judged([500 * MB + 100 * MB * i for i in range(n)])
    assert (found.verdict, found.scenes, found.leaks) == (drift.NOT_JUDGED, n, False)


def test_thousands_of_scenes_are_judged_by_groups() -> None:
    leak = judged(noise(5000, 1, 100 * MB, 2 * MB))
    assert (leak.verdict, leak.scenes) == (drift.LEAK, 5000)
    assert leak.slope == pytest.approx(2 * MB, rel=0.01)
    assert judged(noise(5000, 2)).verdict == drift.CLEAN
    assert judged(noise(201, 3, 1 * MB, 2 * MB)).slope == pytest.approx(2 * MB, rel=0.05)


def test_a_leaking_workflow_is_found_and_its_device_named(e2e, server) -> None:
    server.plays = [Play(leak={"sim:1": 16 * MB})]
    ended = e2e("--repeat", "10")
    assert ended.status == 4
    assert ended.statuses == ["success"] * 10
    assert {d: f["verdict"] for d, f in ended.drift.items()} == {"sim:0": "clean", "sim:1": "leak"}
    assert ended.drift["sim:1"]["slope"] == 16 * MB
    assert "sim:1: LEAK, +16.00 MB/scene (+16.00 to +16.00) over 10 scenes" in ended.out
    assert "sim:0: clean, +0.00 MB/scene" in ended.out
    assert ended.scenes[9]["rise"] == {"sim:0": 0, "sim:1": 144 * MB}


def test_a_clean_workflow_is_clean(e2e, server) -> None:
    ended = e2e("--repeat", "10")
    assert ended.status == 0
    assert {f["verdict"] for f in ended.drift.values()} == {"clean"}


def test_refused_scenes_are_no_proof_that_memory_comes_back(e2e, server) -> None:
    error = {"error": {"type": "missing_node_type", "message": "Node 'X' not found."}}
    server.plays = [Play(refuse=error)]
    ended = e2e("--repeat", "10")
    assert ended.statuses == ["validation error"] * 10
    assert ended.drift == {}
    assert "clean" not in ended.out
    server.plays = [Play(refuse=error), *[Play(leak={"sim:1": 16 * MB})] * 10]
    ended = e2e("--repeat", "11")
    assert ended.drift["sim:1"]["scenes"] == 10
    assert ended.scenes[1]["rise"]["sim:1"] == 0  # the first that worked


def test_cached_scenes_do_not_dilute_the_slope(e2e, server) -> None:
    leak = Play(leak={"sim:0": 10 * MB})
    server.plays = [p for _ in range(10) for p in (leak, Play(cached="all"))]
    ended = e2e("--repeat", "20", "--allow-cached")
    assert ended.status == 4
    assert ended.drift["sim:0"]["slope"] == 10 * MB
    assert ended.drift["sim:0"]["scenes"] == 10


def test_memory_is_only_compared_within_one_life_of_the_server(e2e, server) -> None:
    """A restart gives everything back, which must not hide the leak of the eleven scenes before it."""

    def restart(node: str) -> None:
        if node == "1":
            server.devices[0].used = 100 * MB
            server.restart_soon(0.1)

    leak = Play(leak={"sim:0": 10 * MB})
    server.plays = [*[leak] * 11, Play(at=restart, seconds=0.3, rise={}), *[leak] * 2]
    ended = e2e("--repeat", "14")
    assert ended.status == 5
    assert ended.drift["sim:0"]["verdict"] == "leak"
    assert ended.drift["sim:0"]["scenes"] == 11


def test_a_restart_between_two_scenes_is_noticed(e2e, server) -> None:
    """Nothing is lost then; the server only knows nothing of the scene before."""
    shown = []

    def restart_after(node: str) -> None:
        shown.append(node)
        if len(shown) == 6 * 3:
            threading.Thread(target=restart, args=(server.freed,), daemon=True).start()

    def restart(freed: int) -> None:
        """While the cache is cleared after the sixth scene."""
        wait_for(lambda: server.freed > freed)
        server.restart(0.1)

    server.plays = [Play(leak={"sim:0": 10 * MB}, at=restart_after)]
    ended = e2e("--repeat", "8", "--clear-cache")
    assert ended.statuses == ["success"] * 8
    assert ended.drift["sim:0"]["scenes"] == 6


def test_a_history_that_is_cleared_is_no_restart(e2e, server) -> None:
    server.plays = [Play(leak={"sim:0": 10 * MB}, forget=True)]
    assert e2e("--repeat", "10").status == 4


def test_ram_is_judged_when_asked(e2e, server) -> None:
    server.devices.append(type(server.devices[0])("cpu", 64 * 2**30, 2**30, "cpu"))
    server.plays = [Play(leak={"cpu": 16 * MB})]
    assert e2e("--repeat", "10").status == 0
    ended = e2e("--repeat", "10", "--drift-ram-mb", "4")
    assert ended.status == 4
    assert ended.drift["cpu"]["verdict"] == "leak"
