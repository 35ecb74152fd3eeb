# SPDX-License-Identifier: Apache-2.0
"""Tiny models with random weights in the key layouts that ComfyUI recognises.

Sizes in float32 unless said: `flux` 5.6 MB (hidden 128, ComfyUI 0.25 and later), `wan` 16 MB (dim 256,
3 blocks), `checkpoint` an SD 1.5 shape with one level of 320 channels, its CLIP and a VAE, float16.
"""

from __future__ import annotations

import itertools
import json
import math
import pathlib

import torch
from safetensors.torch import load_file, save_file

Shapes = dict[str, tuple[int, ...]]


def write(
    path: pathlib.Path, shapes: Shapes, dtype: torch.dtype = torch.float32, seed: int = 0
) -> int:
    """Writes random weights, scaled so that activations keep their size; returns the bytes."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for key, shape in shapes.items():
        if key.endswith(
            (
                "norm.weight",
                "layrnorm.weight",
                "norm1.weight",
                "norm2.weight",
                "norm3.weight",
                ".scale",
            )
        ):
            tensor = torch.ones(shape)
        elif len(shape) == 1:
            tensor = torch.randn(shape, generator=generator) * 0.02
        else:
            tensor = torch.randn(shape, generator=generator) / math.sqrt(math.prod(shape[1:]))
        tensors[key] = tensor.to(dtype)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)
    return path.stat().st_size


def _linear(shapes: Shapes, name: str, out: int, inner: int, bias: bool = True) -> None:
    shapes[f"{name}.weight"] = (out, inner)
    if bias:
        shapes[f"{name}.bias"] = (out,)


def _conv(shapes: Shapes, name: str, out: int, inner: int, size: int = 3) -> None:
    shapes[f"{name}.weight"] = (out, inner, size, size)
    shapes[f"{name}.bias"] = (out,)


def _norm(shapes: Shapes, name: str, size: int) -> None:
    shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (size,)


def flux_shapes(hidden: int = 128, double: int = 2, single: int = 4, context: int = 64) -> Shapes:
    """A Flux transformer; the pooled vector has 32 entries."""
    shapes: Shapes = {}
    _linear(shapes, "img_in", hidden, 64)
    _linear(shapes, "txt_in", hidden, context)
    for name, inner in (("time_in", 256), ("vector_in", 32), ("guidance_in", 256)):
        _linear(shapes, f"{name}.in_layer", hidden, inner)
        _linear(shapes, f"{name}.out_layer", hidden, hidden)
    for i in range(double):
        for part in ("img", "txt"):
            block = f"double_blocks.{i}.{part}"
            _linear(shapes, f"{block}_mod.lin", 6 * hidden, hidden)
            _linear(shapes, f"{block}_attn.qkv", 3 * hidden, hidden)
            _linear(shapes, f"{block}_attn.proj", hidden, hidden)
            for norm in ("query_norm", "key_norm"):
                shapes[f"{block}_attn.norm.{norm}.scale"] = (128,)
            _linear(shapes, f"{block}_mlp.0", 4 * hidden, hidden)
            _linear(shapes, f"{block}_mlp.2", hidden, 4 * hidden)
    for i in range(single):
        block = f"single_blocks.{i}"
        _linear(shapes, f"{block}.linear1", 7 * hidden, hidden)
        _linear(shapes, f"{block}.linear2", hidden, 5 * hidden)
        for norm in ("query_norm", "key_norm"):
            shapes[f"{block}.norm.{norm}.scale"] = (128,)
        _linear(shapes, f"{block}.modulation.lin", 3 * hidden, hidden)
    _linear(shapes, "final_layer.linear", 64, hidden)
    _linear(shapes, "final_layer.adaLN_modulation.1", 2 * hidden, hidden)
    return shapes


def wan_shapes(dim: int = 256, blocks: int = 3, ffn: int = 512) -> Shapes:
    """A Wan 2.1 text-to-video transformer; the prompt embedding is 4096 wide."""
    shapes: Shapes = {"patch_embedding.weight": (dim, 16, 1, 2, 2), "patch_embedding.bias": (dim,)}
    for name, inner in (("text_embedding", 4096), ("time_embedding", 256)):
        _linear(shapes, f"{name}.0", dim, inner)
        _linear(shapes, f"{name}.2", dim, dim)
    _linear(shapes, "time_projection.1", 6 * dim, dim)
    for i in range(blocks):
        block = f"blocks.{i}"
        for attention in ("self_attn", "cross_attn"):
            for name in "qkvo":
                _linear(shapes, f"{block}.{attention}.{name}", dim, dim)
            shapes[f"{block}.{attention}.norm_q.weight"] = (dim,)
            shapes[f"{block}.{attention}.norm_k.weight"] = (dim,)
        _norm(shapes, f"{block}.norm3", dim)
        _linear(shapes, f"{block}.ffn.0", ffn, dim)
        _linear(shapes, f"{block}.ffn.2", dim, ffn)
        shapes[f"{block}.modulation"] = (1, 6, dim)
    _linear(shapes, "head.head", 64, dim)
    shapes["head.modulation"] = (1, 2, dim)
    return shapes


def clip_shapes(prefix: str = "", layers: int = 12) -> Shapes:
    """CLIP-L, the smallest text encoder that ComfyUI recognises."""
    shapes: Shapes = {
        f"{prefix}text_model.embeddings.token_embedding.weight": (49408, 768),
        f"{prefix}text_model.embeddings.position_embedding.weight": (77, 768),
    }
    for i in range(layers):
        _clip_layer(shapes, f"{prefix}text_model.encoder.layers.{i}", 768)
    _norm(shapes, f"{prefix}text_model.final_layer_norm", 768)
    return shapes


def clip_vision_shapes(layers: int = 24, hidden: int = 1024) -> Shapes:
    """The vision half of CLIP-L at 224 pixels, the smallest that ComfyUI recognises: 600 MB in float16."""
    shapes: Shapes = {
        "vision_model.embeddings.class_embedding": (hidden,),
        "vision_model.embeddings.patch_embedding.weight": (hidden, 3, 14, 14),
        "vision_model.embeddings.position_embedding.weight": (257, hidden),
        "visual_projection.weight": (768, hidden),
    }
    for i in range(layers):
        _clip_layer(shapes, f"vision_model.encoder.layers.{i}", hidden)
    _norm(shapes, "vision_model.pre_layrnorm", hidden)
    _norm(shapes, "vision_model.post_layernorm", hidden)
    return shapes


def _clip_layer(shapes: Shapes, layer: str, hidden: int) -> None:
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        _linear(shapes, f"{layer}.self_attn.{name}", hidden, hidden)
    _linear(shapes, f"{layer}.mlp.fc1", 4 * hidden, hidden)
    _linear(shapes, f"{layer}.mlp.fc2", hidden, 4 * hidden)
    _norm(shapes, f"{layer}.layer_norm1", hidden)
    _norm(shapes, f"{layer}.layer_norm2", hidden)


def sd15_unet_shapes(prefix: str = "model.diffusion_model.", channels: int = 320) -> Shapes:
    """The UNet of SD 1.5 cut down to its first level with one residual block a side."""
    shapes: Shapes = {}
    _linear(shapes, f"{prefix}time_embed.0", 4 * channels, channels)
    _linear(shapes, f"{prefix}time_embed.2", 4 * channels, 4 * channels)
    _conv(shapes, f"{prefix}input_blocks.0.0", channels, 4)
    _resnet(shapes, f"{prefix}input_blocks.1.0", channels, channels)
    _transformer(shapes, f"{prefix}input_blocks.1.1", channels)
    _resnet(shapes, f"{prefix}middle_block.0", channels, channels)
    _transformer(shapes, f"{prefix}middle_block.1", channels)
    _resnet(shapes, f"{prefix}middle_block.2", channels, channels)
    for i in range(2):
        _resnet(shapes, f"{prefix}output_blocks.{i}.0", channels, 2 * channels)
        _transformer(shapes, f"{prefix}output_blocks.{i}.1", channels)
    _norm(shapes, f"{prefix}out.0", channels)
    _conv(shapes, f"{prefix}out.2", 4, channels)
    return shapes


def controlnet_shapes(channels: int = 320) -> Shapes:
    """A ControlNet for that UNet: its first half, the layers of the hint, and its outputs."""
    prefix = "control_model."
    unet = sd15_unet_shapes(prefix, channels)
    shapes = {k: v for k, v in unet.items() if not k.startswith((f"{prefix}out.", f"{prefix}outp"))}
    widths = (3, 16, 16, 32, 32, 96, 96, 256, channels)
    for i, (inner, out) in enumerate(itertools.pairwise(widths)):
        _conv(shapes, f"{prefix}input_hint_block.{2 * i}", out, inner)
    for name in ("zero_convs.0.0", "zero_convs.1.0", "middle_block_out.0"):
        _conv(shapes, f"{prefix}{name}", channels, channels, 1)
    return shapes


def _resnet(shapes: Shapes, name: str, out: int, inner: int) -> None:
    _norm(shapes, f"{name}.in_layers.0", inner)
    _conv(shapes, f"{name}.in_layers.2", out, inner)
    _linear(shapes, f"{name}.emb_layers.1", out, 4 * out)
    _norm(shapes, f"{name}.out_layers.0", out)
    _conv(shapes, f"{name}.out_layers.3", out, out)
    if inner != out:
        _conv(shapes, f"{name}.skip_connection", out, inner, 1)


def _transformer(shapes: Shapes, name: str, size: int, context: int = 768) -> None:
    _norm(shapes, f"{name}.norm", size)
    _conv(shapes, f"{name}.proj_in", size, size, 1)
    block = f"{name}.transformer_blocks.0"
    for attention, inner in (("attn1", size), ("attn2", context)):
        _linear(shapes, f"{block}.{attention}.to_q", size, size, bias=False)
        _linear(shapes, f"{block}.{attention}.to_k", size, inner, bias=False)
        _linear(shapes, f"{block}.{attention}.to_v", size, inner, bias=False)
        _linear(shapes, f"{block}.{attention}.to_out.0", size, size)
    _linear(shapes, f"{block}.ff.net.0.proj", 8 * size, size)
    _linear(shapes, f"{block}.ff.net.2", size, 4 * size)
    for i in (1, 2, 3):
        _norm(shapes, f"{block}.norm{i}", size)
    _conv(shapes, f"{name}.proj_out", size, size, 1)


def vae_shapes(prefix: str = "") -> Shapes:
    """The VAE of SD with three levels, as the x4 upscaler's (the smallest that is recognised)."""
    shapes: Shapes = {}
    for side in ("encoder", "decoder"):
        _vae_side(shapes, f"{prefix}{side}", decoder=side == "decoder")
    _conv(shapes, f"{prefix}quant_conv", 8, 8, 1)
    _conv(shapes, f"{prefix}post_quant_conv", 4, 4, 1)
    return shapes


