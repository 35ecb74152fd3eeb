# SPDX-License-Identifier: Apache-2.0
"""The package itself: import cost, version, command line, and what a failed load says."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import distorch
from distorch import _load
from distorch.tools import cli


def run(*code: str) -> str:
    result = subprocess.run([sys.executable, *code], capture_output=True, text=True, check=True)
    return result.stdout


def test_import_needs_no_torch_and_no_compiled_part() -> None:
    program = "import sys, distorch; print('torch' in sys.modules, 'distorch._C' in sys.modules)"
    assert run("-c", program).split() == ["False", "False"]


def test_versions_agree() -> None:
    assert _load.core().__version__ == distorch.__version__
    assert run("-m", "distorch", "--version").strip() == f"distorch {distorch.__version__}"
    root = Path(__file__).resolve().parents[3]
    assert f'\nversion = "{distorch.__version__}"\n' in (root / "pyproject.toml").read_text()
    # The two copies that others read: what the Manager installs, and what a reader of the changes sees first.
    assert f"\ndistorch=={distorch.__version__}\n" in (root / "requirements.txt").read_text()
    changes = re.findall(r"^## (\S+)", (root / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert changes[0] == distorch.__version__


def test_the_registry_knows_every_classifier_and_pip_replaces_no_torch() -> None:
    text = (Path(__file__).resolve().parents[3] / "pyproject.toml").read_text()
    known = {"GPU :: NVIDIA CUDA", "GPU :: AMD ROCm", "GPU :: Intel Arc", "GPU :: Apple Metal"}
    environments = set(re.findall(r'"Environment :: (.*)"', text))
    assert environments  # one that ComfyUI's registry does not know makes it drop all of them
    assert environments <= known
    assert re.findall(r'"Operating System :: (.*)"', text)
    assert "\ndependencies = []\n" in text


def test_every_export_and_every_command_can_be_loaded() -> None:
    for name in distorch.__dir__():
        assert getattr(distorch, name) is not None
    for command in cli.COMMANDS:
        text = run("-m", "distorch", command, "--help")
        assert text.startswith(f"usage: distorch {command}"), text


def test_no_public_name_is_a_module_as_well() -> None:
    # A module that is imported hangs on its package under its name, over what `__getattr__` gives.
    modules = {module.name for module in pkgutil.iter_modules(distorch.__path__)}
    assert {"devices", "model_blocks"} <= modules
    assert not modules & set(distorch.__all__)


def test_every_export_is_the_same_the_second_time() -> None:
    for module in set(distorch._EXPORTS.values()):
        importlib.import_module(module)
    for name in distorch.__all__:
        first = getattr(distorch, name)
        assert not inspect.ismodule(first), name
        assert getattr(distorch, name) is first


def test_a_model_is_listed_twice() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 2, bias=False))
    for _ in range(2):
        assert [(b.name, b.bytes) for b in distorch.inventory(model).blocks] == [("0", 32)]


def test_unknown_attribute_is_named() -> None:
    with pytest.raises(AttributeError, match="module 'distorch' has no attribute 'nothing'"):
        _ = distorch.nothing


def test_missing_core_explains_itself(tmp_path: Path) -> None:
    package = tmp_path / "distorch"
    package.mkdir()
    for name in ("__init__.py", "_load.py"):
        (package / name).write_text((Path(distorch.__file__).parent / name).read_text())
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import distorch._load as l\n"
        "try:\n    l.core()\nexcept ImportError as error:\n    print(error)"
    )
    text = run("-c", program)
    assert "DisTorch's C++ core (_C) could not be loaded" in text
    assert "compiled parts there: none" in text
    assert "pip install --no-build-isolation" in text
    assert "Traceback" in text


def test_operator_library_of_another_age_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_load, "_ABI_VERSION", 99)
    _load.load_operators.cache_clear()
    try:
        with pytest.raises(
            _load.LoadError, match="operator library has ABI 2, the package needs 99"
        ):
            _load.load_operators()
    finally:
        monkeypatch.undo()
        _load.load_operators.cache_clear()
        _load.load_operators()
