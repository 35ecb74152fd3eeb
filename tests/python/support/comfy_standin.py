# SPDX-License-Identifier: Apache-2.0
"""As much of ComfyUI as the pack touches, written for these tests: names and contracts, no more."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import types
import uuid
import weakref
from typing import Any, ClassVar

import distorch_sim
import torch

GIB = 2**30


class CastLinear(torch.nn.Linear):
    """A layer whose weights may lie anywhere, like those of ComfyUI's operations."""

    comfy_cast_weights = False
    weight_function: ClassVar[list[Any]] = []
    bias_function: ClassVar[list[Any]] = []

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        if not self.comfy_cast_weights:
            return super().forward(value)
        bias = None if self.bias is None else self.bias.to(value.device)
        return torch.nn.functional.linear(value, self.weight.to(value.device), bias)


class Block(torch.nn.Module):
    """A layer with a parameter of its own beside two linear ones."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(size))
        self.up, self.down = CastLinear(size, 2 * size), CastLinear(2 * size, size)

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        return value + self.down(torch.tanh(self.up(value * self.scale)))


class Model(torch.nn.Module):
    """Blocks, a plain layer that cannot cast, an embedding, a buffer."""

    def __init__(self, size: int = 128, depth: int = 4) -> None:
        super().__init__()
        self.device: torch.device | None = None
        self.table = CastEmbedding(64, size)
        self.blocks = torch.nn.ModuleList(Block(size) for _ in range(depth))
        self.norm = torch.nn.LayerNorm(size)
        self.register_buffer("offset", torch.ones(size))
        self.eval()
        for parameter in self.parameters():
            parameter.requires_grad_(False)

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            value = block(value)
        return self.norm(value) + self.offset


class CastEmbedding(torch.nn.Embedding):
    comfy_cast_weights = False


@dataclasses.dataclass
class Dimension:
    weight: torch.Tensor
    inplace_update: bool


class ModelPatcher:
    """The contract of ComfyUI's: which method calls which, and what they leave on the model."""

    def __init__(self, model: Any, load_device: Any, offload_device: Any, size: int = 0) -> None:
        self.model, self.load_device, self.offload_device = model, load_device, offload_device
        self.size, self.parent = size, None
        self.patches: dict[str, list[tuple]] = {}
        self.backup: dict[str, Dimension] = {}
        self.hook_backup: dict[str, Any] = {}
        self.weight_wrapper_patches: dict[str, list[Any]] = {}
        self.callbacks: list[Any] = []
        self.wrappers: dict[str, list[Any]] = {}
        self.force_cast_weights = self.weight_inplace_update = False
        self.forced_hooks = None
        self.patches_uuid = uuid.uuid4()
        for name, value in (
            ("current_weight_patches_uuid", None),
            ("model_loaded_weight_memory", 0),
        ):
            if not hasattr(model, name):
                setattr(model, name, value)
        model.model_lowvram = getattr(model, "model_lowvram", False)

    def is_dynamic(self) -> bool:
        return False

    def model_size(self) -> int:
        return sum(t.nbytes for t in self.model.state_dict().values())

    def loaded_size(self) -> int:
        return self.model.model_loaded_weight_memory

    def clone(self) -> ModelPatcher:
        n = self.__class__(self.model, self.load_device, self.offload_device, self.model_size())
        n.patches = {k: v[:] for k, v in self.patches.items()}
        n.patches_uuid, n.backup, n.parent = self.patches_uuid, self.backup, self
        n.hook_backup = self.hook_backup
        n.callbacks = self.callbacks[:]
        return n

    def get_wrappers(self, _kind: str, key: str) -> list[Any]:
        return self.wrappers.get(key, [])

    def add_wrapper_with_key(self, _kind: str, key: str, wrapper: Any) -> None:
        self.wrappers.setdefault(key, []).append(wrapper)

    def add_callback(self, _kind: str, callback: Any) -> None:
        self.callbacks.append(callback)

    def get_all_callbacks(self, _kind: str) -> list[Any]:
        return self.callbacks

    def add_patches(self, patches: dict[str, torch.Tensor], strength: float = 1.0) -> None:
        for key, difference in patches.items():
            self.patches.setdefault(key, []).append((strength, difference, 1.0, None, None))
        self.patches_uuid = uuid.uuid4()

    def patch_weight_to_device(self, key: str, device_to: Any = None) -> None:
        module = self.model.get_submodule(key.rpartition(".")[0])
        weight = getattr(module, key.rpartition(".")[2])
        if key not in self.backup:
            self.backup[key] = Dimension(weight.to(self.offload_device), False)
        out = weight.to(device_to, torch.float32, copy=True)
        for strength, difference, *_ in self.patches[key]:
            out += strength * difference.to(out.device)
        setattr(module, key.rpartition(".")[2], torch.nn.Parameter(out.to(weight.dtype), False))

    use_ejected = staticmethod(lambda **_kwargs: contextlib.nullcontext())

    def patch_hooks(self, hooks: dict[str, torch.Tensor] | None) -> None:
        """`hooks`: differences by key, written into the tensors as they lie."""
        self.unpatch_hooks()
        for key, difference in (hooks or {}).items():
            weight = self.model.get_parameter(key)
            self.hook_backup[key] = (weight.to(weight.device, copy=True), weight.device)
            weight.data.copy_(weight + difference.to(weight.device))

    def unpatch_hooks(self) -> None:
        for key, (weight, device) in self.hook_backup.items():
            self.model.get_parameter(key).data.copy_(weight.to(device))
        self.hook_backup.clear()

    def cleanup(self) -> None:
        self.unpatch_hooks()

    def eject_model(self) -> None:
        pass

    def apply_hooks(self, _hooks: Any, force_apply: bool = False) -> None:
        pass

    def model_patches_models(self) -> list[Any]:
        return []

    def partially_load(self, device_to: Any, extra_memory: float = 0) -> int:
        current = self.model.current_weight_patches_uuid
        unpatch = current is not None and current != self.patches_uuid
        self.unpatch_model(self.offload_device, unpatch_weights=unpatch)
        used = self.model.model_loaded_weight_memory
        try:
            self.load(device_to, lowvram_model_memory=used + extra_memory)
        except Exception:
            self.detach()
            raise
        return self.model.model_loaded_weight_memory - used

    def load(self, device_to: Any, lowvram_model_memory: float = 0) -> None:
        self.model.to(device_to)
        self.model.model_loaded_weight_memory = self.model_size()

    def partially_unload(self, device_to: Any, memory_to_free: float = 0) -> int:
        return 0

    def unpatch_model(self, device_to: Any = None, unpatch_weights: bool = True) -> None:
        if not unpatch_weights:
            return
        for module in self.model.modules():
            if hasattr(module, "prev_comfy_cast_weights"):
                module.comfy_cast_weights = module.prev_comfy_cast_weights
                del module.prev_comfy_cast_weights
            module.__dict__.pop("comfy_patched_weights", None)
        self.model.model_lowvram = False
        self.model.current_weight_patches_uuid = None
        self.model.model_loaded_weight_memory = 0
        self.backup.clear()
        if device_to is not None:
            self.model.to(device_to)
            self.model.device = device_to

    def detach(self, unpatch_all: bool = True) -> None:
        if unpatch_all:
            self.unpatch_model(self.offload_device, unpatch_weights=True)


