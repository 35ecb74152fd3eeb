#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes the help page of each node, web/docs/<id>.md, from the tables below; `--check` compares instead.

ComfyUI shows the page in its help panel. What a node has is decided in nodes/; a test inside ComfyUI compares the
inputs and outputs on the pages with those that it reports.
"""

from __future__ import annotations

import pathlib
import re
import sys
from collections.abc import Iterator

import node_help_others

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "web" / "docs"

# The core's (or the GGUF pack's) node → what it loads, its inputs, its outputs.
FILE = "the file, from ComfyUI's folder `{}`"
ENCODERS = {f"clip_name{i}": f"text encoder {i}, from `text_encoders`" for i in range(1, 5)}
KIND = "the kind of model the text encoder belongs to"
MODEL, CLIP = {"MODEL": "the diffusion model"}, {"CLIP": "the text encoder"}
ALL_PARTS = {**MODEL, **CLIP, "VAE": "the VAE"}
CONTROL = {"CONTROL_NET": "the ControlNet"}

Loader = tuple[str, dict[str, str], dict[str, str]]


def encoders(count: int, **more: str) -> dict[str, str]:
    """The inputs of a loader of several text encoders."""
    return {**dict(list(ENCODERS.items())[:count]), **more}


CORE: dict[str, Loader] = {
    "UNETLoader": (
        "a diffusion model",
        {
            "unet_name": FILE.format("diffusion_models"),
            "weight_dtype": "the type in which the weights are stored; `default`: the file's",
        },
        MODEL,
    ),
    "VAELoader": ("a VAE", {"vae_name": FILE.format("vae")}, {"VAE": "the VAE"}),
    "CLIPLoader": (
        "a text encoder",
        {"clip_name": FILE.format("text_encoders"), "type": KIND},
        CLIP,
    ),
    "DualCLIPLoader": ("two text encoders as one", encoders(2, type=KIND), CLIP),
    "TripleCLIPLoader": ("three text encoders as one", encoders(3), CLIP),
    "QuadrupleCLIPLoader": ("four text encoders as one", encoders(4), CLIP),
    "CLIPVisionLoader": (
        "an image encoder",
        {"clip_name": FILE.format("clip_vision")},
        {"CLIP_VISION": "the image encoder"},
    ),
    "CheckpointLoaderSimple": (
        "a checkpoint",
        {"ckpt_name": FILE.format("checkpoints")},
        ALL_PARTS,
    ),
    "ControlNetLoader": ("a ControlNet", {"control_net_name": FILE.format("controlnet")}, CONTROL),
    "DiffusersLoader": (
        "a model in the form of diffusers",
        {"model_path": "the folder, below ComfyUI's `diffusers`"},
        ALL_PARTS,
    ),
    "DiffControlNetLoader": (
        "a ControlNet stored as a difference",
        {"model": "what it is a difference to", "control_net_name": FILE.format("controlnet")},
        CONTROL,
    ),
}

UNET_GGUF = {"unet_name": "the GGUF file, from `diffusion_models`"}
GGUF: dict[str, Loader] = {
    "UnetLoaderGGUF": ("a diffusion model in GGUF", UNET_GGUF, MODEL),
    "UnetLoaderGGUFAdvanced": (
        "a diffusion model in GGUF",
        {
            **UNET_GGUF,
            "dequant_dtype": "the type into which weights are unpacked at each use",
            "patch_dtype": "the type in which LoRAs are computed",
            "patch_on_device": "keep LoRAs on the compute device",
        },
        MODEL,
    ),
    "CLIPLoaderGGUF": (
        "a text encoder, in GGUF or not",
        {"clip_name": FILE.format("text_encoders"), "type": KIND},
        CLIP,
    ),
    "DualCLIPLoaderGGUF": ("two text encoders as one", encoders(2, type=KIND), CLIP),
    "TripleCLIPLoaderGGUF": ("three text encoders as one", encoders(3), CLIP),
    "QuadrupleCLIPLoaderGGUF": ("four text encoders as one", encoders(4), CLIP),
}

DEVICE = "where the forward pass runs"
STRING = "an allocation string, as `cuda:1,8gb;cpu,4gb;cuda:0,*`. If not empty, it decides alone"
VIRTUAL = "GB of the model that the donor takes; 0: all stays on the compute device"
DONOR = "which device takes them"
EJECT = "before loading, the other models leave the compute device; kept ones wait in system memory"
KEEP = "on: the model stays through “free model and node cache”; off: that button unloads it"
MODE = (
    "how blocks on other accelerators are used, where the string does not say (`mode=`). `stream`: their weights are "
    "copied ahead of use. `migrate`: they compute there. `auto`: what a measured step shows to be faster"
)
PLACEMENT = {
    "virtual_vram_gb": VIRTUAL,
    "donor_device": DONOR,
    "expert_mode_allocations": STRING,
    "eject_models": EJECT,
    "keep_loaded": KEEP,
    "execution_mode": MODE,
}
LEGACY = {
    "device": DEVICE,
    "virtual_vram_gb": "GB of the model that leave the compute device",
    "use_other_vram": "on: the other accelerators take them, and system memory the rest",
    "expert_mode_allocations": STRING,
    "keep_loaded": KEEP,
}

EXAMPLE = """\
## Example

