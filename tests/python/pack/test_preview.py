# SPDX-License-Identifier: Apache-2.0
"""The plan of a file, from its header alone."""

from __future__ import annotations

import json
import pathlib
import struct
from typing import Any

import comfy_standin
import pytest
import torch

from distorch.allocation import PlanError, Spec, parse

MB = 2**20


def write_header(path: pathlib.Path, tensors: dict[str, int]) -> None:
    """A safetensors file whose bytes are a hole: reading them would take long, the header does not."""
    header, offset = {}, 0
    for name, size in tensors.items():
        header[name] = {"dtype": "U8", "shape": [size], "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + offset)


def of(text: str) -> Spec:
    return parse(text, kinds=["sim"])


@pytest.fixture
def preview(pack: Any, comfy: comfy_standin.StandIn, tmp_path: pathlib.Path) -> Any:
    blocks = {f"blocks.{i}.ff.weight": 4 * MB for i in range(8)}
    blocks |= {f"blocks.{i}.ff.bias": 64 for i in range(8)}
    blocks |= {"norm.weight": 512, "blocks.0.scale_table": 6144, "ff.scale_weight": 4}
    write_header(tmp_path / "dit.safetensors", blocks)
    parts = {f"model.diffusion_model.{name}": size for name, size in blocks.items()}
    parts |= {"first_stage_model.decoder.weight": 3 * MB}
    write_header(tmp_path / "all.safetensors", parts)
    (tmp_path / "notes.txt").write_text("no model")
    weights = {f"blocks.{i}.ff.weight": torch.zeros(MB // 4) for i in range(8)}
    torch.save({"state_dict": weights}, tmp_path / "old.ckpt")
    (tmp_path / "broken.safetensors").write_bytes(b"short")
    folders = comfy.folders
    folders.folder_names_and_paths = {"diffusion_models": (), "checkpoints": ()}
    names = {
        "diffusion_models": ["broken.safetensors", "notes.txt", "dit.safetensors"],
        "checkpoints": ["all.safetensors", "old.ckpt"],
    }
    folders.get_filename_list = lambda folder: names[folder]
    folders.get_full_path = lambda folder, name: (
        str(tmp_path / name) if name in names[folder] else None
    )
    return pack.load("patches.placing.preview")


def test_a_file_of_pytorch_is_planned(preview: Any) -> None:
    _, text = preview.describe(
        "checkpoints/old.ckpt", "model", [of("sim:1,3mb;sim:0,*#sim:0")], "sim:0", free_now=False
    )
    assert text.startswith("checkpoints/old.ckpt: 8 MB in 8 blocks, computed on sim:0")


def test_only_files_of_models_are_offered(preview: Any) -> None:
    assert preview.files() == [
        "diffusion_models/broken.safetensors",
        "diffusion_models/dit.safetensors",
        "checkpoints/all.safetensors",
        "checkpoints/old.ckpt",
    ]


@pytest.mark.parametrize("file", ["diffusion_models/../../etc/passwd", "vae/dit.safetensors", "x"])
def test_other_texts_are_no_files(preview: Any, file: str) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"no model file '[^']+' in ComfyUI's model folders"
    ):
        preview.path_of(file)


def test_blocks_stay_as_the_loader_would_have_them_stay(preview: Any) -> None:
    blocks = preview.blocks_of(preview.path_of("diffusion_models/dit.safetensors"), "model")
    by_name = {b.name: b for b in blocks}
    assert by_name["blocks.3.ff"].bytes == 4 * MB + 64
    assert by_name["blocks.3.ff"].pinned == ""
    assert by_name["norm"].pinned == "small"
    assert by_name["blocks.0 (own)"].pinned == "not moved by the layer's cast"
    assert by_name["ff (own)"].bytes == 4


@pytest.mark.parametrize(("part", "size"), [("model", 32), ("VAE", 3), ("whole file", 35)])
def test_a_part_of_a_checkpoint(preview: Any, part: str, size: int) -> None:
    blocks = preview.blocks_of(preview.path_of("checkpoints/all.safetensors"), part)
    assert sum(b.bytes for b in blocks) // MB == size


def test_a_part_that_a_checkpoint_lacks_is_an_error(preview: Any) -> None:
    with pytest.raises(ValueError, match=r"all\.safetensors holds no text encoder"):
        preview.blocks_of(preview.path_of("checkpoints/all.safetensors"), "text encoder")


def test_the_text_shows_sizes_devices_and_the_string(preview: Any) -> None:
    _, text = preview.describe(
        "diffusion_models/dit.safetensors",
        "model",
        [of("sim:1,9mb;sim:0,*#sim:0")],
        "sim:0",
        free_now=False,
    )
    assert text.splitlines()[:2] == [
        "diffusion_models/dit.safetensors: 32.01 MB in 11 blocks, computed on sim:0",
        "allocation: sim:1,9mb;sim:0,*#sim:0",
    ]
    rows = [line.split() for line in text.splitlines()]
    assert ["sim:1", "2", "8.00", "25.00%"] in rows
    assert ["sim:0", "7", "24.01", "75.00%"] in rows
    assert "stays on sim:0: 1 blocks, 512 B (small)" in text
    assert "stays on sim:0: 2 blocks, 6.00 KB (not moved by the layer's cast)" in text


def test_notes_of_the_plan_are_shown(preview: Any) -> None:
    file = "diffusion_models/dit.safetensors"
    _, text = preview.describe(file, "model", [of("sim:1,9mb")], "sim:0", free_now=False)
    assert "note: " in text
    assert "cpu" in text[text.index("note: ") :]


def test_errors_are_the_planners(preview: Any) -> None:
    file = "diffusion_models/dit.safetensors"
    with pytest.raises(PlanError, match="sim:1"):
        preview.describe(file, "model", [of("sim:1,9mb;cpu,1mb")], "sim:0", free_now=False)
    with pytest.raises(ValueError, match="broken"):
        preview.describe(
            "diffusion_models/broken.safetensors", "model", [of("cpu,*")], "sim:0", free_now=False
        )