class LoadedModel:
    """An entry of the core's list; it holds its patcher weakly."""

    def __init__(self, patcher: Any) -> None:
        self._patcher = weakref.ref(patcher)
        self.device = patcher.load_device

    @property
    def model(self) -> Any:
        return self._patcher()

    def model_unload(self, memory_to_free: float | None = None) -> bool:
        if memory_to_free is not None and memory_to_free < self.model.loaded_size():
            freed = self.model.partially_unload(self.model.offload_device, memory_to_free)
            if freed >= memory_to_free:
                return False
        self.model.detach()
        return True


class ProgressBar:
    """What a load that takes long shows."""

    def __init__(self, total: int) -> None:
        self.total = total

    def update_absolute(self, value: int) -> None:
        pass


class Queue:
    """The core's queue of prompts, as far as flags go."""

    def __init__(self) -> None:
        self.mutex = threading.RLock()
        self.not_empty = threading.Condition(self.mutex)
        self.currently_running: dict[int, Any] = {}
        self.flags: dict[str, Any] = {}

    def set_flag(self, name: str, data: Any) -> None:
        with self.mutex:
            self.flags[name] = data
            self.not_empty.notify()


class StandIn:
    """The modules, and shortcuts for tests."""

    def __init__(self) -> None:
        distorch_sim.install(capacities=[GIB, GIB, GIB])
        self.mm = types.ModuleType("comfy.model_management")
        self.patcher = types.ModuleType("comfy.model_patcher")
        self.extension = types.ModuleType("comfy.patcher_extension")
        self.extension.CallbacksMP = types.SimpleNamespace(ON_LOAD="on_load")
        self.extension.WrappersMP = types.SimpleNamespace(OUTER_SAMPLE="outer_sample")
        self.patcher.ModelPatcher = self.patcher.CoreModelPatcher = ModelPatcher
        self.folders = types.ModuleType("folder_paths")
        self.folders.folder_names_and_paths = {}
        self.folders.get_full_path = lambda folder, name: None
        self.server = types.ModuleType("server")
        self.queue = Queue()
        self.server.PromptServer = types.SimpleNamespace(
            instance=types.SimpleNamespace(prompt_queue=self.queue)
        )
        self._fill_mm()

    def _fill_mm(self) -> None:
        mm = self.mm
        mm.current_loaded_models = []
        mm.NUM_STREAMS = 0
        mm.get_torch_device = lambda: torch.device("sim", 0)
        mm.text_encoder_device = lambda: torch.device("cpu")
        mm.unet_offload_device = lambda: torch.device("cpu")
        mm.get_all_torch_devices = lambda: [torch.device("sim", i) for i in range(3)]
        mm.get_free_memory = (
            lambda d: GIB if d.type == "cpu" else torch.sim.mem_get_info(d.index)[0]
        )
        mm.get_total_memory = (
            lambda d: 64 * GIB if d.type == "cpu" else torch.sim.mem_get_info(d.index)[1]
        )
        mm.load_models_gpu = self.load_models_gpu
        mm.free_memory = self.free_memory
        self.working = 0
        mm.minimum_inference_memory = lambda: self.working
        mm.extra_reserved_memory = lambda: 0
        mm.vram_state = types.SimpleNamespace(name="NORMAL_VRAM")
        mm.DISABLE_SMART_MEMORY = False
        mm.OOM_EXCEPTION = torch.OutOfMemoryError
        mm.cpu_mode = lambda: False
        mm.unload_all_models = self.unload_all_models
        mm.soft_empty_cache = self.soft_empty_cache
        self.calls: list[str] = []

    def unload_all_models(self) -> None:
        """Everything goes, as in the core."""
        self.calls.append("unload_all_models")
        for entry in list(self.mm.current_loaded_models):
            entry.model_unload()
        self.mm.current_loaded_models.clear()

    def soft_empty_cache(self, force: bool = False) -> None:
        self.calls.append("soft_empty_cache")

    def load_models_gpu(self, patchers: list[Any], budget: float = 1e32) -> None:
        """Loads each and puts it first in the list, as the core does."""
        for patcher in patchers:
            entries = self.mm.current_loaded_models
            entries[:] = [e for e in entries if e.model and e.model.model is not patcher.model]
            entry = LoadedModel(patcher)
            patcher.partially_load(patcher.load_device, budget)
            entries.insert(0, entry)

    def load_where_room_is_made(
        self, models: list[Any], memory_required: float = 0, force_full_load: bool = False
    ) -> None:
        """As the core's load: it asks for room for all of a model, then loads as much as there is room for."""
        entries, mm = self.mm.current_loaded_models, self.mm
        kept = [m.model for m in models]
        entries[:] = [e for e in entries if e.model and all(e.model.model is not m for m in kept)]
        dynamic = all(m.is_dynamic() for m in models)
        for patcher in models:
            device = patcher.load_device
            wanted = patcher.model_size() - patcher.loaded_size()
            wanted = 1.1 * wanted + max(self.working, memory_required)
            mm.free_memory(wanted, device, for_dynamic=dynamic)
            mm.free_memory(max(self.working, memory_required), device, for_dynamic=dynamic)
            budget = mm.get_free_memory(device) - max(self.working, memory_required)
            patcher.partially_load(device, 1e32 if force_full_load else budget)
            entries.insert(0, LoadedModel(patcher))

    def free_memory(
        self,
        memory_required: float,
        device: Any,
        keep_loaded: Any = (),
        for_dynamic: bool = False,
    ) -> list[LoadedModel]:
        """As the core's: one model after the other gives what is missing still."""
        self.calls.append("free_memory")
        entries, gone = self.mm.current_loaded_models, []
        for entry in [e for e in reversed(entries) if e.device == device and e not in keep_loaded]:
            missing = memory_required - self.mm.get_free_memory(device)
            if entry.model.is_dynamic() and for_dynamic:
                memory_required -= entry.model.loaded_size()
            elif missing > 0 and entry.model_unload(missing):
                gone.append(entry)
        entries[:] = [e for e in entries if e not in gone]
        return gone

    def modules(self) -> dict[str, types.ModuleType]:
        comfy = types.ModuleType("comfy")
        comfy.__path__ = []
        comfy.model_management, comfy.model_patcher = self.mm, self.patcher
        comfy.patcher_extension = self.extension
        comfy.float = types.ModuleType("comfy.float")
        comfy.float.stochastic_rounding = lambda value, dtype, seed: value.to(dtype)
        comfy.utils = types.ModuleType("comfy.utils")
        comfy.utils.ProgressBar = ProgressBar
        return {
            "comfy": comfy,
            "comfy.utils": comfy.utils,
            "comfy.model_management": self.mm,
            "comfy.model_patcher": self.patcher,
            "comfy.patcher_extension": self.extension,
            "comfy.float": comfy.float,
        }

    def servers_modules(self) -> dict[str, types.ModuleType]:
        """Those by which the pack knows that it is inside a ComfyUI; for tests, after the pack is imported."""
        return {"folder_paths": self.folders, "server": self.server}

    def model(self, **sizes: int) -> ModelPatcher:
        """A patcher with a model of random weights, on the host."""
        torch.manual_seed(0)
        return ModelPatcher(Model(**sizes), torch.device("sim", 0), torch.device("cpu"))
