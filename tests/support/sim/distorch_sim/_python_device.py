# SPDX-License-Identifier: Apache-2.0
"""The device type `sim` in Python, for a torch whose C++ interface cannot be compiled against (Windows' is MSVC's).

As sim_operators.cc: allocation, copies and views are written here; every other operator runs as the CPU's own kernel on
the same memory. Memory comes from `_sim` by DLPack; the rest is torch's interface for backends in Python, which is
experimental and knows of less: storages cannot be resized, nothing is pinned, `torch.accelerator` sees one device,
`torch.autocast` casts nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from distorch_sim import _sim
from distorch_sim._backend import _index
from torch.utils._pytree import tree_map

_KEY = "PrivateUse1"
_CPU_KEYS = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)


def _on_sim(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.device.type == "sim"


def _place(tensor: torch.Tensor) -> int:
    return tensor.device.index if _on_sim(tensor) else int(_sim.HOST)


def _on_host(tensor: torch.Tensor) -> torch.Tensor:
    """Return the same bytes, shape and strides as a CPU tensor, which keeps them."""
    if not _on_sim(tensor):
        return tensor
    storage = tensor.untyped_storage()
    with torch._C._AutoDispatchBelowADInplaceOrView(), torch.inference_mode(tensor.is_inference()):
        flat = torch.from_dlpack(_sim.on_host(storage.data_ptr(), storage.nbytes(), storage))
        view = torch.empty(0, dtype=tensor.dtype).set_(
            flat.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride()
        )
        if tensor.is_conj():
            view = view.conj()
        return view._neg_view() if tensor.is_neg() else view


def _like(meta: torch.Tensor, device: torch.device | None) -> torch.Tensor:
    """Return new memory for a tensor of that shape and dtype."""
    with torch._C._AutoDispatchBelowADInplaceOrView():
        flat = torch.from_dlpack(_sim.new_memory(_index(device), meta.untyped_storage().nbytes()))
        return flat.view(meta.dtype).as_strided(meta.shape, meta.stride())


# ---- what a backend has to bring itself -----------------------------------


def _empty(
    size: Sequence[int],
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
    memory_format: torch.memory_format | None = None,
    **_: Any,
) -> torch.Tensor:
    return _like(torch.empty(size, dtype=dtype, device="meta", memory_format=memory_format), device)


def _empty_strided(
    size: Sequence[int],
    stride: Sequence[int],
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
    **_: Any,
) -> torch.Tensor:
    return _like(torch.empty_strided(size, stride, dtype=dtype, device="meta"), device)


def _copy_from(
    source: torch.Tensor, target: torch.Tensor, non_blocking: bool = False
) -> torch.Tensor:
    """Bytes that cross are those of the source, before any conversion of dtype."""
    _sim.count_copy(_place(source), _place(target), source.nbytes)
    _on_host(target).copy_(_on_host(source))
    return target


def _copy_from_and_resize(source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return _copy_from(source, target.resize_(source.shape))


def _local_scalar(tensor: torch.Tensor) -> object:
    return _on_host(tensor).item()


def _histc(tensor: torch.Tensor, bins: int = 100, min: float = 0, max: float = 0) -> torch.Tensor:
    """Integers as well, which GPUs count and the CPU does not."""
    numbers = _on_host(tensor)
    counts = torch.histc(
        numbers if numbers.is_floating_point() else numbers.double(), bins, min, max
    )
    return _raised(counts.to(tensor.dtype), tensor.device)


def _resize(
    tensor: torch.Tensor,
    size: Sequence[int],
    *,
    memory_format: torch.memory_format | None = None,
) -> torch.Tensor:
    """Within its memory, or into new memory: these storages cannot grow."""
    meta = torch.empty(size, dtype=tensor.dtype, device="meta", memory_format=memory_format)
    storage, offset = tensor.untyped_storage(), tensor.storage_offset()
    if storage.nbytes() < meta.untyped_storage().nbytes() + offset * tensor.element_size():
        new = _like(meta, tensor.device)
        _on_host(new).view(-1)[: tensor.numel()].copy_(_on_host(tensor).reshape(-1))
        storage, offset = new.untyped_storage(), 0
    return tensor.set_(storage, offset, meta.shape, meta.stride())


def _same_kind(tensor: torch.Tensor, other: torch.Tensor) -> bool:
    """Memory of either kind may be given to a tensor of the other, as between the host and CUDA."""
    return tensor.layout == other.layout == torch.strided and (
        tensor.is_inference() == other.is_inference()
    )


def _set_storage(result: torch.Tensor, source: torch.UntypedStorage) -> torch.Tensor:
    return result.set_(source, 0, (source.nbytes() // result.element_size(),), (1,))


# ---- everything else -------------------------------------------------------


def _raised(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return what a CPU kernel made, on the device."""
    result = _empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
    _on_host(result).copy_(tensor)
    return result


