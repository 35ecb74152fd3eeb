# SPDX-License-Identifier: Apache-2.0
"""Small models of the architectures that are placed, each with what is hard in it: own definitions, random weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

WIDTH = 24


class Attention(nn.Module):
    def __init__(self, width: int = WIDTH, bias: bool = True) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=bias) for _ in range(4))

    def forward(self, x: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        other = x if context is None else context
        q, k, v = (
            t.unflatten(-1, (4, -1)).transpose(1, 2)
            for t in (self.q(x), self.k(other), self.v(other))
        )
        mixed = functional.scaled_dot_product_attention(q, k, v)
        return self.o(mixed.transpose(1, 2).flatten(2))


class DiTBlock(nn.Module):
    """Scaled and shifted by a vector, with a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.modulation = nn.Parameter(torch.randn(6, WIDTH) / 5)
        self.norm = nn.LayerNorm(WIDTH, elementwise_affine=False)
        self.attn = Attention()
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 48), nn.GELU(), nn.Linear(48, WIDTH))

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        a, b, c, d, e, f = (self.modulation + t.unsqueeze(1)).unbind(1)
        x = x + c.unsqueeze(1) * self.attn(self.norm(x) * (1 + a.unsqueeze(1)) + b.unsqueeze(1))
        return x + f.unsqueeze(1) * self.mlp(self.norm(x) * (1 + d.unsqueeze(1)) + e.unsqueeze(1))


class DiT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(4, WIDTH, 2, 2)
        self.time = nn.Sequential(nn.Linear(8, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))
        self.blocks = nn.ModuleList(DiTBlock() for _ in range(4))
        self.out = nn.Linear(WIDTH, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        t = self.time(x.mean((1, 2, 3)).unsqueeze(-1).expand(-1, 8))
        x = self.patch(x).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x, t)
        return self.out(x)


