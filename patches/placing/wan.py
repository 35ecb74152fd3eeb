# SPDX-License-Identifier: Apache-2.0
"""The transformer of WanVideoWrapper, its blocks placed by an allocation string while it samples.

That pack loads, moves and frees its transformer itself, in one sampler node with a loop of its own. It is a plain torch
module, so it is placed as the library places any: `distorch.place`. What stands in front of the pack's own moving, for the
time of one sampling:

- `transformer.to(...)`, in every release;
- `load_weights`, `init_blockswap` and `offload_transformer` of the sampler's module, where a release has them: weights are
  read to the host, the blocks are placed in place of its block swap, and unplaced before they go to its offload device.

When the sampling ends, however it ends, every block is on the host again and the devices have their memory back.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import comfy.model_management as mm
import torch

import distorch
from distorch.allocation import Options, make_plan
from distorch.device_table import device_table
from distorch.devices import name_of
from distorch.model_blocks import inventory
from distorch.placed import PlacedModel

from ..seams import devices
from ..settings import reserve_bytes, settings
from .request import Request

log = logging.getLogger("DisTorch")

HOST = torch.device("cpu")
_REQUEST, _PLACED = "_distorch_wan_request", "_distorch_wan_placed"
_SWAP = "block_swap_args"


def ask_for(patcher: Any, request: Request | None) -> None:
    """Notes on the inner model what its transformer is to be placed by; None: the pack does as it always does."""
    setattr(patcher.model, _REQUEST, request)
    if request is None:
        return

    def check(transformer: torch.nn.Module, _inputs: Any) -> None:
        handle.remove()  # said once, or known to be as asked
        if not getattr(transformer, _PLACED, False):
            log.error(
                "%s is not sampled by WanVideoSamplerMultiGPU: its allocation string has no effect",
                request.file,
            )

    handle = patcher.model.diffusion_model.register_forward_pre_hook(check)


def _request(patcher: Any) -> Request | None:
    return getattr(patcher.model, _REQUEST, None)


def _options(patcher: Any) -> dict[str, Any]:
    return dict(patcher.model_options.get("transformer_options", {}))


def block_swap_of(patcher: Any) -> dict[str, Any]:
    """The pack's settings of its block swap; empty where there is none."""
    return dict(_options(patcher).get(_SWAP) or {})


def without_block_swap(patcher: Any) -> Any:
    """The model itself; one that is placed by a string, without the block swap that a later node has given it."""
    if _request(patcher) is None or not block_swap_of(patcher):
        return patcher
    log.warning("%s has no effect: expert_mode_allocations places the blocks", _SWAP)
    clone = patcher.clone()
    clone.model_options["transformer_options"] = {**_options(patcher), _SWAP: None}
    return clone


@contextlib.contextmanager
def devices_of(patcher: Any, compute: str, swap: str | None) -> Iterator[None]:
    """The devices that a transformer remembers: where it computes, and where swapped blocks and caches wait."""
    transformer = patcher.model.diffusion_model
    wanted: dict[str, Any] = {"main_device": torch.device(compute)}
    if swap is not None:
        wanted |= dict.fromkeys(("offload_device", "cache_device"), torch.device(swap))
    if _request(patcher) is not None:  # also what an earlier sampling has left
        # None, in every release: they compare the number of a block by < or by <=.
        wanted |= dict.fromkeys(("blocks_to_swap", "vace_blocks_to_swap"), -1)
    with _having(transformer, {n: v for n, v in wanted.items() if hasattr(transformer, n)}):
        yield


@contextlib.contextmanager
def placed_by_string(patcher: Any, module: str, compute: str) -> Iterator[None]:
    """The sampler, whose code is in `module`, finds the blocks where the string puts them."""
    request = _request(patcher)
    if request is None:
        yield
        return
    if request.compute != compute:
        request = dataclasses.replace(request, compute=compute, spec=request.spec.on(compute))
    blocks = _Blocks(patcher.model.diffusion_model, request)
    own = sys.modules[module]
    fronts = {n: make for n, make in blocks.fronts.items() if callable(getattr(own, n, None))}
    with (
        _having(own, {n: make(getattr(own, n)) for n, make in fronts.items()}),
        _having(blocks.transformer, {"to": blocks.to}),
    ):
        try:
            yield
        finally:
            blocks.unplace()


@contextlib.contextmanager
def _having(owner: Any, values: Mapping[str, Any]) -> Iterator[None]:
    """Attributes of an object, for a while."""
    own = vars(owner)
    before = {name: own[name] for name in values if name in own}
    for name, value in values.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for name in values:
            if name in before:
                setattr(owner, name, before[name])
            elif name in own:
                delattr(owner, name)


class _Blocks:
    """One transformer during one sampling. Knows whether it is placed."""

    def __init__(self, transformer: torch.nn.Module, request: Request) -> None:
        self.transformer, self.request = transformer, request
        self._placed: PlacedModel | None = None
        self.fronts: dict[str, Callable[[Any], Any]] = {
            "load_weights": self._load_weights,
            "init_blockswap": lambda _own: lambda *_a, **_k: self.place(),
            "offload_transformer": self._offload,
        }

    def to(self, *args: Any, **kwargs: Any) -> torch.nn.Module:
        """`transformer.to`: to the compute device means to be placed."""
        device, *_ = torch._C._nn._parse_to(*args, **kwargs)
        if device is not None and name_of(device) == self.request.compute:
            self.place()
            return self.transformer
        self.unplace()
        return type(self.transformer).to(self.transformer, *args, **kwargs)

    def _load_weights(self, own: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(own)
        def load(*args: Any, **kwargs: Any) -> Any:
            self.unplace()
            call = inspect.signature(own).bind(*args, **kwargs)
            call.arguments |= {"transformer_load_device": HOST, _SWAP: None}
            return own(*call.args, **call.kwargs)

        return load

    def _offload(self, own: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(own)
        def offload(*args: Any, **kwargs: Any) -> Any:
            self.unplace()
            return own(*args, **kwargs)

        return offload

    def place(self) -> None:
        """Brings the blocks to where the string puts them; a second call does nothing."""
        if self._placed is not None:
            return
        request, blocks = self.request, inventory(self.transformer)
        planned, options = (
            blocks.allocation_blocks(),
            Options(strict=settings["strict"], slots=None),
        )

        def plan(*empty: str) -> Any:
            table = device_table(
                request.compute, request.spec, reserve=reserve_bytes(), empty=("cpu", *empty)
            )
            return make_plan(request.spec, planned, table, request.compute, options)

        _make_room(plan(*devices.computing()), request.compute)
        made = plan()
        placed = distorch.place(self.transformer, made, compute=request.compute, blocks=blocks)
        try:
            placed.stream(modes={d: request.mode(d, m) for d, m in made.modes.items()})
        except BaseException:
            placed.unload()
            raise
        self._placed = placed
        setattr(self.transformer, _PLACED, True)
        log.info("%s", made.tables())
        log.info("WanVideoWrapper, %s: %s", request.file, placed.report())

    def unplace(self) -> None:
        """Every block is on the host again; nothing is copied."""
        placed, self._placed = self._placed, None
        if placed is not None:
            setattr(self.transformer, _PLACED, False)
            placed.unload()


def _make_room(plan: Any, compute: str) -> None:
    """Asks the core to free what the plan wants of each device that is the core's to free."""
    for device, size in plan.totals.items():
        if size and device != "cpu" and devices.is_own(device):
            working = mm.minimum_inference_memory() if device == compute else 0
            mm.free_memory(size + plan.staging.get(device, 0) + working, torch.device(device))
