# SPDX-License-Identifier: Apache-2.0
"""What can be queued, what is refused, and the arguments."""

from __future__ import annotations

import builtins
import json
import pathlib
import sys

import pytest
from fake_runner import PROMPT

from distorch.tools import cli
from distorch.tools.e2e import workflow
from distorch.tools.e2e.workflow import WorkflowError

EDITOR = {
    "last_node_id": 2,
    "nodes": [{"id": 1, "type": "KSampler", "widgets_values": []}],
    "links": [],
}


def test_the_api_form_is_taken_as_it_is() -> None:
    assert workflow.api_form(PROMPT, "x") == PROMPT
    assert workflow.api_form({"prompt": PROMPT, "client_id": "y"}, "x") == PROMPT


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (EDITOR, "x: this is a workflow as ComfyUI's editor saves it, which a server cannot run: open it in ComfyUI "
         'and choose Workflow > Export (API) (older menu: Settings > Enable Dev mode Options, then "Save (API Format)")'),
        ([1], "x: expected an object of nodes (ComfyUI's API form), found a list"),
        ("text", "x: expected an object of nodes (ComfyUI's API form), found a str"),
        ({}, "x: the workflow has no nodes"),
        ({"1": {"inputs": {}}}, "x: node '1' has no \"class_type\", so this is not ComfyUI's API form: open it"),
        ({"1": 5}, "x: node '1' has no \"class_type\""),
        ({"1": {"class_type": "KSampler"}}, 'x: node \'1\' (KSampler) has no "inputs" object'),
    ],
)  # fmt: skip
def test_other_forms_are_refused_with_the_remedy(found, message) -> None:
    with pytest.raises(WorkflowError) as raised:
        workflow.api_form(found, "x")
    assert str(raised.value).startswith(message)


def test_a_byte_order_mark_is_no_fault(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "bom.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(PROMPT).encode())
    assert workflow.read(path).prompt == PROMPT


def test_nodes_are_named_by_their_title() -> None:
    nodes = workflow.Workflow(pathlib.Path("x"), PROMPT).nodes
    assert [(n.id, n.kind, n.title) for n in nodes.values()] == [
        ("1", "UNETLoader", "UNETLoader"), ("2", "KSampler", "KSampler"), ("3", "SaveImage", "Keep it"),
    ]  # fmt: skip


def test_files_of_the_same_name_are_told_apart(tmp_path: pathlib.Path) -> None:
    made = [workflow.Workflow(tmp_path / folder / "w.json", PROMPT) for folder in "ab"]
    assert [s.name for s in workflow.scenes(made, 1)] == [str(w.path) for w in made]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No such file or directory"),
        (b"{", "no JSON: Expecting"),
        (b"\xff\xfe\x00", "no JSON: "),
        (b"[" * 100_000, "nested too deeply"),
        (json.dumps(EDITOR).encode(), "Workflow > Export (API)"),
    ],
)
def test_a_bad_file_is_wrong_usage(tmp_path, capsys, content, words) -> None:
    path = tmp_path / "bad.json"
    if content is not None:
        path.write_bytes(content)
    assert cli.main(["e2e", str(path)]) == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"distorch e2e: {path}: ")
    assert words in said.err
    assert said.out == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["--timeout", "0"],
            "argument --timeout: '0' is no duration; expected one such as 90s, 10m, 1h30m",
        ),
        (["--timeout", "soon"], "argument --timeout: 'soon' is no duration"),
        (["--settle", "-1"], "argument --settle: '-1' is no duration"),
        (["--drift-mb", "inf"], "argument --drift-mb: must be 0 or more"),
        (["--timeout", "5", "--fast-iteration"], "not allowed with argument"),
        (["--repeat", "0"], "argument --repeat: '0' is no whole number from 1 to 100000"),
        (["--drift-mb", "-1"], "argument --drift-mb: must be 0 or more"),
    ],
)
def test_wrong_arguments(workflow, capsys, arguments, words) -> None:
    with pytest.raises(SystemExit) as raised:
        cli.main(["e2e", str(workflow), *arguments])
    assert raised.value.code == 2
    assert words in capsys.readouterr().err


def test_a_port_that_is_none(workflow, capsys) -> None:
    assert cli.main(["e2e", str(workflow), "--url", "127.0.0.1:99999"]) == 2
    assert "'127.0.0.1:99999' is no address" in capsys.readouterr().err


def test_wrong_address(workflow, capsys) -> None:
    assert cli.main(["e2e", str(workflow), "--url", "ftp://host"]) == 2
    assert (
        "'ftp://host' is no address; expected one such as http://127.0.0.1:8188"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize("option", ["--json", "--junit", "--plot"])
def test_files_that_cannot_be_written_are_refused_before_the_run(
    e2e, server, tmp_path, option, capsys
) -> None:
    where = tmp_path / "nowhere" / "file"
    assert (
        cli.main(["e2e", str(tmp_path / "wan.json"), "--url", server.url, option, str(where)]) == 2
    )
    assert f"{where}: there is no folder {where.parent}" in capsys.readouterr().err
    assert server.requests == []


def test_without_aiohttp_the_remedy_is_named(workflow, capsys, monkeypatch) -> None:
    there = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.split(".")[0] == "aiohttp":
            raise ImportError("No module named 'aiohttp'")
        return there(name, *args, **kwargs)

    for name in [m for m in sys.modules if m.startswith(("aiohttp", "distorch.tools.e2e.client"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", refuse)
    assert cli.main(["e2e", str(workflow)]) == 2
    assert (
        "No module named 'aiohttp'. It is what talks to ComfyUI: pip install aiohttp"
        in capsys.readouterr().err
    )
