# SPDX-License-Identifier: Apache-2.0
"""Fixtures for all folders, and what keeps one test from costing another. Tests that did not run say so loudly."""

from __future__ import annotations

import faulthandler
import gc
import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before torch is imported, here and in every process that a test starts. The models are tiny: threads that wait for
# each other cost more than they bring, many times that where several tests run at once.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Where a test asks for more of them, those that wait spin, and take the core from the one that they wait for.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# Else a matrix product of MKL has other last bits where the same weight begins at another address.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")

# Whoever ends a run that hangs can ask it first where it is.
if hasattr(signal, "SIGUSR1"):  # not on Windows
    faulthandler.register(signal.SIGUSR1, sys.__stderr__)

# Locks that are taken in both orders: see tests/python/support/lock_order.py.
if os.environ.get("DISTORCH_LOCK_ORDER") == "1":
    import lock_order

    lock_order.install()

# A wheel is also tested where nothing can be built (tools/wheels_test.sh).
WITHOUT_SIM = os.environ.get("DISTORCH_WITHOUT_SIM") == "1"
_NO_SIM = "no simulated accelerator (DISTORCH_WITHOUT_SIM=1)"
_not_collected: list[str] = []


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Without simulated devices, files that import them are left out, and named at the end."""
    if not WITHOUT_SIM or collection_path.suffix != ".py":
        return None
    if re.search(
        r"^(import|from) (distorch_sim|fake_cuda)\b",
        collection_path.read_text("utf-8"),
        re.MULTILINE,
    ):
        _not_collected.append(f"{collection_path.parent.name}/{collection_path.name}")
        return True
    return None


@pytest.fixture(scope="session")
def needs_sim() -> None:
    """For tests that make their simulated devices themselves, or in a process of their own."""
    if WITHOUT_SIM:
        pytest.skip(_NO_SIM)


@pytest.fixture
def sim(needs_sim: None) -> None:
    """Three simulated devices of 64 MiB, empty and without faults."""
    import distorch_sim

    distorch_sim.install([64 << 20] * 3)


@pytest.fixture
def device_in_cpp(needs_sim: None) -> None:
    """For what the simulated devices' Python form lacks: pinned memory and autocast."""
    import distorch_sim

    if distorch_sim.IN_PYTHON:
        pytest.skip(
            "torch's device over the simulated memory is in Python: it pins and autocasts nothing"
        )


@pytest.fixture(autouse=True, scope="session")
def _signals() -> Iterator[None]:
    """Processes that a test starts have the signals' default actions, also where this one ignores them.

    An ignored signal (`nohup`, a shell's `&`) stays ignored in a new process; one with a handler does not.
    """
    numbers = [
        number
        for name in ("SIGINT", "SIGTERM", "SIGHUP")
        if (number := getattr(signal, name, None)) is not None  # Windows has no SIGHUP
        if signal.getsignal(number) == signal.SIG_IGN
    ]
    for number in numbers:
        signal.signal(number, lambda *_: None)
    yield
    for number in numbers:
        signal.signal(number, signal.SIG_IGN)


def pytest_runtest_setup() -> None:
    """Random tensors are the same in every order. pytest-randomly does this for `random` and NumPy."""
    if torch := sys.modules.get("torch"):
        torch.default_generator.manual_seed(0)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    """What a test leaves on simulated devices is its own error, and nothing to the next test."""
    left: dict[str, int] = {}
    try:
        yield
    finally:
        if isinstance(item, pytest.Function):
            item.funcargs.clear()  # what fixtures returned
        gc.collect()
        left = _left_on_devices()
        if left:
            item.add_report_section("teardown", "simulated devices", f"left behind: {left}")
    if not left and len(gc.get_objects(2)) > 10_000:
        gc.freeze()
    if (order := sys.modules.get("lock_order")) and (both := order.inversions()):
        pytest.fail(f"{item.nodeid}: {both}", pytrace=False)
    if left:
        pytest.fail(f"{item.nodeid} left memory on simulated devices: {left}", pytrace=False)


def _left_on_devices() -> dict[str, int]:
    """Bytes that a test left, by device. Afterwards the devices are empty and without faults."""
    sim = sys.modules.get("distorch_sim")
    if sim is None:
        return {}
    sim.clear_faults()
    if not sim.allocated():
        return {}
    # Python keeps the traceback of a failure for debuggers, and with it the tensors of its frames.
    for name in ("last_type", "last_value", "last_traceback", "last_exc"):
        vars(sys).pop(name, None)
    gc.collect()
    left: dict[str, int] = sim.allocated()
    sim.abandon()
    return left


def pytest_sessionfinish() -> None:
    """What was taken inside of what, where that is asked for; also of each of several processes."""
    if os.environ.get("DISTORCH_LOCK_ORDER") == "1":
        for (outer, inner), seen in sorted(sys.modules["lock_order"].edges.items()):
            sys.__stderr__.write(f"lock {inner} inside of {outer}, at {seen}\n")


def pytest_collection_finish() -> None:
    """What was imported stays: collections of garbage, of which the tests ask many, need not look through it.

    torch alone makes each of them take 0.1 s. What a test imports is seen to when it ends.
    """
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    need_cuda = [item for item in items if item.get_closest_marker("cuda")]
    if need_cuda and os.environ.get("DISTORCH_CUDA_TESTS_ON") != "sim":
        import torch

        if not torch.cuda.is_available():
            if os.environ.get("DISTORCH_FAIL_WITHOUT_CUDA") == "1":
                raise pytest.UsageError(
                    "DISTORCH_FAIL_WITHOUT_CUDA=1, but torch finds no CUDA device"
                )
            for item in need_cuda:
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))
    if not os.environ.get("COMFYUI_PATH"):
        for item in items:
            if item.get_closest_marker("comfy"):
                item.add_marker(pytest.mark.skip(reason="COMFYUI_PATH is not set"))


def pytest_terminal_summary(terminalreporter) -> None:
    skipped = terminalreporter.stats.get("skipped", [])
    if _not_collected:
        names = ", ".join(sorted(set(_not_collected)))
        terminalreporter.write_line(f"NOT RUN: {names} ({_NO_SIM})", yellow=True, bold=True)
    for reason in (
        _NO_SIM,
        "COMFYUI_PATH is not set",
        "DISTORCH_PREDECESSOR_PATH is not set",
        "COMFYUI_WANVIDEO_PATH is not set",
        "no CUDA device",
    ):
        count = sum(reason in str(report.longrepr) for report in skipped)
        if count:
            terminalreporter.write_line(
                f"NOT RUN: {count} tests ({reason})", yellow=True, bold=True
            )
