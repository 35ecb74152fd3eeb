# SPDX-License-Identifier: Apache-2.0
"""Modules and operators that have a path of their own on the CPU, to be compared with simulated devices.

Run as a program it prints the cases whose bits differ, for the settings that its environment asks for, each with 1, 2
and 4 threads:

    ATEN_CPU_CAPABILITY=default python cpu_paths.py
"""

from __future__ import annotations

import copy
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

WIDTH = 48  # of no power of two, so that vectorised loops have a rest
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}

# Operators that only make or move tensors.
PLUMBING = {"_copy_from", "_to_copy", "as_strided", "clone", "contiguous", "copy_", "empty", "empty_like", "empty_strided",
            "expand", "fill_", "permute", "pixel_shuffle", "reshape", "resize_", "set_", "to", "transpose", "view", "zero_"}  # fmt: skip


def rand(*sizes: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(sizes, generator=torch.Generator().manual_seed(seed))


class Call(nn.Module):
    """A function of its arguments, as a module."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        super().__init__()
        self.function = function
        self.arguments = arguments
        self.modules_given = nn.ModuleList(a for a in arguments if isinstance(a, nn.Module))

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self.function(*inputs, *self.arguments)


def _modules() -> Iterator[tuple[str, nn.Module, list[torch.Tensor]]]:
    """Name, module in eval mode and inputs, on the CPU in float32."""
    x, image = rand(3, 11, WIDTH), rand(2, WIDTH, 13, 9)
    mask = rand(11, 11) > 0.8
    mask.fill_diagonal_(False)
    padding = torch.zeros(3, 11, dtype=torch.bool)
    padding[1, 7:] = True
    for batch_first in (True, False):
        attention = nn.MultiheadAttention(WIDTH, 4, batch_first=batch_first)
        for weights in (True, False):
            kind = f"attention {batch_first=} {weights=}"
            yield kind, Call(lambda q, a, w: a(q, q, q, need_weights=w), attention, weights), [x]
            attention = copy.deepcopy(attention)
    attention = nn.MultiheadAttention(WIDTH, 4, batch_first=True)
    yield "attention, masked", Call(lambda q, m, p, a: a(q, q, q, p, attn_mask=m), attention), [x, mask, padding]  # fmt: skip
    yield "attention, cross", Call(lambda q, k, a: a(q, k, k), attention), [x, rand(3, 5, WIDTH)]
    for activation in ("relu", "gelu"):
        for first in (True, False):
            layer = nn.TransformerEncoderLayer(
                WIDTH, 4, 80, activation=activation, batch_first=True, norm_first=first
            )
            yield f"encoder layer {activation} norm_first={first}", layer, [x]
    yield "decoder layer", nn.TransformerDecoderLayer(WIDTH, 4, 80, batch_first=True), [x, x]
    for kind in (nn.LSTM, nn.GRU, nn.RNN):
        yield kind.__name__, kind(WIDTH, 40, num_layers=2, batch_first=True), [x]
        yield f"{kind.__name__} both ways", kind(WIDTH, 40, bidirectional=True, bias=False), [x]
    yield "RNN relu", nn.RNN(WIDTH, 40, nonlinearity="relu"), [x]
    yield "LSTM with projections", nn.LSTM(WIDTH, 40, proj_size=24), [x]
    yield "LSTM, packed", Call(_packed, nn.LSTM(WIDTH, 40, batch_first=True)), [x]
    yield "GRU, packed", Call(_packed, nn.GRU(WIDTH, 40, batch_first=True)), [x]
    for cell in (nn.LSTMCell, nn.GRUCell, nn.RNNCell):
        yield cell.__name__, cell(WIDTH, 40), [x[0]]
    yield "linear", nn.Linear(WIDTH, 70), [x]
    yield "linear of one row", nn.Linear(WIDTH, 70), [x[0, :1]]
    yield "linear without bias", nn.Linear(WIDTH, 70, bias=False), [x]
    yield "large linear", nn.Linear(520, 390), [rand(2, 300, 520)]
    yield "bilinear", nn.Bilinear(WIDTH, WIDTH, 7), [x, x]
    yield "conv1d", nn.Conv1d(WIDTH, 40, 3, padding=1), [x.transpose(1, 2)]
    yield "conv1d causal", nn.Conv1d(WIDTH, 40, 3, dilation=2, padding="same"), [x.transpose(1, 2)]
    yield "conv2d", nn.Conv2d(WIDTH, 40, 3, padding=1), [image]
    yield "conv2d 1x1", nn.Conv2d(WIDTH, 40, 1), [image]
    yield "conv2d strided", nn.Conv2d(WIDTH, 40, 3, stride=2, padding=1), [image]
    yield "conv2d depthwise", nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH), [image]
    yield "conv2d reflect", nn.Conv2d(WIDTH, 40, 3, padding=1, padding_mode="reflect"), [image]
    last = torch.channels_last
    yield "conv2d channels_last", nn.Conv2d(WIDTH, 40, 3).to(memory_format=last), [image.to(memory_format=last)]  # fmt: skip
    yield "conv3d", nn.Conv3d(8, 12, 3, padding=1), [rand(1, 8, 5, 9, 7)]
    yield "conv_transpose1d", nn.ConvTranspose1d(WIDTH, 40, 4, 2, 1), [x.transpose(1, 2)]
    yield "conv_transpose2d", nn.ConvTranspose2d(WIDTH, 40, 4, 2, 1), [image]
    yield "conv_transpose3d", nn.ConvTranspose3d(8, 12, 4, 2, 1), [rand(1, 8, 5, 9, 7)]
    yield "group norm", nn.GroupNorm(6, WIDTH), [image]
    yield "group norm channels_last", nn.GroupNorm(6, WIDTH), [image.to(memory_format=last)]
    yield "layer norm", nn.LayerNorm(WIDTH), [x]
    yield "rms norm", nn.RMSNorm(WIDTH), [x]
    yield "batch norm", nn.BatchNorm2d(WIDTH), [image]
    yield "instance norm", nn.InstanceNorm2d(WIDTH, affine=True), [image]
    yield "local response norm", nn.LocalResponseNorm(5), [image]
    ids = torch.randint(0, 30, (4, 9), generator=torch.Generator().manual_seed(1))
    yield "embedding", nn.Embedding(30, WIDTH), [ids]
    for mode in ("sum", "mean", "max"):
        yield f"embedding bag {mode}", nn.EmbeddingBag(30, WIDTH, mode=mode), [ids]
    functions: dict[str, Callable[..., Any]] = {
        "gelu": nn.functional.gelu,
        "gelu tanh": lambda t: nn.functional.gelu(t, approximate="tanh"),
        "silu": nn.functional.silu,
        "mish": nn.functional.mish,
        "softmax": lambda t: t.softmax(-1),
        "softmax of another dimension": lambda t: t.softmax(1),
        "log_softmax": lambda t: t.log_softmax(-1),
        "logsumexp": lambda t: t.logsumexp(-1),
        "glu": nn.functional.glu,
        "matmul": lambda t: t @ t.mT,
        "einsum": lambda t: torch.einsum("bij,bkj->bik", t, t),
        "baddbmm": lambda t: torch.baddbmm(t[:, :, :11], t, t.mT, beta=0.5),
        "cdist": lambda t: torch.cdist(t, t),
        "mean and var": lambda t: torch.var_mean(t, (1, 2)),
        "norm": lambda t: t.norm(dim=-1),
        "cumsum": lambda t: t.cumsum(1),
        "normalize": nn.functional.normalize,
        "cosine similarity": lambda t: nn.functional.cosine_similarity(t, t.flip(1)),
        "sum": lambda t: t.sum(),
    }
    for name, function in functions.items():
        yield name, Call(function), [x]
    yield "addmm_activation", Call(lambda a, b, c: torch._addmm_activation(a, b, c, use_gelu=True)), [rand(70), x[0], rand(WIDTH, 70)]  # fmt: skip
    q = rand(2, 4, 150, 24)
    attend = nn.functional.scaled_dot_product_attention
    yield "sdpa", Call(attend), [q, q, q]
    yield "sdpa causal", Call(lambda q: attend(q, q, q, is_causal=True)), [q]
    yield "sdpa mask", Call(lambda q, m: attend(q, q, q, attn_mask=m)), [q, rand(150, 150)]
    yield "sdpa boolean mask", Call(lambda q, m: attend(q, q, q, attn_mask=m)), [q, rand(150, 150) > 0]  # fmt: skip
    yield "sdpa grouped", Call(lambda q, k: attend(q, k, k, enable_gqa=True)), [q, rand(2, 2, 60, 24)]  # fmt: skip
    for mode in ("nearest", "bilinear", "bicubic", "area"):
        corners = {"align_corners": False} if mode in ("bilinear", "bicubic") else {}
        yield f"interpolate {mode}", Call(lambda t, m, c: nn.functional.interpolate(t, scale_factor=1.7, mode=m, **c), mode, corners), [image]  # fmt: skip
    yield "interpolate antialias", Call(lambda t: nn.functional.interpolate(t, (7, 5), mode="bilinear", antialias=True)), [image]  # fmt: skip
    yield "pixel shuffle", nn.PixelShuffle(2), [image]
    yield "max_pool2d", nn.MaxPool2d(3, 2), [image]
    yield "avg_pool2d", nn.AvgPool2d(3, 2), [image]
    yield "adaptive pool", nn.AdaptiveAvgPool2d(5), [image]
    yield "grid sample", Call(lambda t, g: nn.functional.grid_sample(t, g, align_corners=False)), [image, rand(2, 6, 6, 2).tanh()]  # fmt: skip


def _packed(x: torch.Tensor, module: nn.Module) -> Any:
    packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([11, 7, 2]), batch_first=True)
    return nn.utils.rnn.pad_packed_sequence(module(packed)[0], batch_first=True)[0]


def _quantised() -> Iterator[tuple[str, nn.Module, list[torch.Tensor]]]:
    """Operators on integers and eight-bit floats; they have no other dtypes."""
    left, right = (rand(64, 64, seed=s).mul(30).to(torch.int8) for s in (1, 2))
    scales = rand(64).abs()
    yield "_int_mm", Call(torch._int_mm), [left, right]
    yield "_weight_int8pack_mm", Call(torch._weight_int8pack_mm), [rand(5, 64).bfloat16(), right, scales.bfloat16()]  # fmt: skip
    with warnings.catch_warnings():  # torch moves them to another package
        warnings.simplefilter("ignore")
        zeros = torch.zeros(70, dtype=torch.long)
        weight = torch.quantize_per_channel(rand(70, WIDTH), rand(70).abs(), zeros, 0, torch.qint8)
        packed = torch.ops.quantized.linear_prepack(weight, rand(70))
    yield (
        "quantised linear",
        Call(lambda t: torch.ops.quantized.linear_dynamic(t, packed)),
        [rand(3, WIDTH)],
    )
    yield "fake quantise", Call(lambda t: torch.fake_quantize_per_tensor_affine(t, 0.02, 3, 0, 255)), [rand(7, 9)]  # fmt: skip
    low = rand(64, 64).to(torch.float8_e4m3fn)
    one = torch.ones(())
    yield "_scaled_mm", Call(lambda a, s: torch._scaled_mm(a, a.t(), s, s, out_dtype=torch.bfloat16)), [low, one]  # fmt: skip
    yield "float8 and back", Call(lambda t: t.to(torch.float8_e5m2).float()), [rand(7, 9)]


def cases() -> dict[str, tuple[nn.Module, list[torch.Tensor]]]:
    """Each module with its inputs, by name: the floating-point ones in three dtypes."""
    found: dict[str, tuple[nn.Module, list[torch.Tensor]]] = {}
    torch.manual_seed(3)
    for name, module, inputs in _modules():
        for kind, dtype in DTYPES.items():
            typed = [t.to(dtype) if t.is_floating_point() else t for t in inputs]
            found[f"{name}, {kind}"] = copy.deepcopy(module).to(dtype).eval(), typed
    for name, module, inputs in _quantised():
        found[name] = module.eval(), inputs
    return found


def outputs(result: Any) -> list[torch.Tensor]:
    """The tensors of a result, nested or not."""
    if isinstance(result, torch.Tensor):
        return [result]
    return [t for part in result if part is not None for t in outputs(part)]


def run(module: nn.Module, inputs: list[torch.Tensor]) -> list[torch.Tensor] | str:
    """The tensors that it returns, or its error."""
    try:
        return outputs(module(*inputs))
    except (RuntimeError, NotImplementedError) as error:
        return f"{type(error).__name__} {str(error)[:160]!r}"


def difference(expected: list[torch.Tensor] | str, found: list[torch.Tensor] | str) -> str:
    """Say how what a simulated device returned differs from what the CPU did; "" when it does not."""
    if isinstance(expected, str) or isinstance(found, str):
        both = [part if isinstance(part, str) else "a result" for part in (expected, found)]
        return "" if expected == found else "{} on the CPU, {} on sim:0".format(*both)
    if any(t.device.type != "sim" for t in found):
        return "left the device"
    if [(t.dtype, t.shape) for t in found] != [(t.dtype, t.shape) for t in expected]:
        return "another dtype or shape"
    pairs = [(a.cpu(), b) for a, b in zip(found, expected, strict=True)]
    if all(torch.equal(_bits(a), _bits(b)) for a, b in pairs):
        return ""
    return f"differs by {max((a.float() - b.float()).abs().max().item() for a, b in pairs)}"


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """As integers: a NaN equals itself, and 0.0 is not -0.0."""
    return tensor.contiguous().flatten().view(torch.uint8)


def operators(module: nn.Module, inputs: list[torch.Tensor]) -> set[str]:
    """The names of the operators that run, also inside of others; not of those that only make or move tensors."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run(module, inputs)
    names = {e.name.removeprefix("aten::") for e in profile.events() if e.name.startswith("aten::")}
    return names - PLUMBING


def differences() -> list[str]:
    """Every case in both of torch's ways without gradients, and with 1, 2 and 4 threads."""
    found = []
    for name, (module, inputs) in cases().items():
        moved, there = copy.deepcopy(module).to("sim:0"), [t.to("sim:0") for t in inputs]
        for mode, threads in ((torch.no_grad, 1), *((torch.inference_mode, n) for n in (1, 2, 4))):
            torch.set_num_threads(threads)
            with mode():
                said = difference(run(module, inputs), run(moved, there))
            if said:
                found.append(f"{name}, {mode.__name__}, {threads} threads: {said}")
    return found


if __name__ == "__main__":
    import distorch_sim

    warnings.simplefilter("ignore")
    distorch_sim.install([1 << 30])
    found = differences()
    last = f"{torch.backends.cpu.get_cpu_capability()}: {len(cases())} cases, {len(found)} differ"
    print(*found, last, sep="\n")
    sys.exit(bool(found))
