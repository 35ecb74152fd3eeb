# SPDX-License-Identifier: Apache-2.0
"""The pack's example workflows: offered among ComfyUI's templates, opened in the front end, and accepted."""

from __future__ import annotations

import asyncio
import json
import urllib.parse
from collections.abc import Iterator
from typing import Any

import pytest
from chromium import open_page
from comfy_harness import ComfyServer, repository_root, versions, write_empty_files

pytestmark = pytest.mark.comfy
EXAMPLES = sorted((repository_root() / "example_workflows").glob("*.json"))
VALIDATE = """
import asyncio, execution, json
_prompt = json.loads({prompt!r})
_outputs = [k for k, row in _prompt.items() if row["class_type"].startswith(("Save", "DisTorchPlan"))]
async def _validate():
    return [await execution.validate_inputs("test", _prompt, key, {{}}) for key in _outputs]
result = [[row[0], [e["message"] + ": " + e["details"] for e in row[1]]]
          for row in asyncio.run(_validate())]
"""


def named(workflow: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The widgets of each node, by the node's id."""
    return {str(n["id"]): n.get("widgets_values_named", {}) for n in workflow["nodes"]}


@pytest.fixture(scope="module", params=versions(dynamic=False) or [None], ids=str)
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ComfyServer]:
    """Empty files for those that the examples name."""
    base = tmp_path_factory.mktemp("examples")
    for path in EXAMPLES:
        for values in named(json.loads(path.read_text())).values():
            write_empty_files(base, values)
            if "file" in values:  # DisTorch Plan's, with its folder: one of these
                assert (base / "models" / values["file"]).exists()
    made = ComfyServer(request.param, base)
    made.request("/settings/Comfy.TutorialCompleted", True)  # else templates cover the page
    yield made
    made.stop()


def test_every_example_is_offered_opens_and_is_accepted(server: ComfyServer) -> None:
    offered = server.get("/workflow_templates")
    assert set(offered["DisTorch"]) == {path.stem for path in EXAMPLES}

    async def exported(name: str) -> dict[str, Any]:
        url = f"/api/workflow_templates/DisTorch/{urllib.parse.quote(name)}.json"
        async with open_page(1400, 1000) as page:
            await page.goto(f"http://127.0.0.1:{server.port}/")
            await page.wait_for("window.app?.extensionManager && window.app.graph", 90)
            await page.evaluate(
                f"fetch('{url}').then((r) => r.json()).then((w) => app.loadGraphData(w))"
            )
            text = await page.evaluate("app.graphToPrompt().then((p) => JSON.stringify(p.output))")
            return dict(json.loads(text))

    for path in EXAMPLES:
        prompt = asyncio.run(exported(path.stem))
        wanted = named(json.loads(path.read_text()))
        for node, row in prompt.items():
            values = {k: v for k, v in row["inputs"].items() if k in wanted[node]}
            assert values == {k: wanted[node][k] for k in values}, (path.stem, node)
        found = server.evaluate(VALIDATE.format(prompt=json.dumps(prompt)))
        assert found, path.stem
        assert [row for row in found if row != [True, []]] == [], path.stem
