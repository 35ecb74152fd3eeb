# SPDX-License-Identifier: Apache-2.0
"""What a user meets when the package behind the pack is not there, is another one, or cannot run on this machine."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.metadata
import importlib.util
import json
import logging
import subprocess
import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest
from pack_import import NAME, ROOT, Pack, forget

import distorch

VERSION = distorch.__version__
CORE_INPUTS = {"required": {"name": (["a"],)}, "optional": {"device": (["default", "cpu"],)}}


class CoreNode:
    RETURN_TYPES = ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - the name that ComfyUI sets
        return CORE_INPUTS


class Known(dict):
    """Every node that is asked for is one of ComfyUI's."""

    def __contains__(self, name: object) -> bool:
        return True

    def get(self, name: str) -> type:
        return CoreNode

    __getitem__ = get


@pytest.fixture
def inside_comfy(comfy, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """ComfyUI's names are there; the pack is taken out of memory afterwards, the package comes back."""
    folders, nodes = types.ModuleType("folder_paths"), types.ModuleType("nodes")
    folders.get_folder_paths = lambda _kind: []
    folders.get_filename_list = lambda _kind: ["a.safetensors"]
    folders.folder_names_and_paths = {}
    nodes.NODE_CLASS_MAPPINGS = Known()
    monkeypatch.setitem(sys.modules, "folder_paths", folders)
    monkeypatch.setitem(sys.modules, "nodes", nodes)
    before = {n: m for n, m in sys.modules.items() if n.partition(".")[0] == "distorch"}
    yield
    forget()
    sys.modules.update(before)


class Without(importlib.abc.MetaPathFinder):
    """Finds nothing, and lets no other finder find one module: as if it were not installed."""

    def __init__(self, missing: str) -> None:
        self.missing = missing

    def find_spec(self, name: str, path=None, target=None) -> None:
        if name == self.missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def install_script() -> types.ModuleType:
    spec = importlib.util.spec_from_file_location("distorch_install", ROOT / "install.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "distorch" else find(name)
    )


def torch_is(monkeypatch: pytest.MonkeyPatch, version: str | None) -> None:
    def told(name: str) -> str:
        if name == "torch" and version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version if name == "torch" else "1"

    monkeypatch.setattr(importlib.metadata, "version", told)


def python_is_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 9, 2))


SHORTCOMINGS = [
    (no_package, "DisTorch's package distorch {v} is not installed: type {pip} and start"),
    (
        lambda m: m.setitem(distorch.__dict__, "__version__", "0.0.9"),
        "DisTorch's folder needs the package distorch {v}, and 0.0.9 is installed: type {pip} and",
    ),
    (
        lambda m: torch_is(m, "2.9.1+cu128"),
        "DisTorch needs torch 2.10 or later, and 2.9.1+cu128 is here, which is left as it is: update",
    ),
    (lambda m: torch_is(m, None), "DisTorch needs torch, which is not installed for {python}"),
    (python_is_old, "DisTorch needs Python 3.10 or later, and this is 3.9 ({python}): install"),
]


@pytest.mark.parametrize(("fault", "said"), SHORTCOMINGS)
def test_the_nodes_stay_and_say_what_is_missing(
    fault, said: str, inside_comfy, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    fault(monkeypatch)
    pack = Pack().module
    said = said.format(
        v=VERSION,
        pip=f'"{sys.executable}" -m pip install -r "{ROOT / "requirements.txt"}"',
        python=sys.executable,
    )
    errors = [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR]
    assert len(errors) == 1
    assert errors[0].startswith(said), errors
    assert "\n" not in errors[0]
    for cls in pack.NODE_CLASS_MAPPINGS.values():
        assert errors[0] == cls.DESCRIPTION
        assert cls.VALIDATE_INPUTS(anything=1) == errors[0]
        with pytest.raises(RuntimeError, match="DisTorch"):
            getattr(cls(), cls.FUNCTION)()
    assert not any("patches" in name for name in sys.modules if name.startswith(NAME))


def described(classes: dict[str, type]) -> dict[str, Any]:
    """As saved workflows need it: names, order and types of inputs and outputs; which files there are does not count."""

    def kinds(inputs: dict[str, Any]) -> list[tuple[str, str, str]]:
        return [
            (part, name, "a list" if isinstance(kind[0], list) else str(kind[0]))
            for part in ("required", "optional")
            for name, kind in inputs.get(part, {}).items()
        ]

    return {
        name: (kinds(c.INPUT_TYPES()), c.RETURN_TYPES, c.CATEGORY) for name, c in classes.items()
    }


def test_the_stand_ins_have_the_ids_the_inputs_and_the_outputs_of_the_nodes(
    inside_comfy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "comfy.sd", types.ModuleType("comfy.sd"))
    monkeypatch.setitem(sys.modules, "comfy.utils", types.ModuleType("comfy.utils"))
    with monkeypatch.context() as inside:
        inside.delitem(sys.modules, "folder_paths")
        pack = Pack()
    real, real_titles = pack.load("nodes").named()
    wanted = described(real)
    assert len(wanted) > 40
    made, titles = pack.load("nodes.missing").mappings("why")
    assert described(made) == wanted
    for cls in made.values():
        json.dumps(cls.INPUT_TYPES())
    assert titles == real_titles


@pytest.mark.parametrize("missing", ["distorch.allocation", "distorch.memory.peaks"])
def test_a_package_that_does_not_load_is_named_with_the_command(
    missing: str, inside_comfy, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    for name in [n for n in sys.modules if n == missing or n.startswith(f"{missing}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Without(missing), *sys.meta_path])
    for name in ("comfy.sd", "comfy.utils", "server", "execution"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    pack = Pack().module
    (said,) = [m for m in caplog.messages if "does not load" in m]
    assert missing.rpartition(".")[2] in said.partition(": type ")[0]
    assert (
        f'"{sys.executable}" -m pip install --force-reinstall -r "{ROOT / "requirements.txt"}"'
    ) in said
    assert "DisTorchPlan" in pack.NODE_CLASS_MAPPINGS


def test_another_missing_package_is_not_taken_for_ours(
    inside_comfy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "comfy.model_management", None)
    with pytest.raises(ImportError) as error:
        Pack()
    assert "pip install" not in str(error.value)


def test_the_managers_script_has_nothing_to_do_where_the_package_is(monkeypatch) -> None:
    script = install_script()
    monkeypatch.setattr(script.subprocess, "run", lambda *_a, **_k: pytest.fail("pip was run"))
    assert script.main() == 0


@pytest.mark.parametrize("status", [0, 1])
def test_the_managers_script_builds_where_no_wheel_came(
    status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    script = install_script()
    asked = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess:
        asked.append(command)
        return subprocess.CompletedProcess(command, status)

    no_package(monkeypatch)
    monkeypatch.setattr(script.subprocess, "run", run)
    assert script.main() == status
    assert asked == [[sys.executable, *script.BUILD, str(ROOT)]]
    assert ("a C++20 compiler and Abseil" in capsys.readouterr().err) is bool(status)


@pytest.mark.parametrize("fault", [python_is_old, lambda m: torch_is(m, "2.9.1")])
def test_the_managers_script_installs_nothing_beside_an_old_torch_or_python(
    fault, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    script = install_script()
    monkeypatch.setattr(script.subprocess, "run", lambda *_a, **_k: pytest.fail("pip was run"))
    fault(monkeypatch)
    assert script.main() == 1
    said = capsys.readouterr().err
    assert said.startswith("DisTorch needs")
    assert said.count("\n") == 1