def _vae_resnet(shapes: Shapes, name: str, out: int, inner: int) -> None:
    _norm(shapes, f"{name}.norm1", inner)
    _conv(shapes, f"{name}.conv1", out, inner)
    _norm(shapes, f"{name}.norm2", out)
    _conv(shapes, f"{name}.conv2", out, out)
    if inner != out:
        _conv(shapes, f"{name}.nin_shortcut", out, inner, 1)


def _vae_side(shapes: Shapes, name: str, *, decoder: bool) -> None:
    widths, top = (128, 256, 512), 512
    _conv(shapes, f"{name}.conv_in", top if decoder else 128, 4 if decoder else 3)
    for i in (1, 2):
        _vae_resnet(shapes, f"{name}.mid.block_{i}", top, top)
    _norm(shapes, f"{name}.mid.attn_1.norm", top)
    for part in ("q", "k", "v", "proj_out"):
        _conv(shapes, f"{name}.mid.attn_1.{part}", top, top, 1)
    levels = list(enumerate(widths))
    inner = top if decoder else 128
    for level, width in reversed(levels) if decoder else levels:
        where = f"{name}.{'up' if decoder else 'down'}.{level}"
        for i in range(3 if decoder else 2):
            _vae_resnet(shapes, f"{where}.block.{i}", width, inner)
            inner = width
        if decoder and level != 0:
            _conv(shapes, f"{where}.upsample.conv", width, width)
        elif not decoder and level != len(widths) - 1:
            _conv(shapes, f"{where}.downsample.conv", width, width)
    _norm(shapes, f"{name}.norm_out", 128 if decoder else top)
    _conv(shapes, f"{name}.conv_out", 3 if decoder else 8, 128 if decoder else top)


