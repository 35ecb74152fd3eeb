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

from distorch.model_files import ENDINGS, tensor_sizes
from distorch.tools.cli import main

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


def split(folder: pathlib.Path, stem: str, ending: str) -> list[pathlib.Path]:
    """A model in three files of one tensor each, of 4, 8 and 12 KB."""
    paths = [folder / f"{stem}-0000{i}-of-00003{ending}" for i in (1, 2, 3)]
    for i, path in enumerate(paths, 1):
        if ending == ".gguf":
            gguf.write(path, {f"blk.{i}.weight": ((i, 1024), gguf.F32)}, "llama")
        else:
            safetensors.torch.save_file({f"blk.{i}.weight": torch.zeros(i, 1024)}, path)
    return paths


WHOLE = {f"blk.{i}.weight": i * 4096 for i in (1, 2, 3)}


@pytest.mark.parametrize("ending", [".gguf", ".safetensors"])
def test_any_part_of_a_split_model_stands_for_all_of_it(tmp_path: pathlib.Path, ending) -> None:
    for path in split(tmp_path, "big", ending):
        assert dict(tensor_sizes(path)) == WHOLE
    (tmp_path / f"big-00002-of-00003{ending}").unlink()
    missing = rf"^big-00003-of-00003\{ending}: 1 of the model's 3 files are missing: big-00002-of-"
    with pytest.raises(ValueError, match=missing):
        tensor_sizes(tmp_path / f"big-00003-of-00003{ending}")


def test_an_index_stands_for_the_files_that_it_names(tmp_path: pathlib.Path, capsys) -> None:
    paths = split(tmp_path, "model", ".safetensors")
    weights = {name: path.name for name, path in zip(WHOLE, paths, strict=True)}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weights}))
    assert dict(tensor_sizes(index)) == WHOLE
    assert main(["plan", str(index), "--alloc", "cpu,*", "--compute", "cpu", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["totals"] == {"cpu": 6 * 4096}
    paths[0].unlink()
    with pytest.raises(ValueError, match=r"index\.json: 1 of the model's 3 files are missing"):
        tensor_sizes(index)
    index.write_text(json.dumps({"weight_map": {"a": "../other.safetensors"}}))
    with pytest.raises(ValueError, match=r"index\.json: it names files of other folders"):
        tensor_sizes(index)
    for text in ("[]", "{", '{"weight_map": [1]}', '{"weight_map": {"a": 1}}'):
        index.write_text(text)
        with pytest.raises(ValueError, match=r"index\.json: no index of a model's files"):
            tensor_sizes(index)


def test_a_tensor_in_two_files_is_refused(tmp_path: pathlib.Path) -> None:
    first, second, _ = split(tmp_path, "x", ".safetensors")
    second.write_bytes(first.read_bytes())
    with pytest.raises(ValueError, match=r"tensor blk\.1\.weight is in two of its files"):
        tensor_sizes(first)


def test_only_the_first_gguf_part_says_what_it_is(tmp_path: pathlib.Path) -> None:
    first, second = (tmp_path / f"x-0000{i}-of-00002.gguf" for i in (1, 2))
    gguf.write(first, {}, "qwen3")
    text, size = gguf.header({"token_embd.weight": ((65536, 64), gguf.Q8_0)}, [])
    second.write_bytes(text + bytes(size))
    assert tensor_sizes(second) == [("token_embedding.weight", 2 * 65536 * 64)]


def test_a_gguf_without_tensors_is_told_as_such(tmp_path: pathlib.Path) -> None:
    gguf.write(tmp_path / "vocab.gguf", {}, "llama")
    with pytest.raises(ValueError, match=r"^vocab\.gguf: no tensor is in it: a vocabulary"):
        tensor_sizes(tmp_path / "vocab.gguf")


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_pointer_of_git_lfs_is_told_as_such(tmp_path: pathlib.Path, ending) -> None:
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4967215360\n"
    (tmp_path / f"x{ending}").write_text(text)
    words = (
        rf"^x\{ending}: a pointer of Git LFS, not the model itself: `git lfs pull` fetches that$"
    )
    with pytest.raises(ValueError, match=words):
        tensor_sizes(tmp_path / f"x{ending}")


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
