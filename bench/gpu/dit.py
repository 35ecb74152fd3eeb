# SPDX-License-Identifier: Apache-2.0
"""Diffusion transformers of real size with random weights, for timing: what matters is which matrices are multiplied.

model = build(SIZES["flux-12b"], torch.bfloat16)
model(*inputs(SIZES["flux-12b"], tokens=4608, device="cuda:0", dtype=torch.bfloat16))
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn import functional

TEXT_TOKENS = 512


@dataclass(frozen=True)
class Size:
    """The shape of a model: `double` blocks with two streams, `single` blocks, `cross` blocks with cross-attention."""

    name: str
    width: int
    heads: int
    feed_forward: int
    double: int = 0
    single: int = 0
    cross: int = 0


SIZES = {
    size.name: size
    for size in (
        Size("flux-12b", 3072, 24, 12288, double=19, single=38),
        Size("wan-14b", 5120, 40, 13824, cross=40),
        # A third of the depth, for GPUs that do not hold the whole.
        Size("flux-4b", 3072, 24, 12288, double=6, single=13),
        Size("wan-5b", 5120, 40, 13824, cross=13),
    )
}
# Of the same structure, for machines without a GPU. Tensors are multiples of 256 bytes, as in the real ones.
TINY = {
    "flux-12b": replace(SIZES["flux-12b"], width=128, heads=2, feed_forward=256, double=4, single=8),
    "wan-14b": replace(SIZES["wan-14b"], width=128, heads=2, feed_forward=320, cross=12),
}  # fmt: skip


def _modulated(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return functional.layer_norm(x, x.shape[-1:]) * (1 + scale) + shift


class _Heads(nn.Module):
    """Splits q, k and v into heads, normalises q and k, attends."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_norm = nn.RMSNorm(width // heads)
        self.key_norm = nn.RMSNorm(width // heads)

    def split(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        q, k, v = self.split(q), self.split(k), self.split(v)
        out = functional.scaled_dot_product_attention(self.query_norm(q), self.key_norm(k), v)
        return out.transpose(1, 2).flatten(2)


class _Stream(nn.Module):
    """One of the two streams of a double block."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        width = size.width
        self.modulation = nn.Linear(width, 6 * width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, size.feed_forward),
            nn.GELU(approximate="tanh"),
            nn.Linear(size.feed_forward, width),
        )


class DoubleBlock(nn.Module):
    """Image and text tokens with weights of their own, attending to each other."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.image, self.text = _Stream(size), _Stream(size)
        self.attention = _Heads(size.width, size.heads)

    def forward(
        self, image: torch.Tensor, text: torch.Tensor, when: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return both streams."""
        parts = [s.modulation(functional.silu(when)).chunk(6, -1) for s in (self.image, self.text)]
        qkv = [
            s.qkv(_modulated(x, p[0], p[1])).chunk(3, -1)
            for s, x, p in zip((self.image, self.text), (image, text), parts, strict=True)
        ]
        joined = [torch.cat((b, a), 1) for a, b in zip(*qkv, strict=True)]
        attended = self.attention(*joined)
        pieces = attended.split((text.shape[1], image.shape[1]), 1)
        results = []
        for stream, x, p, piece in (
            (self.image, image, parts[0], pieces[1]),
            (self.text, text, parts[1], pieces[0]),
        ):
            x = x + p[2] * stream.out(piece)
            results.append(x + p[5] * stream.mlp(_modulated(x, p[3], p[4])))
        return results[0], results[1]


class SingleBlock(nn.Module):
    """Attention and feed-forward side by side, in two matrices."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.width = size.width
        self.modulation = nn.Linear(size.width, 3 * size.width)
        self.into = nn.Linear(size.width, 3 * size.width + size.feed_forward)
        self.out = nn.Linear(size.width + size.feed_forward, size.width)
        self.attention = _Heads(size.width, size.heads)

    def forward(self, x: torch.Tensor, when: torch.Tensor) -> torch.Tensor:
        """Return the tokens."""
        shift, scale, gate = self.modulation(functional.silu(when)).chunk(3, -1)
        qkv, hidden = self.into(_modulated(x, shift, scale)).split(
            (3 * self.width, self.out.in_features - self.width), -1
        )
        attended = self.attention(*qkv.chunk(3, -1))
        both = torch.cat((attended, functional.gelu(hidden, approximate="tanh")), -1)
        return x + gate * self.out(both)


class CrossBlock(nn.Module):
    """Self-attention, cross-attention to the text, feed-forward."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        width = size.width
        self.modulation = nn.Parameter(torch.empty(1, 6, width))
        self.self_qkv = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        self.self_out = nn.Linear(width, width)
        self.cross_qkv = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        self.cross_out = nn.Linear(width, width)
        self.self_attention = _Heads(width, size.heads)
        self.cross_attention = _Heads(width, size.heads)
        self.mlp = nn.Sequential(
            nn.Linear(width, size.feed_forward),
            nn.GELU(approximate="tanh"),
            nn.Linear(size.feed_forward, width),
        )

    def forward(self, x: torch.Tensor, text: torch.Tensor, when: torch.Tensor) -> torch.Tensor:
        """Return the tokens."""
        part = [p.squeeze(1).unsqueeze(1) + when for p in self.modulation.chunk(6, 1)]
        y = _modulated(x, part[0], part[1])
        x = x + part[2] * self.self_out(self.self_attention(*(m(y) for m in self.self_qkv)))
        q, k, v = self.cross_qkv
        x = x + self.cross_out(self.cross_attention(q(x), k(text), v(text)))
        return x + part[5] * self.mlp(_modulated(x, part[3], part[4]))


class DiT(nn.Module):
    """The blocks of a size, one behind the other."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.embed = nn.Linear(64, size.width)
        self.double_blocks = nn.ModuleList(DoubleBlock(size) for _ in range(size.double))
        self.single_blocks = nn.ModuleList(SingleBlock(size) for _ in range(size.single))
        self.blocks = nn.ModuleList(CrossBlock(size) for _ in range(size.cross))
        self.head = nn.Linear(size.width, 64)

    def forward(self, image: torch.Tensor, text: torch.Tensor, when: torch.Tensor) -> torch.Tensor:
        """Return one value for each of the 64 channels of each image token."""
        x = self.embed(image)
        for double in self.double_blocks:
            x, text = double(x, text, when)
        if self.single_blocks:
            x = torch.cat((text, x), 1)
            for single in self.single_blocks:
                x = single(x, when)
            x = x[:, text.shape[1] :]
        for cross in self.blocks:
            x = cross(x, text, when)
        return self.head(x)


def groups(model: DiT) -> list[str]:
    """Return the names of the blocks in the order in which they run."""
    lists = ("double_blocks", "single_blocks", "blocks")
    return [f"{name}.{i}" for name in lists for i in range(len(getattr(model, name)))]


def parameter_bytes(size: Size, dtype: torch.dtype) -> int:
    """Return the bytes of a model's weights, without making it."""
    with torch.device("meta"):
        model = DiT(size)
    return sum(p.numel() for p in model.parameters()) * dtype.itemsize


def build(size: Size, dtype: torch.dtype, seed: int = 0) -> DiT:
    """Return a model on the host. Its random values repeat every 2^22: making each anew would take minutes."""
    with torch.device("meta"):
        model = DiT(size).to(dtype).eval().requires_grad_(False)
    model.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    pool = (torch.randn(1 << 22, generator=generator) * 0.02).to(dtype)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.fill_(1)
            continue
        flat = parameter.view(-1)
        for begin in range(0, flat.numel(), pool.numel()):
            part = flat[begin : begin + pool.numel()]
            part.copy_(pool[: part.numel()])
    return model


def inputs(
    size: Size, tokens: int, device: str, dtype: torch.dtype, text_tokens: int = TEXT_TOKENS
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return random image tokens, text tokens and a time embedding on a device."""
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(1, tokens, 64, generator=generator)
    text = torch.randn(1, text_tokens, size.width, generator=generator)
    when = torch.randn(1, 1, size.width, generator=generator)
    return tuple(x.to(dtype).to(device) for x in (image, text, when))  # type: ignore[return-value]