class ResBlock(nn.Module):
    def __init__(self, inner: int, out: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(4, inner), nn.Conv2d(inner, out, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(4, out), nn.Conv2d(out, out, 3, padding=1)
        self.skip = nn.Identity() if inner == out else nn.Conv2d(inner, out, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.conv1(functional.silu(self.norm1(x)))
        return self.skip(x) + self.conv2(functional.silu(self.norm2(h)))


class UNet(nn.Module):
    """Skips from the way down to the way up."""

    def __init__(self) -> None:
        super().__init__()
        self.begin = nn.Conv2d(4, 16, 3, padding=1)
        self.down = nn.ModuleList([ResBlock(16, 16), ResBlock(16, 24)])
        self.middle = ResBlock(24, 24)
        self.up = nn.ModuleList([ResBlock(48, 16), ResBlock(32, 16)])
        self.end = nn.Conv2d(16, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.begin(x)
        kept = []
        for block in self.down:
            x = block(x)
            kept.append(x)
            x = functional.avg_pool2d(x, 2)
        x = self.middle(x)
        for block in self.up:
            x = functional.interpolate(x, scale_factor=2.0)
            x = block(torch.cat([x, kept.pop()], 1))
        return self.end(x)


class T5Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(WIDTH)
        self.attn = Attention(bias=False)
        self.wi, self.wo = nn.Linear(WIDTH, 48, bias=False), nn.Linear(48, WIDTH, bias=False)

    def forward(self, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.norm(x) + bias)
        return x + self.wo(functional.relu(self.wi(self.norm(x))))


class T5(nn.Module):
    """A table of tokens that stays, a position bias that all layers share."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Embedding(40, WIDTH)
        self.relative = nn.Embedding(16, WIDTH)
        self.layers = nn.ModuleList(T5Layer() for _ in range(4))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.shared(ids)
        bias = self.relative(torch.arange(ids.shape[1], device=ids.device) % 16)
        for layer in self.layers:
            x = layer(x, bias)
        return x


class LlamaLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.attn = Attention(bias=False)
        self.gate, self.up = (nn.Linear(WIDTH, 40, bias=False) for _ in range(2))
        self.down = nn.Linear(40, WIDTH, bias=False)

    def forward(self, x: torch.Tensor, *, scale: dict[str, torch.Tensor]) -> torch.Tensor:
        x = x + self.attn(self.norm1(x) * scale["cos"])
        h = self.norm2(x)
        return x + self.down(functional.silu(self.gate(h)) * self.up(h))


class Llama(nn.Module):
    """A head that is the embedding, bfloat16, a dictionary that goes to every layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(40, WIDTH)
        self.register_buffer("frequencies", torch.rand(WIDTH), persistent=False)
        self.layers = nn.ModuleList(LlamaLayer() for _ in range(4))
        self.norm = nn.RMSNorm(WIDTH)
        self.lm_head = nn.Linear(WIDTH, 40, bias=False)
        self.lm_head.weight = self.embed_tokens.weight
        self.to(torch.bfloat16)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed_tokens(ids)
        scale = {"cos": self.frequencies}
        for layer in self.layers:
            x = layer(x, scale=scale)
        return self.lm_head(self.norm(x))


class VAE(nn.Module):
    """Transposed convolutions, a norm with running statistics, channels_last weights."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleList([ResBlock(4, 8), ResBlock(8, 8)])
        self.statistics = nn.BatchNorm2d(8)
        self.quant = nn.Conv2d(8, 8, 1)
        self.decoder = nn.ModuleList([ResBlock(8, 8), ResBlock(8, 8)])
        self.widen = nn.ConvTranspose2d(8, 4, 4, 2, 1)
        self.to(memory_format=torch.channels_last)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.encoder:
            x = block(x)
        mean, deviation = self.quant(self.statistics(x)).chunk(2, 1)
        x = torch.cat([mean, mean + deviation.tanh().exp()], 1)
        for block in self.decoder:
            x = block(x)
        return self.widen(x)


class MambaLayer(nn.Module):
    """A state that is carried along the sequence; parameters that are no weights of a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(WIDTH)
        self.into = nn.Linear(WIDTH, 2 * WIDTH, bias=False)
        self.conv = nn.Conv1d(WIDTH, WIDTH, 3, padding=2, groups=WIDTH)
        self.parameters_of_state = nn.Linear(WIDTH, 8 + WIDTH, bias=False)
        self.a_log = nn.Parameter(torch.rand(WIDTH, 4))
        self.d = nn.Parameter(torch.ones(WIDTH))
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        u, z = self.into(self.norm(x)).chunk(2, -1)
        u = functional.silu(self.conv(u.transpose(1, 2))[..., : x.shape[1]].transpose(1, 2))
        b, c, step = self.parameters_of_state(u).split([4, 4, WIDTH], -1)
        step = functional.softplus(step)
        decay = torch.exp(step.unsqueeze(-1) * -self.a_log.exp())
        state = torch.zeros_like(decay[:, 0])
        seen = []
        for i in range(x.shape[1]):
            state = decay[:, i] * state + (step * u)[:, i, :, None] * b[:, i, None]
            seen.append((state * c[:, i, None]).sum(-1))
        y = torch.stack(seen, 1) + u * self.d
        return x + self.out(y * functional.silu(z))


class Mamba(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(40, WIDTH)
        self.layers = nn.ModuleList(MambaLayer() for _ in range(3))
        self.head = nn.Linear(WIDTH, 40)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embedding(ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def _ids() -> torch.Tensor:
    return torch.randint(0, 40, (2, 7))


def _image() -> torch.Tensor:
    return torch.randn(1, 4, 8, 8)


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], torch.Tensor]]] = {
    "DiT": (DiT, _image),
    "UNet": (UNet, _image),
    "T5": (T5, _ids),
    "Llama": (Llama, _ids),
    "VAE": (VAE, _image),
    "Mamba": (Mamba, _ids),
}
