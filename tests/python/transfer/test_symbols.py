# SPDX-License-Identifier: Apache-2.0
"""The functions that are looked up at run time exist under these names in the libraries that torch brings."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[3]


def names(source: str, prefix: str) -> list[str]:
    text = (ROOT / source).read_text()
    return re.findall(rf'\b(?:library\.Bind\(\s*|bind\()"({prefix}\w+)"', text)


@pytest.mark.skipif(torch.version.cuda is None, reason="this torch is built without CUDA")
@pytest.mark.parametrize(
    ("source", "prefix", "library", "least"),
    [
        ("distorch/transfer/cuda_api.cc", "cuda", "libcudart.so.*", 25),
    ],
)
def test_every_name_is_there(source: str, prefix: str, library: str, least: int) -> None:
    found = sorted((Path(torch.__file__).parents[1] / "nvidia").rglob(library))
    assert found, f"torch {torch.__version__} came without {library}"
    loaded = ctypes.CDLL(str(found[0]))
    wanted = names(source, prefix)
    assert len(wanted) >= least
    assert [name for name in wanted if not hasattr(loaded, name)] == []
