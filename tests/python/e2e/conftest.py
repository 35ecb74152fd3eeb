# SPDX-License-Identifier: Apache-2.0
"""Fixtures: a server that plays ComfyUI's queue, workflow files, and the command."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from fake_comfy import GB, MB, FakeDevice
from fake_runner import PROMPT, FakeRunner

from distorch.tools import cli


@pytest.fixture
def server() -> Iterator[FakeRunner]:
    with FakeRunner(
        [FakeDevice("sim:0", 24 * GB, 500 * MB), FakeDevice("sim:1", 24 * GB, MB)]
    ) as made:
        yield made


@pytest.fixture
def workflow(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "wan.json"
    path.write_text(json.dumps(PROMPT))
    return path


@dataclass
class Ended:
    """What the command left."""

    status: int
    out: str
    err: str
    json: dict[str, Any]

    @property
    def scenes(self) -> list[dict[str, Any]]:
        return self.json["scenes"]

    @property
    def statuses(self) -> list[str]:
        return [s["status"] for s in self.scenes]

    @property
    def drift(self) -> dict[str, dict[str, Any]]:
        return {d["device"]: d for d in self.json["drift"]}


@pytest.fixture
def e2e(
    server: FakeRunner,
    workflow: pathlib.Path,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., Ended]:
    """Runs `distorch e2e wan.json` against the server with these arguments besides; `settle` 0 unless given."""

    def run(*arguments: str) -> Ended:
        where = tmp_path / "result.json"
        where.unlink(missing_ok=True)
        files = [a for a in arguments if a.endswith(".json")]
        arguments = tuple(a for a in arguments if a not in files)
        given = [
            str(workflow),
            *files,
            "--url",
            server.url,
            "--json",
            str(where),
            "--interval",
            "0.05",
        ]
        settle = () if "--settle" in arguments else ("--settle", "0")
        capsys.readouterr()
        status = cli.main(["e2e", *given, *settle, *arguments])
        said = capsys.readouterr()
        found = json.loads(where.read_text()) if where.exists() else {}
        return Ended(status, said.out, said.err, found)

    return run
