# SPDX-License-Identifier: Apache-2.0
"""The tests in tests/python/cuda notice a broken engine already on a simulated device."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import broken
import pytest

TESTS = Path(__file__).resolve().parents[1]
# Of each break: the tests that are run, and what one of them says.
SEEN = {
    "computes before the copy is there": ("test_any_number_of_slots", "without waiting for it"),
    "copies before the compute is done": ("test_any_number_of_slots", "without waiting for it"),
    "frees slots under a copy": ("just_dies", "were freed while aten::copy_"),
    "copies too little": ("test_any_number_of_slots", "torch.equal"),
}


@pytest.mark.usefixtures("needs_sim")
@pytest.mark.parametrize("name", list(broken.BREAKS))
def test_a_broken_engine_is_noticed(name: str) -> None:
    tests, says = SEEN[name]
    environment = {
        **os.environ,
        "DISTORCH_CUDA_TESTS_ON": "sim",
        "DISTORCH_BREAK": name,
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # half of what a run takes
        "PYTHONPATH": os.pathsep.join([str(TESTS / "support"), os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "pytest_timeout", "-p", "broken", "-k", tests, str(TESTS / "cuda")]  # fmt: skip
    done = subprocess.run(
        command, cwd=TESTS, env=environment, capture_output=True, text=True, check=False, timeout=280
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    assert says in done.stdout
