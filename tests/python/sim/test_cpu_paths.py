# SPDX-License-Identifier: Apache-2.0
"""Operators that have a path of their own on the CPU take it on simulated devices, too."""

from __future__ import annotations

import copy
import os
import subprocess
import sys

import cpu_paths
import pytest
import torch
from torch import nn

CASES = cpu_paths.cases()
pytestmark = [
    pytest.mark.usefixtures("sim"),
    pytest.mark.filterwarnings("ignore::UserWarning"),  # torch deprecates what is compared here
]


@pytest.mark.parametrize("name", [n for n in CASES if not n.endswith("f16")])
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_the_same_operators_run_inside(name: str, mode) -> None:
    """Bits may agree by chance of the processor's kernels; the path may not."""
    module, inputs = CASES[name]
    moved, there = copy.deepcopy(module).to("sim:0"), [t.to("sim:0") for t in inputs]
    with mode():
        expected = cpu_paths.operators(module, inputs)
        assert cpu_paths.operators(moved, there) == expected


@pytest.mark.parametrize(
    "setting",
    [
        "",
        "ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2",
        "ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_ENABLE_INSTRUCTIONS=SSE4_2",
    ],
)
def test_the_bits_are_the_cpus(setting: str) -> None:
    """With what the libraries take on older processors, and with 1, 2 and 4 threads."""
    environment = {**os.environ, **dict(part.split("=") for part in setting.split())}
    done = subprocess.run(
        [sys.executable, cpu_paths.__file__], env=environment,
        capture_output=True, text=True, check=False, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    *differing, last = done.stdout.splitlines()
    assert differing == []
    assert last.endswith(f"{len(CASES)} cases, 0 differ")


def test_what_is_not_dense_is_refused_by_name() -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 1).eval().to("sim:0")
    padding = torch.tensor([[False, False, True]], device="sim:0")
    with (
        torch.inference_mode(),
        pytest.raises(RuntimeError, match=r"only dense tensors are simulated, aten operator aten::_nested"),
    ):  # fmt: skip
        encoder(torch.randn(1, 3, 16).to("sim:0"), src_key_padding_mask=padding)
