# SPDX-License-Identifier: Apache-2.0
"""One test costs no other: runs of pytest in a process of their own, with the conftest.py of this folder."""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

HERE = pathlib.Path(__file__).parents[1]

MEMORY = """
import distorch_sim, pytest, torch

kept = []

def on_device(device="sim:0"):
    return torch.ones(160, device=device)

def test_fails_and_its_traceback_holds_tensors(sim):
    held = [on_device()]
    try:
        assert held is None
    except AssertionError as error:
        raise ValueError("another") from error

def test_passes_on_empty_devices(sim):
    assert torch.sim.memory_allocated(0) == 0

def test_passes_on_other_devices():
    distorch_sim.install([2**20])
    assert torch.sim.device_count() == 1

def test_leaves_some(sim):
    kept.extend([on_device("sim:0"), on_device("sim:1")])

def test_passes_beside_what_was_left(sim):
    assert torch.sim.memory_allocated(0) == torch.sim.memory_allocated(1) == 0
    kept[0] += 1  # still memory, but on nobody's account
    assert torch.equal(kept[0].cpu(), torch.full((160,), 2.0))
    kept.clear()
    assert torch.sim.memory_allocated(0) == torch.sim.memory_allocated(1) == 0

def test_fails_and_leaves_some(sim):
    kept.append(on_device("sim:2"))
    assert kept is None

@pytest.fixture
def model(sim):
    layer = torch.nn.Linear(4, 4).to("sim:2")
    layer.itself = layer
    return layer

@pytest.mark.parametrize("time", range(2))
def test_passes_with_a_cycle_from_a_fixture_and_a_fault(model, time):
    distorch_sim.fail_allocation(1, sticky=True)
"""

SIGNALS = """
import pytest, signal, subprocess

@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_ends_a_process(number):
    process = subprocess.Popen(["sleep", "60"])
    process.send_signal(number)
    assert process.wait(10) == -number
    signal.raise_signal(number)  # and pytest goes on, as it would have
"""


def run(folder: pathlib.Path, tests: str, *before: str) -> str:
    """Runs tests given as text, in the order in which they stand, and returns what pytest said."""
    shutil.copy(HERE / "conftest.py", folder)
    (folder / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    (folder / "test_it.py").write_text(tests)
    command = [*before, sys.executable, "-m", "pytest", "-v", "-rN"]
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=280
    )  # fmt: skip
    return done.stdout + done.stderr


def test_what_a_test_leaves_is_told_once_by_its_name_and_costs_no_other(tmp_path) -> None:
    said = run(tmp_path, MEMORY)
    outcomes = dict(re.findall(r"^test_it\.py::(\S+) (FAILED|ERROR|PASSED) ", said, re.MULTILINE))
    assert len(outcomes) == 8
    for name, outcome in outcomes.items():
        wanted = "FAILED" if name.startswith("test_fails") else "PASSED"
        assert outcome == ("ERROR" if "leaves" in name else wanted), said
    assert "2 failed, 6 passed, 2 errors" in said
    told = re.findall(r"^(.*) left memory on simulated devices: (.*)$", said, re.MULTILINE)
    assert told == [
        ("test_it.py::test_leaves_some", "{'sim:0': 640, 'sim:1': 640}"),
        ("test_it.py::test_fails_and_leaves_some", "{'sim:2': 640}"),
    ]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no nohup, and hands down no signals")
def test_processes_do_not_inherit_the_signals_that_pytest_ignores(tmp_path) -> None:
    """As `nohup` and a shell's `&` leave them."""
    ignoring = (
        "import os, signal, sys\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "os.execv(sys.argv[1], sys.argv[1:])\n"
    )
    said = run(tmp_path, SIGNALS, sys.executable, "-c", ignoring)
    assert "2 passed" in said, said
