# SPDX-License-Identifier: Apache-2.0
"""A small model with everything that placement has to get right, and four places to put it."""

from __future__ import annotations

import gc
import hashlib
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from distorch.model_blocks import Inventory, walk
from distorch.patching import DiffPatch, LoraPatch, Patches

DEVICES = ("sim:0", "sim:1", "sim:2", "cpu")


class Layer(nn.Module):
    """A transformer layer with parameters and a buffer of its own beside its children."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.scale = nn.Parameter(torch.rand(width))
        self.register_buffer("shift", torch.rand(width), persistent=False)

    def forward(
        self, x: torch.Tensor, *, gate: dict[str, torch.Tensor] | None = None
    ) -> torch.Tensor:
        q, k, v = self.qkv(self.norm(x)).chunk(3, dim=-1)
        x = x + self.out(nn.functional.scaled_dot_product_attention(q, k, v)) * self.scale
        x = x + self.mlp(self.norm(x)) + self.shift
        return x if gate is None else x * gate["value"]


class Model(nn.Module):
    """Embedding tied to the head, four layers, one of them called twice."""

    def __init__(self, width: int = 32, layers: int = 4) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, width)
        self.layers = nn.ModuleList(Layer(width) for _ in range(layers))
        self.head = nn.Linear(width, 50, bias=False)
        self.head.weight = self.embedding.weight

    def forward(
        self, ids: torch.Tensor, *, gate: dict[str, torch.Tensor] | None = None
    ) -> torch.Tensor:
        x = self.embedding(ids)
        for layer in self.layers:
            x = layer(x, gate=gate)
        return self.head(self.layers[0](x))


@dataclass
class State:
    """Everything about a model that a failed operation may not change."""

    objects: dict[str, int] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)
    hooks: dict[str, int] = field(default_factory=dict)
    device_bytes: tuple[int, ...] = ()

    @classmethod
    def of(cls, model: nn.Module) -> State:
        gc.collect()
        state = cls()
        for name, module in walk(model):
            for key, tensor in [*module._parameters.items(), *module._buffers.items()]:
                if tensor is None:
                    continue
                state.objects[f"{name}.{key}"] = id(tensor)
                data = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
                state.hashes[f"{name}.{key}"] = hashlib.sha256(data.numpy().tobytes()).hexdigest()
            state.hooks[name] = len(module._forward_hooks) + len(module._forward_pre_hooks)
        state.device_bytes = tuple(
            torch.sim.memory_allocated(i) for i in range(torch.sim.device_count())
        )
        return state


def plan_of(assignment: dict[str, str]) -> Any:
    return SimpleNamespace(placement=assignment)


def spread(blocks: Inventory, devices: tuple[str, ...] = DEVICES) -> dict[str, str]:
    """Put blocks on the devices in turn; pinned and tied ones on the first."""
    return {
        b.name: devices[0] if b.pinned or b.tied else devices[i % len(devices)]
        for i, b in enumerate(blocks.blocks)
    }


def lora(out: int, inner: int, rank: int = 4, seed: int = 3, strength: float = 0.7) -> LoraPatch:
    g = torch.Generator().manual_seed(seed)
    down, up = torch.randn(rank, inner, generator=g), torch.randn(out, rank, generator=g)
    return LoraPatch(down, up, alpha=8.0, strength=strength)


def some_patches() -> Patches:
    return {
        "layers.0.qkv.weight": [lora(96, 32)],
        "layers.1.out.weight": [lora(32, 32, seed=4), lora(32, 32, rank=2, seed=5)],
        "layers.2.mlp.0.weight": [DiffPatch(torch.full((64, 32), 0.25), 0.5)],
        "layers.3.mlp.2.bias": [DiffPatch(torch.ones(32))],
    }
