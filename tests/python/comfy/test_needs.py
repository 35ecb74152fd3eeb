# SPDX-License-Identifier: Apache-2.0
"""Every ComfyUI in COMFYUI_PATH has what the pack needs, as its sources tell and as it looks while it runs."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import pytest
from comfy_harness import ComfyServer, Workflow, versions

from distorch.tools.comfyui import SEAMS, Source, problems_of

pytestmark = pytest.mark.comfy

PATHS = sorted({v.path for v in versions()}) or [None]


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.name if p else "none")
def test_the_sources_meet_every_need(path) -> None:
    if path is None:
        pytest.skip("COMFYUI_PATH is not set")
    source = Source(path)
    assert [str(p) for p in problems_of(source)] == []
    assert all(source.has(need.module) for seam in SEAMS.values() for need in seam.needs)


LOOK = """
import time
from distorch.tools.comfyui import SEAMS, Running, problems_of
_begin = time.thread_time()
_found = problems_of(Running())
_seconds = time.thread_time() - _begin
_tree = Running()
result = {
    "problems": [str(p) for p in _found],
    "seconds": _seconds,
    "not_seen": sorted({n.module for s in SEAMS.values() for n in s.needs if not _tree.has(n.module)}),
}
"""


def test_the_running_one_meets_every_need_and_is_looked_at_in_no_time(comfy: ComfyServer) -> None:
    found = comfy.evaluate(LOOK)
    assert found["problems"] == []
    assert found["not_seen"] == ["main"]
    assert found["seconds"] < 0.020


# Its first parameter has another name: whoever gives it by position sees no difference.
RENAMED = """
import execution
exec(
    "_before = get_output_data\\n"
    "async def get_output_data(prompt, unique_id, obj, input_data_all, *rest, **more):\\n"
    "    return await _before(prompt, unique_id, obj, input_data_all, *rest, **more)\\n",
    execution.__dict__,
)
NODE_CLASS_MAPPINGS = {}
"""


class WithOneSeamChanged(ComfyServer):
    """A ComfyUI in which one function that the pack wraps takes something else."""

    def _install(self, packs: Sequence[pathlib.Path]) -> None:
        super()._install(packs)
        pack = self.base / "custom_nodes" / "a_newer_comfyui"
        pack.mkdir()
        (pack / "__init__.py").write_text(RENAMED)


def test_one_seam_that_is_not_as_expected_is_left_alone_and_the_rest_works(
    comfy: ComfyServer, comfy_models: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    assert "ComfyUI's execution" not in comfy.log()
    (tmp_path / "models").symlink_to(comfy_models)
    server = WithOneSeamChanged(comfy.version, tmp_path)
    try:
        w = Workflow()
        model = w.add(
            "UNETLoaderDisTorch2MultiGPU",
            unet_name="wan.safetensors",
            weight_dtype="default",
            expert_mode_allocations="sim:0,8mb;sim:1,*",
        )
        w.save(w.sample(model, w.conditioning(8, 4096), w.latent(1, 16, 1, 8, 8)), "wan")
        server.run(w)
        lines = [line for line in server.log().splitlines() if "ComfyUI's execution." in line]
        assert len(lines) == 1, lines
        assert "get_output_data takes (prompt, unique_id, obj, input_data_all), not" in lines[0]
        assert lines[0].endswith("the tab cannot say which node loaded a model")
        (placed,) = server.get("/distorch/placements")["placements"]
        assert {"sim:0", "sim:1"} <= {block["device"] for block in placed["blocks"]}
        assert server.evaluate(
            "import comfy.model_management as mm, execution\n"
            "result = [hasattr(mm.unload_all_models, '__wrapped__'), "
            "hasattr(execution.get_output_data, '__wrapped__')]"
        ) == [True, False]
    finally:
        server.stop()
