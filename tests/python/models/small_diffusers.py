# SPDX-License-Identifier: Apache-2.0
"""Every model of diffusers that can be made small by its constructor's arguments alone, with inputs for it.

Sizes are reduced by their names. Inputs are found by trying: images, videos, sound and packed latents have the same names.
"""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

# (what a name looks like, what its number becomes); the first that fits counts.
_SIZES: list[tuple[str, int]] = [
    (r"(norm_num_groups|norm_groups)", 8),
    (r"(kv_heads|key_value_heads)", 2),
    (r"(attention_head_dim|head_dim|dim_head)", 16),
    (r"(num_attention_heads|num_heads|heads)$", 4),
    (r"(ffn_dim|ff_inner|intermediate|mlp_dim|feed_forward)", 128),
    (r"(num_single_layers|num_refiner_layers|n_refiner|num_layers|n_layers|layers|depth|num_blocks)$", 3),
    (r"(caption_channels|cross_attention_dim|joint_attention_dim|text_embed_dim|text_dim|pooled_projection_dim"
     r"|encoder_hid_dim|cap_feat_dim|text_hidden|caption_dim|text_feature)", 32),
    (r"(inner_dim|hidden_size|hidden_dim|embed_dim|model_dim|^dim)$", 64),
    (r"sample_size|sample_height|sample_width|base_size$", 16),
    (r"(max_sequence_length|max_text|pos_embed_max_size)", 64),
]  # fmt: skip
# Lists of sizes by place: channels, and blocks a level.
_WIDTHS = re.compile(r"(block_out_channels|channel_multiples|out_channels|widths|dims)$")
_DEPTHS = re.compile(r"(layers_per_block|num_layers|depths?|transformer_layers_per_block)$")
_AXES = re.compile(r"(axes_dims?|axes_dim_rope|axes_dims_rope|rope_axes_dim|rope_axes_dims)")
# What cannot be told from names.
_ARGUMENTS: dict[str, dict[str, Any]] = {
    "AuraFlowTransformer2DModel": {"num_mmdit_layers": 2, "num_single_dit_layers": 2},
    "AutoencoderKLMochi": {"encoder_block_out_channels": (32, 64, 64, 64), "decoder_block_out_channels": (64, 64, 64, 32),
                           "layers_per_block": (1, 1, 1, 1, 1)},
    "AutoencoderKLQwenImage": {"base_dim": 16},
    "AutoencoderKLTemporalDecoder": {"block_out_channels": (32, 64), "down_block_types": ("DownEncoderBlock2D",) * 2},
    "AutoencoderKLWan": {"base_dim": 16},
    "AutoencoderOobleck": {"encoder_hidden_size": 16, "decoder_channels": 16, "audio_channels": 2},
    "ControlNetModel": {"block_out_channels": (32, 64), "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
                        "attention_head_dim": 4, "conditioning_embedding_out_channels": (16, 16)},
    "FluxControlNetModel": {"guidance_embeds": True, "axes_dims_rope": (4, 6, 6)},
    "FluxTransformer2DModel": {"guidance_embeds": True},
    "HunyuanDiT2DModel": {"in_channels": 4, "patch_size": 2, "cross_attention_dim_t5": 32, "text_len": 8, "text_len_t5": 8},
    "I2VGenXLUNet": {"block_out_channels": (32, 64), "norm_num_groups": 8, "num_attention_heads": 4,
                     "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
                     "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D")},
    "LatteTransformer3DModel": {"in_channels": 4, "patch_size": 2, "sample_size": 16, "video_length": 5, "out_channels": 8,
                                "num_embeds_ada_norm": 100, "norm_type": "ada_norm_single"},
    "LTXVideoTransformer3DModel": {"cross_attention_dim": 64},
    "PRXTransformer2DModel": {"axes_dim": [8, 8]},
    "QwenImageTransformer2DModel": {"axes_dims_rope": (4, 6, 6)},
    "SD3ControlNetModel": {"caption_projection_dim": 64},
    "SD3Transformer2DModel": {"caption_projection_dim": 64},
    "SanaTransformer2DModel": {"cross_attention_dim": 64, "num_cross_attention_heads": 4, "cross_attention_head_dim": 16},
    "StableAudioDiTModel": {"cross_attention_input_dim": 32, "cross_attention_dim": 32, "global_states_input_dim": 32,
                            "num_key_value_attention_heads": 2},
    "Transformer2DModel": {"in_channels": 32},
    "TransformerTemporalModel": {"in_channels": 32},
    "UNetSpatioTemporalConditionModel": {"block_out_channels": (32, 64), "num_attention_heads": (2, 4),
                                         "down_block_types": ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
                                         "up_block_types": ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
                                         "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 24},
    "UVit2DModel": {"num_hidden_layers": 2, "vocab_size": 64, "codebook_size": 32, "micro_cond_embed_dim": 32},
    "WanVACETransformer3DModel": {"vace_layers": [0, 2], "num_layers": 4},
    "ZImageTransformer2DModel": {"dim": 64, "axes_dims": [4, 6, 6], "axes_lens": [64, 64, 64], "n_heads": 4, "n_kv_heads": 4},
}  # fmt: skip
_TEXT = (
    "joint_attention_dim", "cross_attention_dim", "caption_channels", "text_embed_dim", "text_dim",
    "cap_feat_dim", "caption_dim", "encoder_hid_dim", "caption_projection_dim",
)  # fmt: skip


