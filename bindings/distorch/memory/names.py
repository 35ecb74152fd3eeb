# SPDX-License-Identifier: Apache-2.0
"""Names for models: from the files that loader nodes name, from attributes, from the class.

A loader node says which file it is about to read; the module that appears is that file's
model. What the node returns is matched first; what it keeps to itself is matched by time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from torch import nn

from distorch import printable, safetensors_header
from distorch.memory.scan_log import told_files

logger = printable.logger(__name__)

# (folder of ComfyUI's model folders, name) -> path of the file, or None where there is none. With "" for the folder: the
# folder that has a file of that name.
Resolver = Callable[[str, str], "str | None"]

PENDING_SECONDS = 5.0

# Input name -> (the kind of model it names, folders it may lie in). "" fits every kind.
_DIFFUSION = ("diffusion_models", "unet", "unet_gguf", "checkpoints")
FILE_INPUTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "ckpt_name": ("", ("checkpoints",)),
    "checkpoint": ("", ("checkpoints",)),
    "config_ckpt_name": ("", ("checkpoints",)),
    "unet_name": ("checkpoint", _DIFFUSION),
    "model": ("", _DIFFUSION),
    "model_path": ("", _DIFFUSION),
    "diffusion_model": ("checkpoint", _DIFFUSION),
    "clip_name": ("clip", ("text_encoders", "clip", "clip_gguf", "clip_vision")),
    "text_encoder": ("clip", ("text_encoders", "clip")),
    "vae_name": ("vae", ("vae", "vae_approx")),
    "vae": ("vae", ("vae",)),
    "lora_name": ("lora", ("loras",)),
    "lora": ("lora", ("loras",)),
    "control_net_name": ("controlnet", ("controlnet",)),
    "controlnet": ("controlnet", ("controlnet",)),
    "style_model_name": ("", ("style_models",)),
    "upscale_model": ("upscaler", ("upscale_models",)),
    "model_name": ("", ("upscale_models", *_DIFFUSION, "model_patches", "latent_upscale_models")),
    "name": ("", ("model_patches",)),
    "text_encoders": ("clip", ("text_encoders", "clip")),
    "t5": ("clip", ("text_encoders", "clip")),
    "clip_vision": ("clip", ("clip_vision",)),
    "vace_model": ("checkpoint", _DIFFUSION),
    "wav2vec2": ("", ("wav2vec2", "audio_encoders")),
}
# The kind of what lies in a folder, for inputs of other names.
_KIND_OF_FOLDER = {
    folder: kind for kind, folders in FILE_INPUTS.values() if kind for folder in folders
} | {"checkpoints": ""}
_FILE_ENDINGS = (".safetensors", ".sft", ".gguf", ".ckpt", ".pt", ".pth", ".bin")
# Attributes behind which loaders' objects keep their modules, and a module its own name.
_HOLDERS = (
    "model", "patcher", "cond_stage_model", "first_stage_model", "control_model", "upscale_model",
    "diffusion_model", "unet", "transformer", "text_encoder", "vae", "pipe", "pipeline",
)  # fmt: skip
_NAME_ATTRIBUTES = ("name", "model_name")


@dataclass(frozen=True)
class FileName:
    """A file that an input names: relative name with its folder, and its metadata."""

    file: str
    kind: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    readable: bool = False  # its safetensors header could be read, or it is a GGUF file

    @property
    def title(self) -> str:
        """The name to show, "" where the file does not give one."""
        for key in ("model_type", "modelspec.title"):
            if self.metadata.get(key):
                return self.metadata[key]
        return PurePosixPath(self.file).stem if self.readable else ""


@dataclass(frozen=True)
class Note:
    """What is known of a model beyond its tensors."""

    name: str = ""
    file: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    since: float = 0.0  # when loading began, seconds since 1970; 0: not known


@dataclass
class PendingLoad:
    """The files one node named, and when it ran (seconds since 1970; end 0: it still runs)."""

    files: list[FileName]
    start: float
    end: float = 0.0
    matched: bool = False
    returned: bool = False  # the node returned its model: what else appears is not this load's

    def fits(self, seen: float) -> bool:
        """Whether a model that appeared at `seen` may be this load's."""
        latest = self.end + PENDING_SECONDS if self.end else float("inf")
        return not self.returned and self.start <= seen <= latest

    def brought(self, note: Note) -> bool:
        """Whether a model with this note, that was there before, is what the node returned."""
        return any(f.file == note.file for f in self.files)

    def note_for(self, kind: str) -> Note | None:
        """Return the note for a model of `kind`: the files of that kind, else those of any."""
        files = [f for f in self.files if f.kind == kind]
        files = files or [f for f in self.files if not f.kind]
        kinds = {f.kind for f in self.files}
        if not files and kind == "model" and len(kinds) == 1 and kinds != {"lora"}:
            files = self.files  # a class that says nothing; but a LoRA's file makes no model
        if not files:
            return None
        titles = [f.title for f in files]
        metadata = next((f.metadata for f in files if f.metadata), {})
        name = " + ".join(titles) if all(titles) else ""
        return Note(name, files[0].file, metadata, self.start)