`expert_mode_allocations` = `cuda:1,8gb;cuda:0,*` puts the first 8 GB of the model's blocks on `cuda:1` and the rest on
the compute device `cuda:0`. 8 GB is a limit that is never passed. A wrong string is refused before a file is read, with
a mark under the fault. **DisTorch Plan** shows what a string does without loading anything.

After each load the placement is read back and written to the log as a table."""
ANYWHERE = "A device that this machine lacks is replaced by another, with a warning in the log."

Page = tuple[str, str, dict[str, str], dict[str, str], str]


def pages() -> Iterator[Page]:
    """Yield (id, first paragraph, inputs, outputs, the rest) of every node."""
    for name, (what, inputs, outputs) in {**CORE, **GGUF}.items():
        encoder = "CLIP" in name
        device = "device" if encoder else "compute_device"
        chosen = f"Loads {what} onto a device of your choice. All else is ComfyUI's own."
        yield f"{name}MultiGPU", chosen, {**inputs, "device": DEVICE}, outputs, ANYWHERE
        more = {**inputs, device: DEVICE, **PLACEMENT}
        first = f"Loads {what} and spreads its blocks over several devices" + (
            "; of a checkpoint, those of the diffusion model." if len(outputs) > 1 else "."
        )
        yield f"{name}DisTorch2MultiGPU", first, more, outputs, f"{EXAMPLE}\n\n{ANYWHERE}"
    for name, (what, inputs, outputs) in GGUF.items():
        first = (
            f"Loads {what} and spreads its blocks, with the widgets of the first DisTorch. "
            f"For new workflows take {name}DisTorch2MultiGPU."
        )
        yield f"{name}DisTorchMultiGPU", first, {**inputs, **LEGACY}, outputs, ANYWHERE
    yield from _single_pages()
    yield from node_help_others.pages(STRING)


def _single_pages() -> Iterator[Page]:
    yield (
        "DeviceSelectorMultiGPU",
        "A device as a value, for nodes of other packs with an input of type MULTIGPUDEVICE.",
        {"device": "the device"},
        {"device": "the same, or ComfyUI's own device where that one is missing"},
        "For the loaders of this pack take **DisTorch Device**.",
    )
    yield (
        "UNetLoaderLP",
        "Loads a diffusion model whose LoRA-patched weights take half the memory where they wait on the host.",
        {"unet_name": FILE.format("diffusion_models"), "keep_loaded": KEEP},
        MODEL,
        "A patched weight needs memory beside the file's copy. Where the file has it in fp8, and the model wants it wider, it "
        "is kept in fp8 in system memory, rounded stochastically; all else is stored unchanged. "
        "Weights on the compute device are not touched.",
    )
    checkpoint = {"ckpt_name": FILE.format("checkpoints")}
    yield (
        "CheckpointLoaderAdvancedMultiGPU",
        "Loads a checkpoint, each of its parts onto a device of its own. The file is read once.",
        {
            **checkpoint,
            "unet_device": "where the diffusion model runs",
            "clip_device": "where the text encoder runs",
            "vae_device": "where the VAE runs",
        },
        ALL_PARTS,
        ANYWHERE,
    )
    yield (
        "CheckpointLoaderAdvancedDisTorch2MultiGPU",
        "Loads a checkpoint and spreads the blocks of its diffusion model and of its text encoder. The file is read once.",
        {**checkpoint, **_parts()},
        ALL_PARTS,
        f"{EXAMPLE}\n\n{ANYWHERE}",
    )
    yield (
        "DisTorchDevice",
        "One device for several loaders: connect it to their device inputs.",
        {"device": "the device; `default`: ComfyUI's own"},
        {"device": "its name"},
        "Where the device is missing, each loader takes another: a compute device ComfyUI's own, a donor `cpu`.",
    )
    yield (
        "DisTorchPlan",
        "Shows which block of a model would lie on which device. Reads no weights; nothing is loaded.",
        {
            "file": "a model file with its folder: safetensors, GGUF (with the GGUF pack), or PyTorch's own format",
            "compute_device": DEVICE,
            **{k: PLACEMENT[k] for k in list(PLACEMENT)[:3]},
            "part": "of a checkpoint: which part; of other files all is taken",
            "memory": "count on all memory of each device, as when ComfyUI has made room, or on what is free now",
            "compare_with": "another allocation string: both plans are shown side by side; empty: one plan",
        },
        {
            "plan": "as text: the strip, one row for each device, what a step copies and takes, as far as that is known"
        },
        "The node shows it drawn: colour is the device, hatched blocks are streamed, the dashed box is the slots, amber is "
        "what the plan noted (a cap that was lowered, a device that is not here, percentages taken as ratios). **Place by "
        "hand** under the string has a slider for each device. A step's time needs a model that has run for two steps, and "
        "measured links (`distorch links`, or *Measure links*).\n\n"
        "Sizes are those in the file: `weight_dtype` changes them. Where a device is full, the loader's border may lie one "
        "block further, because a file does not tell the order of a model's modules. A wrong string, or one that fits "
        "nowhere, is an error that names the fault and a remedy.",
    )
    yield (
        "DisTorchUnload",
        "Unloads models when the workflow comes to this place, and passes its value on.",
        {
            "value": "anything; it decides when the node runs: after what makes it, before what takes it from here",
            "unload": "`this model`, `all others`, or `everything`",
            "model": "which model is meant: a MODEL, CLIP, VAE or CONTROL_NET. Without it, the value itself",
            "let_go": "also end the keeping of models with `keep_loaded`: their copy in system memory goes too once "
            "nothing uses it",
        },
        {
            "value": "the value",
            "freed": "what was unloaded, and the bytes that each device gave back",
        },
        "A model that is used later in the same workflow is loaded again, from system memory.\n\n"
        "When nothing in front of the node has changed, it runs again only if another workflow has loaded one of its "
        "models meanwhile.",
    )


def _parts() -> dict[str, str]:
    found = {}
    for part, words in (("unet", "the diffusion model"), ("clip", "the text encoder")):
        found[f"{part}_compute_device"] = f"where {words} runs"
        found[f"{part}_virtual_vram_gb"] = f"GB of {words} that the donor takes"
        found[f"{part}_donor_device"] = DONOR
    found["vae_device"] = "where the VAE runs"
    found["unet_expert_mode_allocations"] = f"{STRING} on the diffusion model"
    found["clip_expert_mode_allocations"] = f"{STRING} on the text encoder"
    found["high_precision_loras"] = (
        "off: LoRA-patched weights of an fp8 file stay fp8 in system memory"
    )
    return {**found, "eject_models": EJECT, "keep_loaded": KEEP, "execution_mode": MODE}


def title(node: str) -> str:
    """Return the id in words: a long word does not break, and the panel is 300 pixels wide."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|_", " ", node)
    return words.replace("Dis Torch", "DisTorch").replace("Multi GPU", "MultiGPU")