def lora_shapes(shapes: Shapes, keys: list[str], rank: int = 4) -> Shapes:
    """A LoRA for linear layers `keys` (module names) of a diffusion model, in kohya-less naming."""
    lora: Shapes = {}
    for key in keys:
        out, inner = shapes[f"{key}.weight"]
        lora[f"diffusion_model.{key}.lora_down.weight"] = (rank, inner)
        lora[f"diffusion_model.{key}.lora_up.weight"] = (out, rank)
    return lora


def write_all(models: pathlib.Path) -> None:
    """Writes the standard set below a models folder; files that exist stay."""
    wan, flux = wan_shapes(), flux_shapes()
    checkpoint = {
        **sd15_unet_shapes(),
        **clip_shapes("cond_stage_model.transformer."),
        **vae_shapes("first_stage_model."),
    }
    half = torch.float16
    wanted: list[tuple[str, Shapes, torch.dtype]] = [
        ("diffusion_models/wan.safetensors", wan, torch.float32),
        ("diffusion_models/wan_second.safetensors", wan, torch.float32),
        ("diffusion_models/flux.safetensors", flux, torch.float32),
        ("checkpoints/sd15.safetensors", checkpoint, half),
        ("text_encoders/clip_l.safetensors", clip_shapes(), half),
        ("vae/vae.safetensors", vae_shapes(), half),
        ("loras/wan.safetensors", lora_shapes(wan, wan_lora_keys()), torch.float32),
        ("loras/flux.safetensors", lora_shapes(flux, ["single_blocks.1.linear2"]), torch.float32),
    ]
    wanted += [  # behind the others: a file's place is its seed
        ("controlnet/controlnet.safetensors", controlnet_shapes(), half),
        ("controlnet/lora.safetensors", {"lora_controlnet": (1,)}, half),
    ]
    for seed, (name, shapes, dtype) in enumerate(wanted):
        if not (models / name).exists():
            write(models / name, shapes, dtype, seed)
    folder = models / "diffusion_models"
    write_scaled_fp8(folder / "wan.safetensors", folder / "wan_scaled_fp8.safetensors")
    write_fp8(folder / "wan.safetensors", folder / "wan_fp8.safetensors")
    for layout in QUANTISED:
        write_quantised(folder / "wan.safetensors", folder / f"wan_{layout}.safetensors", layout)