class PendingLoads:
    """The loads of the last seconds. Thread safe."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._loads: dict[object, PendingLoad] = {}

    def started(self, key: object, inputs: Mapping[str, Any], resolver: Resolver) -> None:
        """Remember the files that `inputs` of node run `key` name; reads their headers."""
        now = self._clock()
        files = files_named_by(inputs, resolver)
        told_files((one.file, one.readable) for one in files)
        with self._lock:
            self._expire(now)
            if files:
                self._loads[key] = PendingLoad(files, now)

    def ended(self, key: object) -> PendingLoad | None:
        """Say that the node run is over; returns what it was about to load."""
        with self._lock:
            load = self._loads.get(key)
            if load is not None:
                load.end = self._clock()
            return load

    def match(self, seen: float, kind: str) -> Note | None:
        """Return the note of the load during which a model of `kind` appeared, newest first."""
        with self._lock:
            self._expire(self._clock())
            for load in reversed(list(self._loads.values())):
                note = load.note_for(kind) if load.fits(seen) else None
                if note is not None:
                    load.matched = True
                    return note
        return None

    def waiting(self) -> bool:
        """Whether a load is over whose model has not been seen."""
        with self._lock:
            self._expire(self._clock())
            return any(load.end and not load.matched for load in self._loads.values())

    def _expire(self, now: float) -> None:
        for key, load in list(self._loads.items()):
            if load.end and now - load.end > PENDING_SECONDS:
                del self._loads[key]


def files_named_by(inputs: Mapping[str, Any], resolver: Resolver) -> list[FileName]:
    """Return the model files that a node's inputs name, in the inputs' order.

    A name is looked up in ComfyUI's model folders through `resolver` only; what is not
    found there is ignored, so no path of a request is ever opened.
    """
    found = []
    for key, value in inputs.items():
        kind, folders = FILE_INPUTS.get(key, ("", ()))
        if not folders and key.rstrip("0123456789") != key:
            kind, folders = FILE_INPUTS.get(key.rstrip("0123456789"), ("", ()))
        name = value[0] if isinstance(value, list) and len(value) == 1 else value
        if not isinstance(name, str) or not name:
            continue
        path = None
        for folder in folders:
            path = resolver(folder, name)
            if path:
                break
        if not path and name.lower().endswith(_FILE_ENDINGS):
            folder = resolver("", name) or ""
            path = resolver(folder, name) if folder else None
            kind = _KIND_OF_FOLDER.get(folder, "")
        if path:
            found.append(_read_file_name(f"{folder}/{name}".replace("\\", "/"), kind, path))
    return found


def _read_file_name(file: str, kind: str, path: str) -> FileName:
    if not file.endswith((".safetensors", ".sft")):
        # A GGUF file has no header of ours, but is one model, which its name tells.
        return FileName(file, kind, readable=file.endswith(".gguf"))
    metadata = _read_metadata(path)
    return FileName(file, kind, metadata or {}, metadata is not None)


_warned = False


def _read_metadata(path: str) -> dict[str, str] | None:
    global _warned
    try:
        return safetensors_header.read_header(path).metadata
    except (OSError, ValueError) as error:
        if not _warned:
            _warned = True
            logger.warning(
                "DisTorch cannot read the metadata of %s (%s): models are shown by class name",
                Path(path).name,
                error,
            )
        return None


def modules_in(value: object, depth: int = 5) -> list[nn.Module]:
    """Return the outermost modules in what a loader returned, without running its code.

    Looks into lists, tuples, dicts and the attributes that loaders keep modules in.
    """
    found: list[nn.Module] = []
    seen: set[int] = set()
    waiting: list[tuple[object, int]] = [(value, depth)]
    while waiting:
        one, left = waiting.pop(0)
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, nn.Module):
            found.append(one)
        elif left > 0:
            waiting.extend((inner, left - 1) for inner in _inside(one))
    return found


def _inside(value: object) -> Iterable[object]:
    if isinstance(value, (list, tuple)):
        return value[:64]
    if isinstance(value, dict):
        return list(value.values())[:64]
    try:
        attributes = vars(value)
    except TypeError:
        return ()
    return [attributes[name] for name in _HOLDERS if name in attributes]


def name_by_attributes(module: nn.Module) -> str:
    """Return the name that the module itself carries, "" where it has none."""
    attributes = vars(module)
    for key in _NAME_ATTRIBUTES:
        value = attributes.get(key, getattr(type(module), key, None))
        if isinstance(value, str) and value:
            return value
    path = getattr(attributes.get("config"), "_name_or_path", None)
    if isinstance(path, str) and path:
        return PurePosixPath(path.replace("\\", "/")).name or path
    metadata = attributes.get("__metadata__")
    value = metadata.get("model_type") if isinstance(metadata, Mapping) else None
    return value if isinstance(value, str) else ""


def class_names(module: nn.Module) -> list[str]:
    """Return the qualified names of the module's class and its bases, itself first."""
    bases = [c for c in type(module).__mro__ if c not in (nn.Module, object)]
    return [f"{c.__module__}.{c.__qualname__}" for c in bases]