class _CpuCall:
    """One call of a CPU kernel over device memory."""

    def __init__(self, op: Any) -> None:
        self.op = op
        self.name = op._schema.name
        self.device: torch.device | None = None
        self.place: torch.device | None = None  # of the operands seen so far
        self.views: dict[int, torch.Tensor] = {}  # by id of the operand: one given twice stays one
        self.owners: dict[int, torch.Tensor] = {}  # by address of the storage

    def run(self, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        written = []  # (original, lowered)

        def lower(argument: Any, value: Any) -> Any:
            if "Optional[Tensor]" in str(argument.type) and isinstance(value, list | tuple):
                # Indices may be on the host, as on real accelerators.
                return [self._lower(one) if _on_sim(one) else one for one in value]
            if argument.alias_info is None or not argument.alias_info.is_write:
                return tree_map(self._lower, value)
            lowered = tree_map(self._lower_for_writing, value)
            written.append((argument.alias_info.before_set, value, lowered))
            return lowered

        arguments = self.op._schema.arguments
        named = {argument.name: argument for argument in arguments}
        lowered_args = [
            lower(argument, value) for argument, value in zip(arguments, args, strict=False)
        ]
        lowered_kwargs = {name: lower(named[name], value) for name, value in kwargs.items()}
        result = self._on_cpu(lowered_args, lowered_kwargs)
        for _, original, lowered in written:
            if _on_sim(original) and original.shape != lowered.shape:
                _on_host(original.resize_(lowered.shape)).copy_(lowered)
        returns = self.op._schema.returns
        if len(returns) != 1:
            result = [
                self._raise(value, kind, written)
                for value, kind in zip(result, returns, strict=True)
            ]
            return tuple(result) if returns else None
        return self._raise(result, returns[0], written)

    def _on_cpu(self, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """As if the caller had called with CPU tensors: an autograd kernel that led here has switched off what would
        note of which tensor a view is."""
        keys = torch._C.DispatchKey
        excluded = torch._C._dispatch_tls_local_exclude_set().remove(keys.ADInplaceOrView)
        if not torch.is_inference_mode_enabled():
            for key in (keys.AutogradCPU, keys.AutogradOther, keys.AutogradPrivateUse1):
                excluded = excluded.remove(key)
        included = torch._C._dispatch_tls_local_include_set()
        with torch._C._ForceDispatchKeyGuard(included, excluded):
            return self.op(*args, **kwargs)

    def _require_one_place(self, tensor: torch.Tensor) -> None:
        """Real accelerators refuse operands of different devices; a CPU kernel would read them all, and a weight left
        behind would pass unseen. A CPU tensor without dimensions is a number to every device."""
        if not _on_sim(tensor) and tensor.dim() == 0:
            return
        self.place = self.place or tensor.device
        many = self.name.startswith("aten::_foreach_") or self.name in (
            "aten::lstm", "aten::gru", "aten::rnn_tanh", "aten::rnn_relu"
        )  # fmt: skip
        if self.place != tensor.device and not many:
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, "
                f"{self.place} and {tensor.device} (aten operator {self.name})"
            )

    def _lower(self, value: Any, written: bool = False) -> Any:
        if isinstance(value, torch.device) and value.type == "sim":
            self.device = self.device or torch.device("sim", _index(value))
            return torch.device("cpu")
        if not isinstance(value, torch.Tensor):
            return value
        self._require_one_place(value)
        if not _on_sim(value):
            return value
        self.device = self.device or value.device
        if id(value) in self.views:
            return self.views[id(value)]
        view = _on_host(value)
        # The view says of gradients what the tensor says: composite operators ask.
        if not written and value.requires_grad:
            view.requires_grad_()
        self.views[id(value)] = view
        self.owners[view.untyped_storage().data_ptr()] = value
        return view

    def _lower_for_writing(self, value: Any) -> Any:
        """An empty `out=` tensor is there to be given a size, which memory of another owner cannot be."""
        if not _on_sim(value) or value.numel() != 0:
            return self._lower(value, written=True)
        self._require_one_place(value)
        self.device = self.device or value.device
        return torch.empty(value.shape, dtype=value.dtype)

    def _raise(self, value: Any, kind: Any, written: Sequence[tuple[Any, Any, Any]]) -> Any:
        if kind.alias_info is not None and kind.alias_info.is_write:
            for before, original, _ in written:
                if before == kind.alias_info.before_set:
                    return original
        return tree_map(self._raise_one, value)

    def _raise_one(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or self.device is None or _on_sim(value):
            return value
        if value.layout != torch.strided or value.is_quantized or value.is_nested:
            raise RuntimeError(
                f"sim: only dense tensors are simulated, aten operator {self.name} made another kind"
            )
        if value.device.type != "cpu":
            return value
        owner = self.owners.get(value.untyped_storage().data_ptr()) if value.numel() else None
        if owner is None:
            return _raised(value, self.device)
        if value.dtype != owner.dtype:
            owner = owner.view(value.dtype)
        return owner.as_strided(value.shape, value.stride(), value.storage_offset())


def _on_cpu(op: Any, *args: Any, **kwargs: Any) -> Any:
    return _CpuCall(op).run(args, kwargs)


def _as_on_cpu(op: Any, *args: Any, **kwargs: Any) -> Any:
    """Views: the CPU's kernels for them ask for no kind of memory."""
    return op.redispatch(_CPU_KEYS, *args, **kwargs)


def _runs_whole(name: str, schema: Any) -> bool:
    """As RunsWhole of sim_operators.cc: composite operators that make new tensors from tensors choose their parts as
    for a CPU tensor."""
    if name in ("aten::clone", "aten::_pack_padded_sequence", "aten::_pad_packed_sequence"):
        return False
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    if not (has(name, "CompositeImplicitAutograd") or has(name, "CompositeExplicitAutograd")):
        return False
    if any(a.alias_info is not None or a.name == "device" for a in schema.arguments):
        return False
    return (
        any("Tensor" in str(a.type) for a in schema.arguments)
        and bool(schema.returns)
        and "Tensor" in str(schema.returns[0].type)
    )


_OWN: dict[str, Callable[..., Any]] = {
    "_has_compatible_shallow_copy_type": _same_kind,
    "empty.memory_format": _empty,
    "empty_strided": _empty_strided,
    "_copy_from": _copy_from,
    "_copy_from_and_resize": _copy_from_and_resize,
    "_local_scalar_dense": _local_scalar,
    "histc": _histc,
    "resize_": _resize,
    "set_.source_Storage": _set_storage,
}
_VIEWS = (
    "as_strided", "view", "_reshape_alias", "unfold", "set_.source_Storage_storage_offset"
)  # fmt: skip

_libraries: list[torch.library.Library] = []  # they end with these


def _overload(name: str) -> Any:
    packet, _, overload = name.partition(".")
    return getattr(getattr(torch.ops.aten, packet), overload or "default")


def _make_storage(cls: type, *args: Any, **kwargs: Any) -> torch.UntypedStorage:
    """torch.UntypedStorage(bytes, device="sim:N"), as copies of storages are made; torch knows of no allocator here."""
    device = kwargs.get("device")
    if device is None or torch.device(device).type != "sim":
        return _new_storage(cls, *args, **kwargs)
    return torch.empty(*args, dtype=torch.uint8, device=device).untyped_storage()


_new_storage = torch.UntypedStorage.__new__


class _Generator(torch.Generator):
    """Generators of these devices are the CPU's."""

    def __new__(cls, device: Any = "cpu") -> _Generator:
        on_sim = torch.device(device).type == "sim"
        return super().__new__(cls, device="cpu" if on_sim else device)


class _Guard(torch._C._acc.DeviceGuard):
    def type_(self) -> Any:
        return torch._C._autograd.DeviceType.PrivateUse1


class _Hooks(torch._C._acc.PrivateUse1Hooks):
    def is_available(self) -> bool:
        return True

    def has_primary_context(self, device: int) -> bool:
        return True

    def is_built(self) -> bool:
        return True


def register() -> None:
    """Give torch the hooks and the operators. After the name `sim`; once a process."""
    torch._C._acc.register_python_privateuseone_hook(_Hooks())
    torch._C._acc.register_python_privateuseone_device_guard(_Guard())
    torch.UntypedStorage.__new__ = _make_storage
    torch.Generator = _Generator
    aten = torch.library.Library("aten", "IMPL")
    for name, kernel in _OWN.items():
        aten.impl(name, kernel, _KEY)
    for name in _VIEWS:
        aten.impl(name, partial(_as_on_cpu, _overload(name)), _KEY)
    own = {f"aten::{name}" for name in (*_OWN, *_VIEWS)}
    for name in torch._C._dispatch_get_all_op_names():
        if not name.startswith("aten::") or name in own:
            continue
        short = name.removeprefix("aten::")
        packet, _, overload = short.partition(".")
        if _runs_whole(name, torch._C._get_schema(f"aten::{packet}", overload)):
            aten.impl(short, partial(_on_cpu, _overload(short)), _KEY)
    everything = torch.library.Library("_", "IMPL")
    everything.fallback(_on_cpu, _KEY)
    everything.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    _libraries.extend((aten, everything))
