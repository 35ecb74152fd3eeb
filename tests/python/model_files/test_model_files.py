# SPDX-License-Identifier: Apache-2.0
"""Names and sizes in model files of all formats."""

from __future__ import annotations

import json
import pathlib
import pickle

import gguf_writer as gguf
import psutil
import pytest
import safetensors.torch
import torch

from distorch.cli import main
from distorch.model_files import ENDINGS, tensor_sizes

WEIGHTS = {"blocks.0.weight": torch.zeros(32, 64), "scale": torch.zeros(3, dtype=torch.float16)}
SIZES = {"blocks.0.weight": 32 * 64 * 4, "scale": 6}


def test_safetensors(tmp_path: pathlib.Path) -> None:
    safetensors.torch.save_file(WEIGHTS, tmp_path / "x.safetensors")
    assert dict(tensor_sizes(tmp_path / "x.safetensors")) == SIZES


@pytest.mark.parametrize("ending", [".ckpt", ".pt", ".pth", ".bin", ".PT"])
@pytest.mark.parametrize(
    "content",
    [WEIGHTS, {"state_dict": WEIGHTS, "epoch": 3}, {"params_ema": WEIGHTS}],
    ids=["plain", "state_dict", "one entry"],
)
def test_pytorch(tmp_path: pathlib.Path, ending: str, content: dict) -> None:
    torch.save(content, tmp_path / f"x{ending}")
    assert dict(tensor_sizes(tmp_path / f"x{ending}")) == SIZES


def test_no_weight_of_a_pytorch_file_is_read(tmp_path: pathlib.Path) -> None:
    """The weights of this file are a hole of 1 GB."""
    with torch.serialization.skip_data():
        torch.save({"large": torch.empty(2**28)}, tmp_path / "x.pt")
    assert (tmp_path / "x.pt").stat().st_size > 2**30
    process = psutil.Process()
    before = process.memory_info().rss
    assert tensor_sizes(tmp_path / "x.pt") == [("large", 2**30)]
    assert process.memory_info().rss - before < 2**28


class Evil:
    def __reduce__(self) -> tuple:
        return (pathlib.Path("/nowhere/never").touch, ())


def test_a_pickle_is_not_run(tmp_path: pathlib.Path) -> None:
    torch.save({"weight": torch.zeros(3), "evil": Evil()}, tmp_path / "x.ckpt")
    words = r"^x\.ckpt: PyTorch cannot read it safely: Unsupported global: GLOBAL [^.]+ by default$"
    with pytest.raises(ValueError, match=words):
        tensor_sizes(tmp_path / "x.ckpt")


def test_a_broken_pickle_is_refused(tmp_path: pathlib.Path) -> None:
    torch.save(WEIGHTS, tmp_path / "x.pt")
    whole = (tmp_path / "x.pt").read_bytes()
    begin = b"\x80\x02}q\x00"
    assert whole.count(begin) == 1
    (tmp_path / "x.pt").write_bytes(whole.replace(begin, b"\x80\x02hc}"))  # asks for an entry 99
    with pytest.raises(ValueError, match=r"^x\.pt: PyTorch .* safely: it is broken \(KeyError\)$"):
        tensor_sizes(tmp_path / "x.pt")


def test_files_of_old_pytorch_are_refused(tmp_path: pathlib.Path) -> None:
    torch.save(WEIGHTS, tmp_path / "x.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match=r"x\.pt: no file of PyTorch 1\.6 or later"):
        tensor_sizes(tmp_path / "x.pt")
    (tmp_path / "y.pt").write_bytes(pickle.dumps(3))
    with pytest.raises(ValueError, match=r"y\.pt: no file of PyTorch"):
        tensor_sizes(tmp_path / "y.pt")


def test_gguf_keeps_quantised_sizes_and_names_the_table_of_tokens(tmp_path: pathlib.Path) -> None:
    tensors = {
        "token_embd.weight": ((65536, 64), gguf.Q8_0),
        "blk.0.attn_q.weight": ((64, 64), gguf.Q8_0),
    }
    quantised = {"blk.0.attn_q.weight": 64 * 64 // 32 * 34}
    gguf.write(tmp_path / "x.gguf", tensors, "qwen3")
    table = {"token_embedding.weight": 2 * 65536 * 64}
    assert dict(tensor_sizes(tmp_path / "x.gguf")) == table | quantised
    gguf.write(tmp_path / "y.gguf", tensors, "t5encoder")  # only the largest of these is unpacked
    table = {"token_embedding.weight": 65536 * 64 // 32 * 34}
    assert dict(tensor_sizes(tmp_path / "y.gguf")) == table | quantised
    gguf.write(tmp_path / "z.gguf", {"token_embd.weight": ((), gguf.F32)}, "llama")  # no table
    assert dict(tensor_sizes(tmp_path / "z.gguf")) == {"token_embedding.weight": 32}


def test_other_files_are_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match=r"x\.zip: no model file; known are \.safetensors, "):
        tensor_sizes(tmp_path / "x.zip")
    with pytest.raises(FileNotFoundError):
        tensor_sizes(tmp_path / "x.gguf")
    assert ".gguf" in ENDINGS


def test_the_command_line_plans_every_format(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    tensors = {"blocks.0.weight": ((64, 32), gguf.Q8_0), "blocks.1.weight": ((64, 32), gguf.F32)}
    gguf.write(tmp_path / "x.gguf", tensors, "flux")
    torch.save(WEIGHTS, tmp_path / "x.ckpt")
    for name, total in (("x.gguf", 64 * 34 + 64 * 32 * 4), ("x.ckpt", sum(SIZES.values()))):
        arguments = ["plan", str(tmp_path / name), "--alloc", "cpu,*", "--compute", "cpu", "--json"]
        assert main(arguments) == 0
        assert json.loads(capsys.readouterr().out)["totals"] == {"cpu": total}
    (tmp_path / "x.onnx").write_bytes(b"model")
    assert main(["plan", str(tmp_path / "x.onnx"), "--alloc", "cpu,*"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"distorch plan: {tmp_path / 'x.onnx'}: no model file; known are .safe")
