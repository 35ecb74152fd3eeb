# SPDX-License-Identifier: Apache-2.0
"""What the pack needs of ComfyUI, against trees that are written from the table and then spoilt, one need at a time."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import types
from collections import defaultdict
from pathlib import Path

import pytest

from distorch.tools.comfyui import SEAMS, Need, Running, Seam, Source, problems_of

ROOT = Path(__file__).resolve().parents[3]


def one_a_name() -> dict[str, tuple[Seam, Need]]:
    """What several needs ask of the same name, as one."""
    found: dict[str, tuple[Seam, Need]] = {}
    for seam in SEAMS.values():
        for need in seam.needs:
            before = found.get(need.full, (seam, need))[1]
            takes = max(
                (n.takes for n in (before, need) if n.takes is not None), key=len, default=None
            )
            found[need.full] = (
                seam,
                dataclasses.replace(
                    need,
                    takes=takes,
                    mentions=f"{before.mentions} {need.mentions}".strip(),
                    calls=before.calls or need.calls,
                ),
            )
    return found


NEEDS = one_a_name()
FUNCTIONS = {full: (s, n) for full, (s, n) in NEEDS.items() if n.takes is not None}


def function(name: str, need: Need, indent: str = "") -> str:
    head = (
        f"{'async ' if need.coroutine else ''}def {name}({', '.join((need.takes or '').split())})"
    )
    words = "".join(f"{indent}    {word!r}\n" for word in (need.mentions or "pass").split())
    return f"{indent}{head}:\n{words}"


def tree(folder: Path, spoilt: Need | None = None, text: str = "") -> Source:
    """A ComfyUI that is just what the table says; of one need, `text` stands in its place ("": nothing)."""
    modules: dict[str, dict[str, str]] = defaultdict(dict)
    classes: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for _, need in NEEDS.values():
        owner, dot, name = need.name.rpartition(".")
        plain = need.takes is None and not need.mentions
        body = f"{name} = 1\n" if plain else function(name, need)
        if spoilt is not None and need.full == spoilt.full:
            body = text
        (classes[need.module, owner] if dot else modules[need.module])[name] = body
    modules["comfy.model_patcher"]["ModelPatcherDynamic"] = "class ModelPatcherDynamic: ...\n"
    for (module, owner), members in classes.items():
        body = "".join(members.values()) or "pass\n"
        indented = "".join(f"    {line}\n" for line in body.splitlines())
        modules[module][owner] = f"class {owner}:\n{indented}"
    for module, members in modules.items():
        path = folder.joinpath(*module.split(".")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(members.values()))
    return Source(folder)


def test_a_tree_that_is_as_the_table_says_has_no_problem(tmp_path: Path) -> None:
    assert problems_of(tree(tmp_path)) == []


@pytest.mark.parametrize("full", NEEDS)
def test_a_name_that_is_gone_is_named_with_what_it_costs(full: str, tmp_path: Path) -> None:
    seam, need = NEEDS[full]
    found = [str(p) for p in problems_of(tree(tmp_path, need))]
    assert f"ComfyUI's {full} is not there: {seam.costs}" in found
    assert all(f"ComfyUI's {full} " in line for line in found), found


@pytest.mark.parametrize("full", [f for f, (_, n) in FUNCTIONS.items() if (n.takes or "").split()])
def test_a_parameter_of_another_name_is_told(full: str, tmp_path: Path) -> None:
    seam, need = NEEDS[full]
    last = (need.takes or "").split()[-1]
    text = function(need.name.rpartition(".")[2], need).replace(f"{last})", "other)", 1)
    found = [str(p) for p in problems_of(tree(tmp_path, need, text))]
    assert found, full
    assert all(f"ComfyUI's {full} takes (" in line and "other)" in line for line in found), found
    assert seam.costs in found[-1]


@pytest.mark.parametrize("full", [f for f, (_, n) in FUNCTIONS.items() if n.calls])
def test_a_function_that_we_call_may_not_ask_for_more(full: str, tmp_path: Path) -> None:
    need = NEEDS[full][1]
    name, takes = need.name.rpartition(".")[2], ", ".join((need.takes or "").split())
    before = f"{takes}, " if takes else ""
    body = "".join(f"    {word!r}\n" for word in (need.mentions or "pass").split())
    more = tree(tmp_path, need, f"def {name}({before}novelty):\n{body}")
    assert {p.what for p in problems_of(more)} == {"asks for novelty as well"}
    grown = tree(tmp_path, need, f"def {name}({before}novelty=None):\n{body}")
    assert problems_of(grown) == []


def test_a_body_that_does_something_else_is_told(tmp_path: Path) -> None:
    need = NEEDS["execution.PromptQueue.__init__"][1]
    text = "def __init__(self):\n    self.mutex = 1\n"
    (problem,) = problems_of(tree(tmp_path, need, text))
    assert problem.what == "does not use not_empty"


def test_a_coroutine_function_that_is_none_any_more_is_told(tmp_path: Path) -> None:
    need = NEEDS["execution.get_output_data"][1]
    text = function("get_output_data", need).replace("async ", "")
    (problem,) = problems_of(tree(tmp_path, need, text))
    assert problem.what == "is no coroutine function"


def test_what_holds_only_beside_dynamic_patchers_is_not_asked_for_without_them(
    tmp_path: Path,
) -> None:
    source = tree(tmp_path, NEEDS["comfy.model_patcher.CoreModelPatcher"][1])
    assert len(problems_of(source)) == 1
    path = tmp_path / "comfy" / "model_patcher.py"
    path.write_text(path.read_text().replace("class ModelPatcherDynamic: ...\n", ""))
    assert problems_of(Source(tmp_path)) == []


def test_a_module_that_runs_is_seen_as_its_source_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (
        "flag = 1\n"
        "class Owner:\n"
        "    def method(self, first, second=2, *rest, key=3):\n"
        "        def inner(): return first.deep + 'word'\n"
        "        return inner\n"
        "async def later(first): return helper(first)\n"
    )
    (tmp_path / "sample.py").write_text(text)
    module = types.ModuleType("sample")
    exec(compile(text, "sample.py", "exec"), module.__dict__)  # noqa: S102 - the sample itself
    monkeypatch.setitem(sys.modules, "sample", module)
    source, running = Source(tmp_path), Running()
    for name in ("flag", "Owner", "Owner.method", "later"):
        read, seen = source.find("sample", name), running.find("sample", name)
        assert read is not None
        assert seen is not None
        assert (read.parameters, read.defaults, read.more, read.coroutine) == (
            (seen.parameters, seen.defaults, seen.more, seen.coroutine)
        ), name
    words = {"deep", "word", "first"}
    assert words <= source.find("sample", "Owner.method").mentions
    assert words <= running.find("sample", "Owner.method").mentions
    assert source.find("sample", "Owner.none") is running.find("sample", "Owner.none") is None


def test_a_function_that_another_pack_put_there_is_its_own_business(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = types.ModuleType("comfy.model_management")
    module.soft_empty_cache = lambda: None
    monkeypatch.setitem(sys.modules, "comfy.model_management", module)
    seam = SEAMS["comfy.model_management.soft_empty_cache"]
    assert problems_of(Running(), (seam,)) == []
    del module.soft_empty_cache
    assert [p.what for p in problems_of(Running(), (seam,))] == ["is not there"]


def run(*paths: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / "check_comfyui.py"), *map(str, paths)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_tool_says_of_each_tree_what_differs(tmp_path: Path) -> None:
    good, bad, none = (tmp_path / name for name in ("good", "bad", "none"))
    tree(good)
    tree(bad, NEEDS["comfy.model_management.soft_empty_cache"][1])
    assert run(good).returncode == 0
    result = run(good, bad, none)
    assert result.returncode == 1
    first, second, what, third = result.stdout.splitlines()
    assert first.startswith(f"{good}: ")
    assert "are met" in first
    assert second.startswith(f"{bad}: ")
    assert "comfy.model_management.soft_empty_cache is not there: a free empties" in what
    assert third == f"{none}: holds no ComfyUI"
