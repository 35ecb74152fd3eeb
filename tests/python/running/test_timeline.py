# SPDX-License-Identifier: Apache-2.0
"""The whole product on the virtual clock: a step takes what compute or the slowest link takes, and a picture is drawn."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

PATH = Path(__file__).resolve().parents[3] / "bench" / "timeline.py"


@pytest.fixture(scope="module")
def timeline() -> ModuleType:
    spec = importlib.util.spec_from_file_location("timeline", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


@pytest.mark.usefixtures("sim")
@pytest.mark.parametrize("index", range(4))
def test_a_step_is_as_short_as_its_links_allow(timeline: ModuleType, index: int) -> None:
    setting = timeline.SETTINGS[index]
    step, bound, done = timeline.run(setting)
    assert 0.999 * bound <= step <= 1.02 * bound
    kernels = [d for d in done if d[0] == "kernel"]
    copies = [d for d in done if d[0] == "copy"]
    assert len(kernels) == 2 * setting.groups
    streamed = round(setting.groups * setting.share)
    assert 2 * streamed - 4 <= len(copies) <= 2 * streamed + 4
    picture = timeline.picture([(setting.name, done)])
    assert picture.count("<rect") == len(done) + 4
