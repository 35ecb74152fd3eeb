# SPDX-License-Identifier: Apache-2.0
"""Names and sizes of the tensors of a model, in one file or several of any of the usual formats, without reading weights.

safetensors and GGUF tell them in their headers. Files of PyTorch are unpickled by its safe loader (`weights_only`) with
every tensor on "meta", its bytes left in the file; those of PyTorch before 1.6 cannot be read like that.
"""

from __future__ import annotations

import json
import math
import os
import pathlib
import pickle
import re
from typing import Any

SAFETENSORS = (".safetensors", ".sft")
GGUF = (".gguf",)
PYTORCH = (".ckpt", ".pt", ".pth", ".bin")
ENDINGS = (*SAFETENSORS, *GGUF, *PYTORCH)
# How the index of a model in several files is named: "model.safetensors.index.json".
INDEX = ".index.json"

# One of several files: "model-00001-of-00003.gguf".
_PART = re.compile(r"(?P<stem>.*)-\d{5}-of-(?P<count>\d{5})(?P<ending>\.\w+)")
_LONGEST_NAME = 255  # of a file, on every system
_POINTER = b"version https://git-lfs.github.com/spec/"

_TABLE = "token_embd.weight"


def tensor_sizes(path: str | os.PathLike[str]) -> list[tuple[str, int]]:
    """Return (name, bytes) of each tensor of a model; of all of it where the file is one part, or the index, of several.

    Raises:
        ValueError: the file is of none of these formats, broken, without tensors, or not the model but a pointer of Git
            LFS; or a part of the model is missing.
        OSError: it cannot be opened or read.
    """
    path = pathlib.Path(path)
    found: dict[str, int] = {}
    files = _files(path)
    for file in files:
        for name, size in _of_file(file, files[0]):
            if name in found and len(files) > 1:
                raise ValueError(f"{path.name}: tensor {name} is in two of its files")
            found[name] = size
    if not found:
        raise ValueError(f"{path.name}: no tensor is in it: a vocabulary, or an empty file")
    return list(found.items())


def _files(path: pathlib.Path) -> list[pathlib.Path]:
    """The files of the model that `path` is, or is a part or the index of."""
    part = _PART.fullmatch(path.name)
    if part:
        count = int(part["count"])
        names = [
            f"{part['stem']}-{i:05}-of-{count:05}{part['ending']}" for i in range(1, count + 1)
        ]
    elif path.name.lower().endswith(INDEX):
        names = _indexed(path)
    else:
        return [path]
    missing = [name for name in names if not (path.parent / name).exists()]
    if missing and path.exists():
        raise ValueError(
            f"{path.name}: {len(missing)} of the model's {len(names)} files are missing: {missing[0]}"
        )
    return [path.parent / name for name in names]


def _indexed(path: pathlib.Path) -> list[str]:
    """The names of the files that an index names, each once."""
    _check_file(path)
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()
        names = sorted(set(files))
        own = [pathlib.PurePath(name).name for name in names]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path.name}: no index of a model's files") from error
    if names != own:
        raise ValueError(f"{path.name}: it names files of other folders")
    if any(len(name) > _LONGEST_NAME for name in names):
        raise ValueError(f"{path.name}: it names a file by more than {_LONGEST_NAME} characters")
    return names


def _check_file(path: pathlib.Path) -> None:
    """Refuse a pipe, which may never say anything, and a device, which may never end."""
    if path.exists() and not path.is_file():
        raise ValueError(f"{path.name}: not a regular file")


def _of_file(path: pathlib.Path, first: pathlib.Path) -> list[tuple[str, int]]:
    """The tensors of one file; `first`: that of the model, which alone may say of what kind it is."""
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        raise ValueError(f"{path.name}: no model file; known are {', '.join((*ENDINGS, INDEX))}")
    _check_file(path)
    with path.open("rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            raise ValueError(
                f"{path.name}: a pointer of Git LFS, not the model itself: `git lfs pull` fetches that"
            )
    if ending in SAFETENSORS:
        from distorch.safetensors_header import read_header

        return [(t.name, t.end - t.begin) for t in read_header(path).tensors]
    return _gguf(path, first) if ending in GGUF else _pytorch(path)


def _gguf(path: pathlib.Path, first: pathlib.Path) -> list[tuple[str, int]]:
    """As the GGUF pack makes them: large tables of tokens become float16. They are named as embeddings."""
    from distorch.gguf_header import read_header

    header = read_header(path)
    architecture = header.architecture or read_header(first).architecture
    found = []
    for tensor in header.tensors:
        whole = tensor.name == _TABLE and _is_dequantised(architecture, tensor.shape)
        size = 2 * math.prod(tensor.shape) if whole else tensor.bytes
        found.append((tensor.name.replace("token_embd", "token_embedding"), size))
    return found


def _is_dequantised(architecture: str, shape: tuple[int, ...]) -> bool:
    if architecture in ("t5", "t5encoder"):
        return shape == (256384, 4096)
    return architecture in ("llama", "qwen2vl", "qwen3", "qwen3vl") and shape[:1] >= (65536,)


def _pytorch(path: pathlib.Path) -> list[tuple[str, int]]:
    import zipfile

    import torch

    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path.name}: no file of PyTorch 1.6 or later; only those can be planned")
    try:
        content = torch.load(path, map_location="meta", mmap=True, weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a broken pickle may end in any
        raise ValueError(f"{path.name}: PyTorch cannot read it safely: {_reason(error)}") from error
    return [
        (str(name), value.numel() * value.element_size())
        for name, value in _state_dict(content).items()
        if isinstance(value, torch.Tensor)
    ]


def _reason(error: Exception) -> str:
    """Why it failed, without PyTorch's advice to read the file unsafely."""
    if not isinstance(error, (RuntimeError, pickle.UnpicklingError)):
        return f"it is broken ({type(error).__name__})"
    words = str(error)
    inner = words.partition("WeightsUnpickler error:")[2].strip()
    return (inner or words).partition("\n")[0].partition(". Please")[0]


def _state_dict(content: Any) -> dict[Any, Any]:
    """The weights among what a training run has stored with them."""
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        return content["state_dict"]
    if isinstance(content, dict) and len(content) == 1:
        (only,) = content.values()
        if isinstance(only, dict):
            return only
    return content if isinstance(content, dict) else {}
