# SPDX-License-Identifier: Apache-2.0
"""tools/mutants.py: what it changes in a source, and that a run with survivors of no reason fails."""

from __future__ import annotations

import importlib.util
import pathlib
import sys
from types import ModuleType

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[3]
SOURCE = """\
int Sum(const std::vector<int>& of, int most) {
  // if (of.empty()) return 1;
  int sum = 0;
  for (const int each : of) {
    if (int twice = 2 * each; twice <= most && each != "<"[0]) sum += each;
    ++counted;
    Tell(sum);
  }
  return sum - most;
}
"""


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("mutants_tool", ROOT / "tools/mutants.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = made
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "tools")
        spec.loader.exec_module(made)
    return made


def test_what_is_changed(tool: ModuleType) -> None:
    loop = 'if (int twice = 2 * each; twice <= most && each != "<"[0]) sum += each;'
    assert [(m.what, m.line, m.changed) for m in tool.mutants("a.cc", SOURCE)] == [
        ("constant", "int sum = 0;", "int sum = 1;"),
        ("condition", loop, 'if (int twice = 2 * each;!( twice <= most && each != "<"[0])) sum += each;'),
        ("constant", loop, loop.replace("2", "3")),
        ("operator", loop, loop.replace("*", "+")),
        ("operator", loop, loop.replace("<= most", "< most")),
        ("operator", loop, loop.replace("&&", "||")),
        ("operator", loop, loop.replace("!=", "==")),
        ("constant", loop, loop.replace("[0]", "[1]")),
        ("statement", loop, loop.replace("sum += each;", ";")),
        ("operator", loop, loop.replace("+=", "-=")),
        ("operator", "++counted;", "--counted;"),
        ("statement", "++counted;", ";"),
        ("statement", "Tell(sum);", ";"),
        ("operator", "return sum - most;", "return sum + most;"),
    ]  # fmt: skip


def test_every_file_of_every_group_has_mutants_and_tests(tool: ModuleType) -> None:
    for group in tool.GROUPS.values():
        for file in group.files:
            assert len(tool.mutants(file, (ROOT / file).read_text())) > 5, file
        for test in group.tests:
            listed = (ROOT / "tests" / test).parent / "CMakeLists.txt"
            assert f"NAME {pathlib.Path(test).name} " in listed.read_text(), test


def row(name: str, killed: str) -> dict[str, str]:
    return {"group": "parser", "name": name, "what": "operator", "killed": killed}


def test_survivors_need_a_reason(tool: ModuleType, tmp_path: pathlib.Path, monkeypatch) -> None:
    page = tmp_path / "reliability.md"
    page.write_text("- a.cc: `a` → `b`: the same\n")
    monkeypatch.setattr(tool, "PAGE", page)
    dead = [row(f"{i}", "a_test") for i in range(9)]
    text, good = tool.told([*dead, row("a.cc: `a` → `b`", "")])
    assert good
    assert text.splitlines()[-1] == "all          10 mutants,    9 killed, 90.0%"
    text, good = tool.told([*dead, row("a.cc: `a` → `c`", "")])
    assert not good
    assert text.splitlines()[-1] == "not in reliability.md: a.cc: `a` → `c`"
    assert not tool.told([*dead[1:], row("a.cc: `a` → `b`", "")])[1], "fewer than 90 %"
    assert not tool.told([])[1]