def render(page: Page) -> str:
    """Return the Markdown of a page. Lists, no tables: these are wider than the panel."""
    node, first, inputs, outputs, rest = page
    lines = [f"# {title(node)}", "", first, "", "## Inputs", ""]
    # In letters of one width the longest names are wider than ComfyUI's panel.
    marks = {name: "`" if len(name) < 27 else "**" for name in inputs}
    lines += [f"- {marks[n]}{n}{marks[n]}: {meaning}" for n, meaning in inputs.items()]
    lines += ["", "## Outputs", ""]
    lines += [f"- `{name}`: {meaning}" for name, meaning in outputs.items()]
    return "\n".join([*lines, "", rest, ""])


def main(arguments: list[str]) -> int:
    """Write the pages, or with --check say which differ; returns the exit status."""
    wanted = {f"{page[0]}.md": render(page) for page in pages()}
    there = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.md")}
    wrong = sorted(n for n in wanted.keys() | there.keys() if wanted.get(n) != there.get(n))
    if "--check" in arguments:
        for name in wrong:
            print(f"web/docs/{name} is not what tools/node_help.py writes: run it")
        return 1 if wrong else 0
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in wrong:
        if name in wanted:
            (FOLDER / name).write_text(wanted[name], encoding="utf-8")
        else:
            (FOLDER / name).unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
