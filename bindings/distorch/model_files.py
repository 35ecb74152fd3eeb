# SPDX-License-Identifier: Apache-2.0
"""Names and sizes of the tensors in a model file of any of the usual formats, without reading weights.

safetensors and GGUF tell them in their headers. Files of PyTorch are unpickled by its safe loader (`weights_only`) with
every tensor on "meta", its bytes left in the file; those of PyTorch before 1.6 cannot be read like that.
"""

from __future__ import annotations

import math
import os
import pathlib
import pickle
from typing import Any

SAFETENSORS = (".safetensors", ".sft")
GGUF = (".gguf",)
PYTORCH = (".ckpt", ".pt", ".pth", ".bin")
ENDINGS = (*SAFETENSORS, *GGUF, *PYTORCH)

_TABLE = "token_embd.weight"


def tensor_sizes(path: str | os.PathLike[str]) -> list[tuple[str, int]]:
    """Return (name, bytes) of each tensor.

    Raises:
        ValueError: the file is of none of these formats, or broken.
        OSError: it cannot be opened or read.
    """
    path = pathlib.Path(path)
    ending = path.suffix.lower()
    if ending in SAFETENSORS:
        from distorch.safetensors_header import read_header

        return [(t.name, t.end - t.begin) for t in read_header(path).tensors]
    if ending in GGUF:
        return _gguf(path)
    if ending in PYTORCH:
        return _pytorch(path)
    raise ValueError(f"{path.name}: no model file; known are {', '.join(ENDINGS)}")


def _gguf(path: pathlib.Path) -> list[tuple[str, int]]:
    """As the GGUF pack makes them: large tables of tokens become float16. They are named as embeddings."""
    from distorch.gguf_header import read_header

    header = read_header(path)
    found = []
    for tensor in header.tensors:
        whole = tensor.name == _TABLE and _is_dequantised(header.architecture, tensor.shape)
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
