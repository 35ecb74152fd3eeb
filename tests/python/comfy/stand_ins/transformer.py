# SPDX-License-Identifier: Apache-2.0
"""A small transformer of plain torch layers, with a block swap of its own and the devices that it remembers."""

from __future__ import annotations

import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.modulation = nn.Parameter(torch.zeros(1, size))
        self.norm = nn.LayerNorm(size)
        self.q, self.o = nn.Linear(size, size), nn.Linear(size, size)
        self.ffn = nn.Sequential(nn.Linear(size, 4 * size), nn.GELU(), nn.Linear(4 * size, size))

    def forward(self, x: torch.Tensor, options: dict) -> torch.Tensor:
        x = x + self.o(torch.tanh(self.q(self.norm(x) + self.modulation)))
        return x + options["strength"] * self.ffn(x)


class Transformer(nn.Module):
    """`blocks_to_swap` of the last blocks wait on `offload_device` and come to `main_device` for their turn."""

    def __init__(self, main_device: torch.device, offload_device: torch.device) -> None:
        super().__init__()
        size = 256
        self.main_device, self.offload_device = main_device, offload_device
        self.cache_device = offload_device
        self.blocks_to_swap = 0
        self.patched_linear = False
        self.patch_embedding = nn.Linear(16, size)
        self.blocks = nn.ModuleList(Block(size) for _ in range(6))
        self.head = nn.Linear(size, 16)
        self.eval().requires_grad_(False)

    def forward(self, x: torch.Tensor, options: dict) -> torch.Tensor:
        x = self.patch_embedding(x.to(self.main_device))
        for i, block in enumerate(self.blocks):
            swapped = i >= len(self.blocks) - self.blocks_to_swap
            if swapped:
                block.to(self.main_device)
            x = block(x, options)
            if swapped:
                block.to(self.offload_device)
        return self.head(x)
