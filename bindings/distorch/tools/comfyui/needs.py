# SPDX-License-Identifier: Apache-2.0
"""The table: each seam, what it needs of ComfyUI, and what does not work without it.

Features are asked for, never versions. A need is met by a function whose first parameters have these names: what comes
behind them may grow, with a default where the pack is the one that calls.
"""

from __future__ import annotations

import dataclasses
from typing import Final

MANAGEMENT: Final = "comfy.model_management"
PATCHER: Final = "comfy.model_patcher"


@dataclasses.dataclass(frozen=True)
class Need:
    """One name in one of ComfyUI's modules."""

    module: str
    name: str  # with its class: "PromptQueue.get_flags"
    takes: str | None = None  # names of its first parameters; None: it need not be a function
    mentions: str = (
        ""  # names and words that its body uses: what it does, as far as the source tells
    )
    calls: bool = False  # the pack calls it, and does not only stand around it
    coroutine: bool = False
    where: str = ""  # holds only where this name is in the same module

    @property
    def full(self) -> str:
        """As people write it."""
        return f"{self.module}.{self.name}"


@dataclasses.dataclass(frozen=True)
class Seam:
    """What the pack wraps or builds on, as one: it is used as a whole or not at all."""

    name: str
    costs: str  # what happens without it
    needs: tuple[Need, ...]


def _called(module: str, *signatures: str) -> tuple[Need, ...]:
    """Needs of functions that the pack calls: "name parameter parameter"."""
    split = (signature.partition(" ") for signature in signatures)
    return tuple(Need(module, name, takes, calls=True) for name, _, takes in split)


def _wrapped(module: str, name: str, takes: str, costs: str, **more: str | bool) -> Seam:
    return Seam(f"{module}.{name}", costs, (Need(module, name, takes, **more),))  # type: ignore[arg-type]


_DEVICE = "the device widgets of loaders for it have no effect, ComfyUI's own device is used"
_TURNS = "models that share a device and do not fit side by side put each other out at every prompt"

#: The functions that are wrapped, by their full name.
_WRAPPED = (
    _wrapped(MANAGEMENT, "get_torch_device", "", _DEVICE),
    _wrapped(MANAGEMENT, "text_encoder_device", "", _DEVICE),
    _wrapped(MANAGEMENT, "unet_offload_device", "", "host copies lie where ComfyUI puts them"),
    Seam(
        f"{MANAGEMENT}.load_models_gpu",
        _TURNS,
        (
            Need(MANAGEMENT, "load_models_gpu", "models memory_required"),
            Need(MANAGEMENT, "vram_state"),
            *_called(MANAGEMENT, "minimum_inference_memory", "extra_reserved_memory"),
        ),
    ),
    _wrapped(MANAGEMENT, "free_memory", "memory_required device keep_loaded", _TURNS),
    _wrapped(
        MANAGEMENT,
        "unload_all_models",
        "",
        "a free unloads every model, also those that are to be kept",
        mentions="free_memory",
    ),
    _wrapped(
        MANAGEMENT,
        "soft_empty_cache",
        "force",
        "a free empties the cache of ComfyUI's device only",
        mentions="empty_cache",
    ),
    _wrapped(
        "execution",
        "get_output_data",
        "prompt_id unique_id obj input_data_all",
        "the tab cannot say which node loaded a model",
        coroutine=True,
    ),
    _wrapped(
        "execution",
        "PromptExecutor.add_message",
        "self event data",
        "the tab has no history of prompts",
    ),
    _wrapped("execution", "PromptQueue.get_flags", "self reset", "the tab cannot unload models"),
    _wrapped("execution", "PromptQueue.get", "self timeout", "reports of unloading stay open"),
    _wrapped(
        "comfy.utils", "ProgressBar.update_absolute", "self value", "the tab shows no step times"
    ),
    _wrapped("comfy.model_base", "BaseModel.apply_model", "self", "the tab shows no step times"),
    _wrapped("server", "PromptServer.add_routes", "self", "the profiler's route is not there"),
)

