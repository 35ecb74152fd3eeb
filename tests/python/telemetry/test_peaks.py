# SPDX-License-Identifier: Apache-2.0
"""The ledger on counters shaped like torch's, and what of torch's it stands before."""

from __future__ import annotations

import types

import pytest
import torch

from distorch.memory.peaks import Figures, Ledger


class Counters:
    """torch._C of an accelerator: one allocator a device."""

    def __init__(self) -> None:
        self.values = {i: {"allocated": [0, 0], "reserved": [0, 0]} for i in range(2)}
        self.namespace = types.SimpleNamespace(stats=self.stats, reset=self.reset, other=self.stats)

    def hold(self, allocated: int, reserved: int, device: int = 0) -> None:
        for name, now in (("allocated", allocated), ("reserved", reserved)):
            value = self.values[device][name]
            value[0], value[1] = now, max(value[1], now)

    def stats(self, device: int) -> dict:
        return {
            "num_ooms": 0,
            **{
                f"{name}_bytes": {"all": {"current": v[0], "peak": v[1]}}
                for name, v in self.values[device].items()
            },
        }

    def reset(self, device: int) -> None:
        for value in self.values[device].values():
            value[1] = value[0]


@pytest.fixture
def counters() -> Counters:
    return Counters()


@pytest.fixture
def ledger(counters: Counters) -> Ledger:
    made = Ledger(counters.namespace, ("stats", "other"), ("reset",))
    made.install()
    return made


def peak_for_others(counters: Counters, name: str = "reserved") -> int:
    return counters.namespace.stats(0)[f"{name}_bytes"]["all"]["peak"]


def test_each_take_has_the_peak_since_the_last(counters: Counters, ledger: Ledger) -> None:
    counters.hold(50, 90)
    counters.hold(10, 20)
    assert ledger.take(0) == Figures(10, 20, 90)
    assert ledger.take(0) == Figures(10, 20, 20)
    counters.hold(15, 30)
    counters.hold(10, 20)
    assert ledger.take(0) == Figures(10, 20, 30)
    assert ledger.take(1) == Figures(0, 0, 0)


def test_others_read_what_they_would_without_us(counters: Counters, ledger: Ledger) -> None:
    counters.hold(50, 90)
    counters.hold(10, 20)
    ledger.take(0)
    assert peak_for_others(counters) == 90
    assert peak_for_others(counters, "allocated") == 50
    counters.hold(70, 80)
    ledger.take(0)
    assert peak_for_others(counters) == 90
    assert peak_for_others(counters, "allocated") == 70
    assert counters.namespace.other(0)["reserved_bytes"]["all"]["peak"] == 90


def test_others_may_reset_and_we_lose_nothing(counters: Counters, ledger: Ledger) -> None:
    counters.hold(50, 90)
    counters.hold(10, 20)
    ledger.take(0)
    counters.hold(60, 70)
    counters.hold(10, 20)
    counters.namespace.reset(0)
    assert peak_for_others(counters) == 20
    counters.hold(10, 25)
    assert peak_for_others(counters) == 25
    assert ledger.take(0) == Figures(10, 25, 70)
    assert peak_for_others(counters) == 25


def test_without_install_the_counter_is_only_read(counters: Counters) -> None:
    ledger = Ledger(counters.namespace, ("stats",), ("reset",))
    counters.hold(50, 90)
    counters.hold(10, 20)
    assert ledger.take(0).reserved_peak == 90
    counters.hold(50, 60)
    counters.hold(10, 20)
    assert ledger.take(0).reserved_peak == 20, "below the highest: not seen"
    counters.hold(50, 95)
    assert ledger.take(0).reserved_peak == 95
    assert counters.stats(0)["reserved_bytes"]["all"]["peak"] == 95


def test_uninstall_gives_the_functions_back(counters: Counters) -> None:
    before = vars(counters.namespace).copy()
    ledger = Ledger(counters.namespace, ("stats", "other"), ("reset",))
    ledger.install()
    ledger.install()
    assert ledger.installed
    assert counters.namespace.stats != before["stats"]
    ledger.uninstall()
    assert not ledger.installed
    assert vars(counters.namespace) == before


def test_torch_has_the_counters_that_the_ledger_stands_before() -> None:
    if not torch.backends.cuda.is_built():
        assert Ledger.of("cuda") is None
        return
    for name in ("_cuda_memoryStats", "_cuda_resetPeakMemoryStats"):
        assert hasattr(torch._C, name)
    assert isinstance(Ledger.of("cuda"), Ledger)
    assert Ledger.of("cuda") is Ledger.of("cuda")
    assert Ledger.of("no_such_kind") is None


@pytest.mark.cuda
def test_on_a_gpu_nobody_notices() -> None:
    ledger = Ledger.of("cuda")
    assert ledger is not None
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(0)
    ledger.install()
    try:
        ledger.take(0)
        big = torch.empty(2**30, dtype=torch.uint8, device="cuda:0")
        del big
        torch.cuda.empty_cache()
        assert ledger.take(0).reserved_peak >= 2**30
        assert ledger.take(0).reserved_peak < 2**30
        assert torch.cuda.max_memory_allocated(0) >= 2**30
        torch.cuda.reset_peak_memory_stats(0)
        assert torch.cuda.max_memory_allocated(0) < 2**30
    finally:
        ledger.uninstall()