def _reduced(key: str, value: Any) -> Any:
    if isinstance(value, (list, tuple)) and value and all(type(v) is int for v in value):
        if _AXES.search(key):
            return type(value)({2: (8, 8), 3: (4, 6, 6), 4: (4, 4, 4, 4)}.get(len(value), value))
        if _WIDTHS.search(key) and max(value) > 16:
            return type(value)(
                max(16, 16 * v // min(value)) if v < 8 * min(value) else 64 for v in value
            )
        if _DEPTHS.search(key):
            return type(value)(min(v, 2) for v in value)
        return value
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        return value
    found = (size for name, size in _SIZES if re.search(name, key))
    return min(value, next(found, value))


def reduced(cls: Any) -> dict[str, Any]:
    """The constructor's defaults, reduced; an argument without one gets what its name asks for."""
    result = {}
    for key, parameter in list(inspect.signature(cls.__init__).parameters.items())[1:]:
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        value = parameter.default
        if value is parameter.empty:
            value = next((size for name, size in _SIZES if re.search(name, key)), 4)
        small = _reduced(key, value)
        if small != value or parameter.default is parameter.empty:
            result[key] = small
    return result


def _candidates(model: Any) -> Iterator[dict[str, Any]]:
    """Inputs that may be what `forward` takes, by the names of its arguments."""
    config, generator = model.config, torch.Generator().manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    def first(*names: str, default: int) -> int:
        values = (getattr(config, name, None) for name in names)
        return next((v for v in values if type(v) is int and v > 0), default)

    names = inspect.signature(model.forward).parameters
    channels = first("in_channels", "input_channels", "latent_channels", "in_dim", default=3)
    text = first(*_TEXT, default=32)
    shapes = [(1, channels, 16, 16), (1, 16, channels), (1, channels, 5, 16, 16), (1, channels, 2048),
              (1, 5, channels, 16, 16), (1, channels, 32, 32), (1, channels, 1, 16, 16), (1, channels, 64)]  # fmt: skip
    times = [torch.tensor([5.0]), torch.tensor([5]), torch.tensor(5)]
    for shape, time, leave_out in itertools.product(shapes, times, ({}, {"guidance"}, None)):
        tokens = shape[1] if len(shape) == 3 else 64
        known: dict[str, Any] = {
            "hidden_states": noise(*shape),
            "sample": noise(*shape),
            "x": noise(*shape),
            "timestep": time,
            "timesteps": time,
            "encoder_hidden_states": noise(1, 8, text),
            "encoder_attention_mask": torch.ones(1, 8, dtype=torch.bool),
            "encoder_hidden_states_mask": torch.ones(1, 8, dtype=torch.bool),
            "attention_mask": torch.ones(1, 8, dtype=torch.bool),
            "text_attention_mask": torch.ones(1, 8, dtype=torch.bool),
            "pooled_projections": noise(1, first("pooled_projection_dim", default=32)),
            "guidance": torch.tensor([4.0]),
            "guidance_scale": torch.tensor([4.0]),
            "img_ids": torch.zeros(tokens, 3),
            "txt_ids": torch.zeros(8, 3),
            "img_shapes": [(1, 4, tokens // 4)],
            "txt_seq_lens": [8],
            "class_labels": torch.tensor([1]),
            "resolution": torch.tensor([[16.0, 16.0]]),
            "aspect_ratio": torch.tensor([[1.0]]),
            "fps": torch.tensor([16]),
            "num_frames": 5, "height": 4, "width": 4,
            "original_size": torch.tensor([[16.0, 16.0]]),
            "target_size": torch.tensor([[16.0, 16.0]]),
            "crop_coords": torch.tensor([[0.0, 0.0]]),
            "padding_mask": torch.ones(1, 1, 16, 16),
            "controlnet_cond": noise(*shape),
            "conditioning_scale": 1.0,
            "proj_embedding": noise(1, first("embedding_dim", default=32)),
            "control_hidden_states": noise(1, first("vace_in_channels", default=96), *shape[2:]),
            "global_hidden_states": noise(1, 1, 32),
            "rotary_embedding": (torch.ones(len(shape) * 0 + 8, 8), torch.zeros(8, 8)),
            "added_time_ids": torch.ones(1, 3),
            "image_latents": noise(*shape),
            "image_embeddings": noise(1, text),
            "image_embeds": noise(1, 8, text),
            "t": torch.tensor([0.5]),
            "cap_feats": [noise(8, first("cap_feat_dim", default=32))],
        }  # fmt: skip
        needed = [
            n
            for n, p in names.items()
            if p.default is p.empty and p.kind == p.POSITIONAL_OR_KEYWORD
        ]
        if any(n not in known for n in needed):
            raise ValueError(f"no inputs for {', '.join(n for n in needed if n not in known)}")
        some = [n for n in known if n in names and n not in (leave_out or ())]
        wanted = needed if leave_out is None else some
        yield {n: known[n] for n in wanted}


def names() -> Iterator[tuple[str, Any]]:
    """(name of the class, the class)."""
    import diffusers
    from diffusers.models import _import_structure

    for name in dict.fromkeys(itertools.chain(*_import_structure.values())):
        cls = getattr(diffusers, name, None)
        if (
            inspect.isclass(cls)
            and issubclass(cls, diffusers.ModelMixin)
            and cls is not diffusers.ModelMixin
        ):
            yield name, cls


def make(cls: Any) -> tuple[nn.Module, dict[str, Any]]:
    """A small model of this class and its inputs; raises what the class raises where it cannot be."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = cls(**{**reduced(cls), **_ARGUMENTS.get(cls.__name__, {})}).eval()
    size = sum(p.nbytes for p in model.parameters())
    if size > 48 << 20:
        raise ValueError(f"{size >> 20} MB is not small")
    first: Exception | None = None
    for inputs in _candidates(model):
        try:
            with torch.inference_mode():
                model(**inputs)
            return model, inputs
        except Exception as failed:
            first = first or failed
    raise first or ValueError("no inputs")