#: Loaders build ordinary patchers while `CoreModelPatcher` is one: they read it when they are called.
_LOADERS = (
    "load_diffusion_model_state_dict",
    "load_state_dict_guess_config",
    "CLIP.__init__",
    "VAE.__init__",
)

PLACING = Seam(
    "placing blocks",
    "models are loaded by ComfyUI as a whole, and allocation strings have no effect",
    (
        *_called(MANAGEMENT, "load_models_gpu models memory_required", "cpu_mode"),
        Need(MANAGEMENT, "current_loaded_models"),
        *_called(MANAGEMENT, "LoadedModel.model_unload self"),
        *_called(
            PATCHER,
            "ModelPatcher.__init__ self model load_device offload_device",
            "ModelPatcher.clone self",
            "ModelPatcher.model_size self",
            "ModelPatcher.loaded_size self",
            "ModelPatcher.load self device_to lowvram_model_memory force_patch_weights full_load",
            "ModelPatcher.partially_load self device_to extra_memory",
            "ModelPatcher.partially_unload self device_to memory_to_free",
            "ModelPatcher.unpatch_model self device_to unpatch_weights",
            "ModelPatcher.detach self unpatch_all",
            "ModelPatcher.patch_hooks self hooks",
            "ModelPatcher.unpatch_hooks self",
            "ModelPatcher.cleanup self",
            "ModelPatcher.apply_hooks self hooks",
            "ModelPatcher.use_ejected self",
            "ModelPatcher.eject_model self",
            "ModelPatcher.patch_weight_to_device self key device_to",
            "ModelPatcher.get_all_callbacks self call_type",
            "ModelPatcher.add_callback self call_type callback",
            "ModelPatcher.add_wrapper_with_key self wrapper_type key wrapper",
        ),
        Need(PATCHER, "ModelPatcher.partially_load", "self", mentions="load unpatch_model"),
        Need("comfy.patcher_extension", "CallbacksMP.ON_LOAD"),
        Need("comfy.patcher_extension", "WrappersMP.OUTER_SAMPLE"),
        Need(PATCHER, "CoreModelPatcher", where="ModelPatcherDynamic"),
        *(
            Need("comfy.sd", n, mentions="CoreModelPatcher", where=f"{PATCHER}:ModelPatcherDynamic")
            for n in _LOADERS
        ),
    ),
)

_QUEUE = Seam(
    "asking the worker",
    "a full cleanup can be asked for by ComfyUI's own button only",
    (
        *_called("execution", "PromptQueue.set_flag self name data"),
        Need("execution", "PromptQueue.__init__", "self", mentions="mutex not_empty"),
        *_called("server", "PromptServer.send_sync self event data"),
        Need("server", "PromptServer.__init__", "self", mentions="routes prompt_queue instance"),
        # Not a module that others import: told of a source tree only.
        Need(
            "main",
            "prompt_worker",
            "q",
            mentions="get get_flags unload_models free_memory unload_all_models reset soft_empty_cache",
        ),
    ),
)

_FILES = Seam(
    "finding files",
    "the nodes cannot list files, and settings stay at their defaults",
    (
        *_called(
            "folder_paths",
            "get_filename_list folder_name",
            "get_folder_paths folder_name",
            "get_full_path folder_name filename",
            "get_full_path_or_raise folder_name filename",
            "get_user_directory",
        ),
        Need("folder_paths", "folder_names_and_paths"),
    ),
)

_CHECKPOINTS = Seam(
    "checkpoints with a device for each part",
    "use the core's own checkpoint loader",
    (
        *_called(
            "comfy.sd",
            "load_checkpoint_guess_config ckpt_path output_vae output_clip",
            "VAE.__init__ self sd device",
        ),
        Need("comfy.sd", "load_state_dict_guess_config", mentions="VAE CLIP"),
    ),
)

#: Every seam, by its name.
SEAMS: Final[dict[str, Seam]] = {
    seam.name: seam for seam in (*_WRAPPED, PLACING, _QUEUE, _FILES, _CHECKPOINTS)
}
