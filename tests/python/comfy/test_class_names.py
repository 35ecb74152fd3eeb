# SPDX-License-Identifier: Apache-2.0
"""The scan's table of types against the classes that ComfyUI's sources really have."""

from __future__ import annotations

import ast
import pathlib
import re
from collections.abc import Iterator

import pytest
from comfy_harness import versions

from distorch import _C

pytestmark = pytest.mark.comfy

ROOT = pathlib.Path(__file__).resolve().parents[3]
TABLE = ROOT / "distorch" / "telemetry" / "grouping.cc"
CASES = ROOT / "tests" / "distorch" / "telemetry" / "grouping_test.cc"

#: Words of the table for classes that are not ComfyUI's, and whose they are.
OTHERS = {
    "t2iadapter": "diffusers: T2IAdapter; ComfyUI's is no torch module, but holds one",
    "textencoder": "transformers: ClapTextEncoder",
    "superresolution": "transformers: Swin2SRForImageSuperResolution",
    "lycoris": "LyCORIS",
    "depthestimation": "transformers: DPTForDepthEstimation and its like",
    "depthpro": "Depth Pro; transformers: DepthProModel",
    "zoedepth": "ZoeDepth",
    "midas": "MiDaS: MidasNet",
    "dptdepth": "MiDaS: DPTDepthModel",
    "metric3d": "Metric3D",
    "spandrel": "spandrel, with which ComfyUI reads upscale models",
    "esrgan": "spandrel: ESRGAN",
    "rrdbnet": "BasicSR: RRDBNet",
    "swinir": "spandrel: SwinIR",
    "swin2sr": "spandrel: Swin2SR",
    "srvgg": "Real-ESRGAN: SRVGGNetCompact",
    "wanvideo": "ComfyUI-WanVideoWrapper: WanVideoModel",
}
#: A word for other packs' classes. ComfyUI's one class with it is another thing, by an earlier line.
SHADOWED = {"upscale": ["comfy.model_base.SD_X4Upscaler"]}


def rules() -> list[tuple[str, str, str]]:
    """(where, pattern, type) of every line of the table."""
    found = re.findall(r'\{Where::k(\w+), "([^"]+)", "(\w+)"\}', TABLE.read_text())
    assert len(found) > 70, "the table has another form"
    return found


def classes_in(body: list[ast.stmt], outer: str) -> Iterator[tuple[str, set[str]]]:
    """The classes in a module, a class or a function: qualified name, last words of the bases."""
    for node in body:
        if isinstance(node, ast.ClassDef):
            yield outer + node.name, {ast.unparse(base).rpartition(".")[2] for base in node.bases}
            yield from classes_in(node.body, f"{outer}{node.name}.")
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from classes_in(node.body, f"{outer}{node.name}.<locals>.")
        elif isinstance(node, (ast.If, ast.Try)):
            yield from classes_in([*node.body, *node.orelse], outer)


def modules_among(bases: dict[str, set[str]]) -> set[str]:
    """Those that are torch modules, as far as the names of their bases tell."""
    known, before = {"Module"}, set()
    while known != before:
        before = set(known)
        known |= {name.rpartition(".")[2] for name, above in bases.items() if above & known}
    return {name for name, above in bases.items() if above & known}


@pytest.fixture(scope="module")
def newest() -> pathlib.Path:
    """A checkout that has what the table speaks of."""
    for version in versions():
        if version.number >= (0, 33):
            return version.path
    pytest.skip("COMFYUI_PATH names no ComfyUI of 0.33 or later")


@pytest.fixture(scope="module")
def classes(newest: pathlib.Path) -> set[str]:
    """Every torch module of the given checkouts, by its qualified name."""
    bases: dict[str, set[str]] = {}
    for path in dict.fromkeys([newest, *(version.path for version in versions())]):
        for folder in ("comfy", "comfy_extras"):
            for file in (path / folder).rglob("*.py"):
                module = ".".join(file.relative_to(path).with_suffix("").parts)
                tree = ast.parse(file.read_text(encoding="utf-8"))
                for name, above in classes_in(tree.body, f"{module}."):
                    bases.setdefault(name, set()).update(above)
    return modules_among(bases)


def matching(rule: tuple[str, str, str], classes: set[str]) -> list[str]:
    where, pattern, _ = rule
    own = where == "Class"
    return [c for c in classes if pattern in (c.rpartition(".")[2] if own else c).lower()]


def test_every_word_of_the_table_is_in_a_class_of_comfyui(classes: set[str]) -> None:
    missing = [
        rule
        for rule in rules()
        if rule[0] != "Folder" and rule[1] not in OTHERS and not matching(rule, classes)
    ]
    assert missing == []


def test_every_word_gives_its_type_to_a_class_of_comfyui(classes: set[str]) -> None:
    """Another line before it must not take them all."""
    hidden = []
    for rule in rules():
        found = matching(rule, classes) if rule[0] != "Folder" else []
        if found == SHADOWED.get(rule[1]):
            continue
        if found and all(_C.classify_model([name], "") != rule[2] for name in found):
            hidden.append(rule)
    assert hidden == []


def test_words_for_others_are_in_the_table_and_not_in_comfyui(classes: set[str]) -> None:
    table = {rule[1]: rule for rule in rules()}
    assert set(OTHERS) <= set(table)
    assert [word for word in OTHERS if matching(table[word], classes)] == []


def test_the_classes_that_the_tables_own_test_names_exist(classes: set[str]) -> None:
    text = re.sub(r'"\s*\n\s*"', "", CASES.read_text())
    named = set(re.findall(r'"(comfy\.[\w.<>]+)"', text))
    assert len(named) > 15
    assert sorted(named - classes) == []


def test_the_folders_of_the_table_are_comfyuis(newest: pathlib.Path) -> None:
    text = (newest / "folder_paths.py").read_text(encoding="utf-8")
    folders = [pattern.rstrip("/") for where, pattern, _ in rules() if where == "Folder"]
    assert [name for name in folders if f'"{name}"' not in text] == []
