# SPDX-License-Identifier: Apache-2.0
"""What a user reads when the package behind the pack is not there, or is of another state than the folder."""

from __future__ import annotations

import importlib.abc
import importlib.util
import subprocess
import sys
import types

import pytest
from pack_import import ROOT, Pack, forget


@pytest.fixture
def inside_comfy(comfy, monkeypatch: pytest.MonkeyPatch):
    """ComfyUI's names are there; the pack is taken out of memory afterwards."""
    for name in ("folder_paths", "nodes"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    yield
    forget()


class Without(importlib.abc.MetaPathFinder):
    """Finds nothing, and lets no other finder find one module: as if it were not installed."""

    def __init__(self, missing: str) -> None:
        self.missing = missing

    def find_spec(self, name: str, path=None, target=None) -> None:
        if name == self.missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("distorch", "the package distorch is not installed"),
        ("distorch.engine", "not of the same state as this folder"),
    ],
)
def test_a_package_that_is_missing_or_old_is_named_with_the_command(
    missing: str, said: str, inside_comfy, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [n for n in sys.modules if n == missing or n.startswith(f"{missing}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Without(missing), *sys.meta_path])
    with pytest.raises(ImportError, match=said) as error:
        Pack()
    assert f'"{sys.executable}" -m pip install --no-build-isolation "{ROOT}"' in str(error.value)


def test_another_missing_package_is_not_taken_for_ours(
    inside_comfy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "comfy.model_management", None)
    with pytest.raises(ImportError) as error:
        Pack()
    assert "pip install" not in str(error.value)


@pytest.mark.parametrize("status", [0, 1])
def test_the_managers_script_reports_what_pip_did(
    status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    spec = importlib.util.spec_from_file_location("distorch_install", ROOT / "install.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    asked = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess:
        asked.append(command)
        return subprocess.CompletedProcess(command, status)

    monkeypatch.setattr(script.subprocess, "run", run)
    assert script.main() == status
    assert asked == [[sys.executable, *script.COMMAND, str(ROOT)]]
    assert ("libabsl-dev" in capsys.readouterr().err) is bool(status)
