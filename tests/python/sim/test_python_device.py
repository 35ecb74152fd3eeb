# SPDX-License-Identifier: Apache-2.0
"""The devices' form in Python, which Windows has: the tests of the other one hold for it as well."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import distorch_sim
import pytest

TESTS = Path(__file__).resolve().parents[1]
FOLDER = Path(distorch_sim.__file__).parents[2] / "python-device"
FILES = ("sim/test_simulated_devices.py", "sim/test_races.py", "place/test_modules.py", "eject")
LACKS = 2  # tests of what it lacks: pinned memory, autocast


@pytest.mark.skipif(distorch_sim.IN_PYTHON, reason="these are the devices in Python")
def test_the_same_tests_pass() -> None:
    environment = {name: value for name, value in os.environ.items() if "PYTEST" not in name}
    environment["PYTHONPATH"] = os.pathsep.join([str(FOLDER), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:randomly", "-p", "no:cacheprovider"]
    ended = subprocess.run(
        [*command, *FILES],
        cwd=TESTS,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert ended.returncode == 0, ended.stdout
    assert f" passed, {LACKS} skipped" in ended.stdout  # which says that it was this form
