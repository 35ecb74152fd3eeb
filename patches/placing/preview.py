# SPDX-License-Identifier: Apache-2.0
"""What a loader would put where, from the names and sizes of a file's tensors alone: no weight is read.

The blocks are made as `blocks.py` makes them from a loaded model, as far as names and sizes tell: only `weight` and
`bias` of a module travel, blocks below 16 KB and embeddings of text encoders stay on the compute device. Sizes are the
file's; a loader that changes the type of the weights (`weight_dtype`) changes them. A file does not tell the order of
the modules, numbers count as numbers here: where a device is full, the loader's border may lie one block further.
"""

from __future__ import annotations

import collections
import pathlib
from collections.abc import Iterable, Sequence

import folder_paths

from distorch import allocation, model_files, plan_drawing, plan_view
from distorch.device_table import device_table

from ..seams import devices
from ..settings import reserve_bytes, settings
from .blocks import SMALL, TRAVELLERS

#: The model folders whose files our loaders read; the last two are the GGUF pack's.
FOLDERS = (
    *("diffusion_models", "checkpoints", "text_encoders", "vae", "controlnet", "clip_vision"),
    *("unet_gguf", "clip_gguf"),
)

#: Part of a checkpoint → how the names of its tensors begin.
PARTS: dict[str, tuple[str, ...]] = {
    "model": ("model.diffusion_model.", "model_ema."),
    "text encoder": ("cond_stage_model.", "conditioner.", "text_encoders."),
    "VAE": ("first_stage_model.", "vae."),
    "whole file": (),
}


def files() -> list[str]:
    """Every file that can be planned, as "folder/name"; the folders as ComfyUI calls them."""
    found = []
    for folder in FOLDERS:
        if folder in folder_paths.folder_names_and_paths:
            names = folder_paths.get_filename_list(folder)
            found += [f"{folder}/{name}" for name in names if _can_be_planned(name)]
    return found


def path_of(file: str) -> pathlib.Path:
    """The path of one of `files()`. Raises FileNotFoundError for any other text."""
    folder, _, name = file.partition("/")
    path = None
    if folder in FOLDERS and folder in folder_paths.folder_names_and_paths:
        path = folder_paths.get_full_path(folder, name) if _can_be_planned(name) else None
    if path is None:
        raise FileNotFoundError(f"no model file {file!r} in ComfyUI's model folders")
    return pathlib.Path(path)


def _can_be_planned(name: str) -> bool:
    return name.lower().endswith(model_files.ENDINGS)


def blocks_of(path: pathlib.Path, part: str) -> list[allocation.Block]:
    """The blocks of a file, or of one part of a checkpoint; a file without that part is taken whole.

    Raises OSError, and ValueError for a file that is broken or of another format.
    """
    tensors = sorted(model_files.tensor_sizes(path), key=_natural)
    chosen = [row for row in tensors if row[0].startswith(PARTS[part])] if PARTS[part] else tensors
    if not chosen:
        if _has_parts(name for name, _ in tensors):
            raise ValueError(f"{path.name} holds no {part}")
        chosen = tensors
    travel = [row for row in chosen if row[0].rpartition(".")[2] in TRAVELLERS]
    stay = [row for row in chosen if row[0].rpartition(".")[2] not in TRAVELLERS]
    return [
        *(_with_reason(block) for block in allocation.blocks_of_tensors(travel)),
        *(
            allocation.Block(f"{b.name} (own)", b.bytes, b.group, "not moved by the layer's cast")
            for b in allocation.blocks_of_tensors(stay)
        ),
    ]


def _natural(row: tuple[str, int]) -> list[tuple[int, str]]:
    """Sorts "blocks.2" before "blocks.10"."""
    return [(int(p), "") if p.isdecimal() else (-1, p) for p in row[0].split(".")]


def _has_parts(names: Iterable[str]) -> bool:
    prefixes = PARTS["model"] + PARTS["VAE"] + PARTS["text encoder"]
    return any(name.startswith(prefixes) for name in names)


def _with_reason(block: allocation.Block) -> allocation.Block:
    reason = block.pinned or ("small" if block.bytes < SMALL else "")
    return allocation.Block(block.name, block.bytes, block.group, reason)


def plan_of(
    file: str, part: str, spec: allocation.Spec, compute: str, *, free_now: bool
) -> tuple[allocation.Plan, list[allocation.Device]]:
    """What a loader would plan for a file, and the table it would plan with.

    Args:
        file: one of `files()`.
        part: one of `PARTS`.
        spec: what is asked for (`request.spec_for`).
        compute: where the forward pass runs.
        free_now: count on what is free now only.

    Raises AllocationError for the string, PlanError if it fits nowhere, OSError or ValueError for the file.
    """
    there = device_table(
        compute, spec, reserve=reserve_bytes(), empty=() if free_now else devices.names()
    )
    options = allocation.Options(strict=settings["strict"], slots=None)
    return allocation.make_plan(
        spec, blocks_of(path_of(file), part), there, compute, options
    ), there


def describe(
    file: str,
    part: str,
    specs: Sequence[allocation.Spec],
    compute: str,
    *,
    free_now: bool,
) -> tuple[list[plan_view.PlanView], str]:
    """The plans, and as the log would show them: one with its strip, of several the comparison. Raises as `plan_of`."""
    found = [plan_of(file, part, spec, compute, free_now=free_now) for spec in specs]
    plan = found[0][0]
    views = [plan_view.view(*one) for one in found]
    total = allocation.format_bytes(plan.model_bytes)
    head = f"{file}: {total} in {len(plan.blocks)} blocks, computed on {compute}"
    if len(views) > 1:
        return views, f"{head}\n\n{plan_drawing.comparison(views)}"
    lines = [
        head,
        f"allocation: {specs[0]}",
        f"resolved: {views[0].resolved}",
        "",
        plan_drawing.text(views[0]),
        "",
        plan.tables(),
        *_staying(plan.blocks, compute),
    ]
    return views, "\n".join(lines)


def _staying(blocks: list[allocation.Block], compute: str) -> list[str]:
    """A line for each reason why blocks cannot leave the compute device."""
    sizes: collections.defaultdict[str, list[int]] = collections.defaultdict(list)
    for block in blocks:
        if block.pinned:
            sizes[block.pinned].append(block.bytes)
    return [
        f"stays on {compute}: {len(found)} blocks, {allocation.format_bytes(sum(found))} ({reason})"
        for reason, found in sizes.items()
    ]