def write_fp8(source: pathlib.Path, target: pathlib.Path) -> None:
    """A diffusion model with the matrices of its blocks as plain fp8."""
    tensors = load_file(source)
    low = [k for k, t in tensors.items() if k.startswith("blocks.") and t.ndim == 2]
    save_file({**tensors, **{k: tensors[k].to(torch.float8_e4m3fn) for k in low}}, target)


def write_scaled_fp8(source: pathlib.Path, target: pathlib.Path) -> None:
    """A float32 diffusion model as a scaled fp8 file: 8-bit linear weights in blocks, one scale each."""
    tensors = {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}
    for key, tensor in load_file(source).items():
        if key.startswith("blocks.") and key.endswith(".weight") and tensor.ndim == 2:
            scale = tensor.abs().max() / 448
            tensors[key] = (tensor / scale).to(torch.float8_e4m3fn)
            tensors[key.removesuffix("weight") + "scale_weight"] = scale
        else:
            tensors[key] = tensor
    save_file(tensors, target)


#: Layouts of comfy-kitchen, as files name them layer by layer.
QUANTISED = ("nvfp4", "int8_tensorwise")


def write_quantised(source: pathlib.Path, target: pathlib.Path, layout: str) -> None:
    """A float32 diffusion model with random 4 or 8-bit linear weights in its blocks, in comfy-kitchen's layout."""
    generator = torch.Generator().manual_seed(99)
    tensors = {}
    for key, tensor in load_file(source).items():
        if key.startswith("blocks.") and key.endswith(".weight") and tensor.ndim == 2:
            name = key.removesuffix(".weight")
            for part, value in _quantised(tensor.shape, layout, generator).items():
                tensors[f"{name}.{part}"] = value
            note = json.dumps({"format": layout}).encode()
            tensors[f"{name}.comfy_quant"] = torch.tensor(list(note), dtype=torch.uint8)
        else:
            tensors[key] = tensor
    save_file(tensors, target)


def _quantised(
    shape: tuple[int, ...], layout: str, generator: torch.Generator
) -> dict[str, torch.Tensor]:
    """Random weights of variance 1 / width. nvfp4: two a byte, a scale for each 16, one for all."""
    rows, width = shape
    if layout == "int8_tensorwise":
        weight = torch.randint(-127, 128, shape, generator=generator).to(torch.int8)
        scale = torch.tensor(1 / (73.3 * math.sqrt(width)))  # 73.3: root mean square of these
        return {"weight": weight, "weight_scale": scale}
    packed = torch.randint(0, 256, (rows, width // 2), generator=generator).to(torch.uint8)
    blocks = torch.rand((rows, width // 16), generator=generator) + 0.5
    return {
        "weight": packed,
        "weight_scale": blocks.to(torch.float8_e4m3fn),
        "weight_scale_2": torch.tensor(1 / (2.93 * math.sqrt(width))),
    }


def wan_lora_keys(blocks: int = 2) -> list[str]:
    """The linear layers that the standard Wan LoRA changes: not those of the last block."""
    return [f"blocks.{i}.{name}" for i in range(blocks) for name in ("self_attn.q", "ffn.0")]
