# SPDX-License-Identifier: Apache-2.0
"""A folder whose package is of another version: ComfyUI starts as ever, the nodes are there and say what to type."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

import pytest
from comfy_harness import ComfyError, ComfyServer, Workflow

pytestmark = pytest.mark.comfy


class WithAnotherPackage(ComfyServer):
    """As after an update of the folder alone."""

    def _install(self, packs: Sequence[pathlib.Path]) -> None:
        super()._install(packs)
        (self.base / "packs" / "DisTorch" / "requirements.txt").write_text("distorch==99.0.0\n")


def of_the_pack(server: ComfyServer) -> dict[str, Any]:
    """Names and order of the inputs and outputs of each of our nodes."""
    return {
        name: (node["input_order"], node["output"], node["output_name"], node["category"])
        for name, node in server.get("/object_info").items()
        if node["python_module"].endswith("DisTorch")
    }


def test_saved_workflows_keep_their_nodes_and_learn_why_they_do_not_run(
    comfy: ComfyServer, comfy_models: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    wanted = of_the_pack(comfy)
    assert len(wanted) >= 29
    (tmp_path / "models").symlink_to(comfy_models)
    server = WithAnotherPackage(comfy.version, tmp_path)
    try:
        assert of_the_pack(server) == wanted
        w = Workflow()
        model = w.add("UNETLoader", unet_name="wan.safetensors", weight_dtype="default")
        w.save(w.sample(model, w.conditioning(8, 4096), w.latent(1, 16, 1, 8, 8)), "wan")
        server.run(w)
        w = Workflow()
        model = w.add(
            "UNETLoaderDisTorch2MultiGPU", unet_name="wan.safetensors", weight_dtype="default"
        )
        w.save(w.sample(model, w.conditioning(8, 4096), w.latent(1, 16, 1, 8, 8)), "ours")
        with pytest.raises(ComfyError, match=r"folder needs the package distorch 99\.0\.0"):
            server.run(w)
        said = [line for line in server.log().splitlines() if "DisTorch" in line and "type" in line]
        assert said
        assert 'requirements.txt" and start ComfyUI again.' in said[0]
        assert "Traceback" not in server.log()
    finally:
        server.stop()
