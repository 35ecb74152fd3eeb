# SPDX-License-Identifier: Apache-2.0
"""Workflows in ComfyUI's API form, written as Python calls."""

from __future__ import annotations

import pathlib
from typing import Any

Link = list  # [node id, output index]


#: Where ComfyUI looks for the file that an input names.
FOLDERS = {
    "unet_name": "diffusion_models",
    "vae_name": "vae",
    "clip_name": "text_encoders",
    "clip_name1": "text_encoders",
    "clip_name2": "text_encoders",
    "ckpt_name": "checkpoints",
}


def write_empty_files(base: pathlib.Path, inputs: dict[str, Any]) -> None:
    """An empty file below `base`/models for each one that the inputs of a node name."""
    for name, value in inputs.items():
        if name in FOLDERS and isinstance(value, str):
            path = base / "models" / FOLDERS[name] / value
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()


class Workflow(dict):
    """`w.add("UNETLoader", unet_name=...)` gives the node's first output as a link."""

    def add(self, class_type: str, **inputs: Any) -> Link:
        """Adds a node; the answer links to its output 0 (`output(link, 1)` for others)."""
        node = str(len(self) + 1)
        self[node] = {"class_type": class_type, "inputs": inputs}
        return [node, 0]

    @staticmethod
    def output(link: Link, index: int) -> Link:
        """Another output of the node that `link` points to."""
        return [link[0], index]

    def save(self, value: Link, name: str = "value") -> Workflow:
        """Keeps a value bit for bit: `Result.values[name]`."""
        self.add("DistorchTestSave", value=value, name=name)
        return self

    def sample(
        self, model: Link, positive: Link, latent: Link, *, steps: int = 2, **more: Any
    ) -> Link:
        """A KSampler with cfg 1 unless `more` says otherwise."""
        inputs = {"seed": 7, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple"}
        inputs.update(denoise=1.0, negative=positive, **more)
        return self.add(
            "KSampler", model=model, positive=positive, latent_image=latent, steps=steps, **inputs
        )

    def conditioning(self, tokens: int, width: int, *, pooled: int = 0, seed: int = 1) -> Link:
        """A random prompt embedding."""
        return self.add(
            "DistorchTestConditioning", tokens=tokens, width=width, pooled=pooled, seed=seed
        )

    def latent(self, *shape: int) -> Link:
        """A zero latent."""
        return self.add("DistorchTestLatent", shape=",".join(map(str, shape)))


def wan_model(w: Workflow, expert: str | None) -> Link:
    """Add a loader of the small Wan model and return its output: ours with this string on sim:0, the core's for None."""
    settings = {"unet_name": "wan.safetensors", "weight_dtype": "default"}
    if expert is None:
        return w.add("UNETLoader", **settings)
    settings.update(compute_device="sim:0", expert_mode_allocations=expert)
    return w.add("UNETLoaderDisTorch2MultiGPU", **settings)


def wan(expert: str | None, steps: int) -> Workflow:
    """Samples with that model in so many steps, and saves the latent as "wan"."""
    w = Workflow()
    model = wan_model(w, expert)
    latent = w.sample(model, w.conditioning(8, 4096), w.latent(1, 16, 1, 8, 8), steps=steps)
    return w.save(latent, "wan")
