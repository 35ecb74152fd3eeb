# SPDX-License-Identifier: Apache-2.0
"""Every base model of transformers that can be made small by its configuration alone, with inputs for it.

Each size that a configuration names is reduced by what its name says; what then neither builds nor runs in one piece is
left out. Widths keep their ratios: heads of 16, two of them sharing a key where the model knows that.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

# (what a name looks like, what its number becomes); the first that fits counts.
_SIZES: list[tuple[str, int]] = [
    (r"(kv_heads|key_value_heads|num_kv|n_head_kv|multi_query_group_num)", 2),
    (r"(qk_rope_head_dim|qk_nope_head_dim|v_head_dim|head_dim|head_size|d_kv|dim_head|kv_channels)", 16),
    (r"(_per_tok|topk|top_k|n_group$|topk_group)", 2),
    (r"(expert_group|n_shared_experts|moe_layer_start)", 1),
    (r"(num_experts|n_routed_experts|num_local_experts|moe_num_experts)$", 4),
    (r"(heads?|num_attention_heads|n_head)$", 4),
    (r"(intermediate|ffn|d_ff|d_inner|inner_dim|mlp_dim|feed_forward|expert_ff)", 128),
    (r"(q_lora_rank|kv_lora_rank|lora_rank)", 32),
    (r"(num_\w*layers|n_layers?|\w*layers|depth|num_blocks|n_block)$", 4),
    (r"(vocab_size|type_vocab)", 128),
    (r"(embedding_size|hidden_size|hidden_dim|d_model|n_embd|embed_dim|projection_dim|dim|width|channels_hidden)$", 64),
    (r"image_size$", 32),
    (r"patch_size$", 8),
    (r"max_(position_embeddings|source_positions|target_positions|sequence_length)$", 256),
]  # fmt: skip
_TOKENS = re.compile(r"token_?(id|index)$|_id$")
_LISTS = {"mrope_section": [4, 2, 2]}


def reduced(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of a configuration with its sizes reduced, nested ones as well."""
    result: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            result[key] = reduced(value)
        elif key in _LISTS:
            result[key] = _LISTS[key]
        elif key in ("layer_types", "layers_block_type", "mlp_layer_types") and value:
            kinds = list(dict.fromkeys(value))
            result[key] = (kinds * 4)[:4]
        elif isinstance(value, bool) or not isinstance(value, int) or value <= 0:
            result[key] = value
        elif _TOKENS.search(key):
            result[key] = min(value, 1)
        else:
            found = (size for name, size in _SIZES if re.search(name, key))
            result[key] = min(value, next(found, value))
    return result


def inputs_for(model: nn.Module, config: Any) -> dict[str, Any]:
    """Inputs by the names in the signature of `forward`. Raises ValueError where one has no known shape."""
    names = list(inspect.signature(model.forward).parameters)
    first = getattr(model, "main_input_name", names[0])
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    vocabulary = getattr(text, "vocab_size", 100) or 100
    generator = torch.Generator().manual_seed(0)

    def tokens() -> torch.Tensor:
        return torch.randint(3, min(vocabulary, 100), (2, 8), generator=generator)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    vision = getattr(config, "vision_config", config)
    image = getattr(vision, "image_size", 64) or 64
    side = image if isinstance(image, int) else image[0]
    channels = getattr(vision, "num_channels", 3) or 3
    known = {
        "input_ids": tokens,
        "decoder_input_ids": tokens,
        "pixel_values": lambda: noise(2, channels, side, side),
        "input_features": lambda: noise(2, getattr(config, "num_mel_bins", 80), 64),
        "input_values": lambda: noise(2, 4000),
        "attention_mask": lambda: torch.ones(2, 8, dtype=torch.long),
    }
    if first not in known:
        raise ValueError(f"no inputs for {first}")
    wanted = [first]
    if first != "input_ids" and "input_ids" in names and "decoder_input_ids" not in names:
        wanted.append("input_ids")
    if "decoder_input_ids" in names:
        wanted.append("decoder_input_ids")
    if first == "input_ids" and "pixel_values" in names and hasattr(config, "projection_dim"):
        wanted.append("pixel_values")
    return {name: known[name]() for name in wanted}


def names() -> Iterator[tuple[str, Any]]:
    """(name of the class, its configuration's class), each class once."""
    from transformers.models.auto.modeling_auto import MODEL_MAPPING

    seen = set()
    for config in MODEL_MAPPING:
        try:
            made = MODEL_MAPPING[config]
        except (ImportError, AttributeError, ValueError):
            continue
        for cls in made if isinstance(made, (list, tuple)) else [made]:
            if cls.__name__ not in seen:
                seen.add(cls.__name__)
                yield cls.__name__, (cls, config)


def make(cls: Any, config_class: Any) -> tuple[nn.Module, dict[str, Any]]:
    """A small model of this class and its inputs; raises what the class raises where it cannot be."""
    config = config_class.from_dict(reduced(config_class().to_dict()))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = cls(config).eval()
    size = sum(p.nbytes for p in model.parameters())
    if size > 24 << 20:
        raise ValueError(f"{size >> 20} MB is not small")
    return model, inputs_for(model, config)
