# SPDX-License-Identifier: Apache-2.0
# Written by tools/make_stub.py.
"""
DisTorch's C++ core: everything that needs no tensors. Use it through the package `distorch`.
"""

from __future__ import annotations

import collections.abc
import typing

class Block:
    """
    The unit of placement: a module with its own parameters.
    """
    def __init__(
        self,
        name: str,
        bytes: int,
        group: str = "",
        pinned: str = "",
        tied: str = "",
        patched: bool = False,
        layer_type: str = "",
        cost: int = 0,
    ) -> None: ...
    def __repr__(self) -> str: ...
    @property
    def bytes(self) -> int: ...
    @property
    def cost(self) -> int: ...
    @property
    def group(self) -> str: ...
    @property
    def layer_type(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def patched(self) -> bool: ...
    @property
    def pinned(self) -> str: ...
    @property
    def tied(self) -> str: ...

class Device:
    """
    A row of the table of devices.
    """
    def __init__(
        self,
        device: str,
        total: int | None,
        free: int | None,
        reserve: int = 0,
        link_gbps: float = 0.0,
    ) -> None:
        """
        None stands for memory that nobody knows.
        """
    def __repr__(self) -> str: ...
    @property
    def device(self) -> str: ...
    @property
    def free(self) -> int | None: ...
    @property
    def link_gbps(self) -> float: ...
    @property
    def reserve(self) -> int: ...
    @property
    def total(self) -> int | None: ...

class Options:
    """
    How to plan.
    """
    def __init__(self, order: str = "auto", strict: bool = False, slots: int | None = 0) -> None:
        """
        `slots`: staging slots at most; 0: nothing is streamed, None: as many as the links can make use of.
        """
    @property
    def strict(self) -> bool: ...

class Spec:
    """
    What an allocation string asks for.
    """
    @staticmethod
    def virtual_vram(compute: str, bytes: int, donors: collections.abc.Sequence[str]) -> Spec:
        """
        At most so many bytes leave the compute device.
        """
    @staticmethod
    def whole(compute: str) -> Spec:
        """
        The whole model on one device.
        """
    def __eq__(self, other: object) -> bool: ...
    def __hash__(self) -> int: ...
    def __repr__(self) -> str: ...
    def __str__(self) -> str: ...
    def on(self, compute: str) -> Spec:
        """
        The same, computed on this device.
        """
    def without(self, devices: collections.abc.Sequence[str]) -> Spec:
        """
        The same where these devices are not there: see allocation/spec.h.
        """
    @property
    def compute(self) -> str:
        """
        The compute device that the string names, or ''.
        """
    @property
    def devices(self) -> list[str]:
        """
        Every device it names, once, in its order.
        """
    @property
    def uses_every_device(self) -> bool:
        """
        Whether a plan may use devices it does not name.
        """

class ParseError:
    """
    Where a string went wrong.
    """
    @property
    def caret(self) -> str: ...
    @property
    def expected(self) -> str: ...
    @property
    def fragment(self) -> str: ...
    @property
    def message(self) -> str: ...
    @property
    def offset(self) -> int:
        """
        In bytes of UTF-8.
        """
    @property
    def problem(self) -> str: ...

class NvmlDevice:
    cut: bool
    name: str
    problem: str
    uuid: str
    def __init__(self) -> None: ...
    @property
    def free(self) -> int | None: ...
    @free.setter
    def free(self, arg0: int | None) -> None: ...
    @property
    def index(self) -> int: ...
    @index.setter
    def index(self, arg0: int) -> None: ...
    @property
    def nvlinks(self) -> int: ...
    @nvlinks.setter
    def nvlinks(self, arg0: int) -> None: ...
    @property
    def pcie_current_generation(self) -> int: ...
    @pcie_current_generation.setter
    def pcie_current_generation(self, arg0: int) -> None: ...
    @property
    def pcie_current_width(self) -> int: ...
    @pcie_current_width.setter
    def pcie_current_width(self, arg0: int) -> None: ...
    @property
    def pcie_generation(self) -> int: ...
    @pcie_generation.setter
    def pcie_generation(self, arg0: int) -> None: ...
    @property
    def pcie_width(self) -> int: ...
    @pcie_width.setter
    def pcie_width(self, arg0: int) -> None: ...
    @property
    def slice(self) -> int: ...
    @slice.setter
    def slice(self, arg0: int) -> None: ...
    @property
    def total(self) -> int | None: ...
    @total.setter
    def total(self, arg0: int | None) -> None: ...
    @property
    def used(self) -> int | None: ...
    @used.setter
    def used(self, arg0: int | None) -> None: ...

class TransferRouter:
    def __init__(
        self,
        runtime: str = "",
        driver: str = "",
        sample_bytes: int = 67108864,
        chunk: int = 33554432,
        hip: bool = False,
        patience: float = 600.0,
    ) -> None:
        """
        patience: seconds that the host waits at most for a device
        """
    def adopt(self, source: int, target: int, way: str, gbps: float) -> None: ...
    def choose(self, source: int, target: int) -> dict[str, typing.Any]: ...
    def copy(
        self,
        target: int,
        target_device: int,
        source: int,
        source_device: int,
        bytes: int,
        stream_device: int,
        stream: int,
    ) -> str: ...
    def device_count(self) -> int: ...
    def measure(
        self, source: int, target: int, way: str, pinned: bool, bytes: int, repeats: int
    ) -> float: ...

class ModeChoice:
    """
    How each donor is used, and what a step then takes.
    """
    @property
    def compute_seconds(self) -> float:
        """
        Of a step, what computing takes alone.
        """
    @property
    def lines(self) -> tuple[str, ...]:
        """
        A reason for each donor.
        """
    @property
    def modes(self) -> dict[str, str]:
        """
        'stream' or 'migrate' by donor.
        """
    @property
    def step_seconds(self) -> float:
        """
        Predicted; 0.0 where a donor's link is not known.
        """

class GroupProfile:
    @property
    def calls(self) -> int: ...
    @property
    def elsewhere(self) -> bool: ...
    @property
    def input_bytes(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def output_bytes(self) -> int: ...
    @property
    def seconds(self) -> float: ...
    @property
    def visits(self) -> int: ...

class StepProfile:
    """
    What the first steps teach of layer groups.
    """
    def __init__(self, router: TransferRouter | None = None) -> None: ...
    def begin_step(self) -> bool:
        """
        A step begins; returns whether it is measured.
        """
    def enter(
        self,
        name: str,
        input_bytes: int,
        device: int = -1,
        stream: int = 0,
        elsewhere: bool = False,
    ) -> None: ...
    def forget(self) -> None: ...
    def leave(self, name: str, output_bytes: int) -> None: ...
    @property
    def complete(self) -> bool: ...
    @property
    def group_seconds(self) -> dict[str, float]: ...
    @property
    def groups(self) -> list[GroupProfile]: ...
    @property
    def often(self) -> list[str]: ...
    @property
    def step_seconds(self) -> float: ...

class PlanFault:
    """
    Why there is no plan.
    """
    @property
    def candidates(self) -> list[tuple[str, int, int, int]]: ...
    @property
    def does_not_fit(self) -> bool: ...
    @property
    def message(self) -> str: ...
    @property
    def problem(self) -> str: ...
    @property
    def remedy(self) -> str: ...

class Plan:
    """
    A place for every block.
    """
    def check_invariants(self) -> None:
        """
        Raises RuntimeError naming the first broken promise.
        """
    def predict_step(self, compute_seconds: float, activations: int, slots: int = 2) -> ModeChoice:
        """
        How each donor is best used, and what a step then takes; its blocks need layer groups. compute_seconds: with all weights on the compute device; activations: bytes that one layer group takes, and as many that it gives.
        """
    def tables(self) -> str: ...
    def to_json(self) -> str: ...
    def to_stable_json(self) -> str: ...
    @property
    def blocks(self) -> list[Block]: ...
    @property
    def caps(self) -> dict[str, int]: ...
    @property
    def compute(self) -> str: ...
    @property
    def model_bytes(self) -> int: ...
    @property
    def modes(self) -> dict[str, str]:
        """
        'auto', 'stream' or 'migrate' by device, as the string says.
        """
    @property
    def notes(self) -> list[str]: ...
    @property
    def placement(self) -> dict[str, str]: ...
    @property
    def reasons(self) -> dict[str, str]: ...
    @property
    def slot_bytes(self) -> int: ...
    @property
    def slots(self) -> int:
        """
        Staging slots on the compute device.
        """
    @property
    def spec(self) -> Spec: ...
    @property
    def staging(self) -> dict[str, int]:
        """
        Bytes by device that streaming takes beside the weights.
        """
    @property
    def stretches(self) -> list[tuple[str, int, int, str, str]]: ...
    @property
    def totals(self) -> dict[str, int]: ...

class Placement:
    """
    Where the blocks of one model lie; see distorch/placement/placement.h.
    """
    def __init__(
        self,
        devices: collections.abc.Sequence[str],
        compute: int,
        blocks: collections.abc.Sequence[tuple[str, str, bool, bool]],
        tensors: collections.abc.Sequence[
            tuple[int, int, int, collections.abc.Sequence[int], bool, bool]
        ],
    ) -> None: ...
    def assign(self, device_of_block: collections.abc.Sequence[int]) -> None: ...
    def bring(
        self,
        table: typing.Any,
        patched: collections.abc.Sequence[bool],
        changed: collections.abc.Sequence[bool],
        give_way: bool = False,
        host_free: int | None = None,
    ) -> None: ...
    def bytes_per_device(self) -> dict[str, int]: ...
    def fit(self, budget: int) -> int: ...
    def give_back(self, block: int) -> None: ...
    def made(self, tensor: int) -> bool: ...
    def patched(self, tensor: int) -> bool: ...
    def release(self, table: typing.Any) -> None: ...
    def spill(self, table: typing.Any, device: int, wanted: int) -> int: ...
    def spilled(self, block: int) -> bool: ...
    def target(self, block: int) -> int: ...
    def verify(self, table: typing.Any) -> None: ...
    @property
    def factor_bytes(self) -> int: ...
    @property
    def transfers(self) -> dict[tuple[str, str], int]: ...

class TensorSwap:
    """
    The tensors of a layer group in their modules' tables, and those of each slot.
    """
    def __init__(
        self,
        places: collections.abc.Sequence[tuple[dict[str, typing.Any], str, typing.Any]],
        in_slots: collections.abc.Sequence[collections.abc.Sequence[typing.Any]],
    ) -> None: ...
    def enter(self, slot: int) -> bool:
        """
        Hang a slot's tensors in; False, with nothing changed, if a table holds another tensor than the stored one.
        """
    def leave(self) -> None:
        """
        Hang the stored tensors in again.
        """

class TensorVersions:
    """
    Tells whether tensors were written to; those of inference mode do not count.
    """
    def __init__(
        self, groups: collections.abc.Sequence[collections.abc.Sequence[typing.Any]]
    ) -> None: ...
    def changed(self, groups: collections.abc.Sequence[int]) -> bool:
        """
        Whether a tensor of these groups was written to since they were asked last.
        """

class StreamScheduler:
    def __init__(
        self,
        start_copy: collections.abc.Callable[[int, int], typing.Any],
        await_copy: collections.abc.Callable[[int], typing.Any],
        mark_used: collections.abc.Callable[[int], typing.Any],
        drain: collections.abc.Callable[[], typing.Any],
        groups: int,
        slots: int,
    ) -> None: ...
    def acquire(self, group: int) -> int: ...
    def begin_step(self) -> None: ...
    def enter(self, group: int, swap: TensorSwap) -> bool: ...
    def in_slots(self) -> list[int]: ...
    def leave(self, group: int, swap: TensorSwap) -> None: ...
    def release(self, group: int) -> None: ...
    def reset(self) -> None: ...
    @property
    def counters(self) -> dict[str, int]: ...
    @property
    def order(self) -> list[int]: ...

class PinnedSlab:
    """
    Host memory that is pinned, in part or whole.
    """
    @property
    def segments(self) -> list[tuple[int, int]]:
        """
        (address, bytes) of each registration, rising
        """

class HostPinner:
    def __init__(
        self,
        router: TransferRouter,
        device: int,
        budget: typing.Any,
        cap: int = 9223372036854775807,
        segment: int = 268435456,
    ) -> None: ...
    def keep_only(self, addresses: collections.abc.Sequence[int]) -> None: ...
    def pin(
        self, address: int, bytes: int, borders: collections.abc.Sequence[int], owner: typing.Any
    ) -> PinnedSlab: ...
    @property
    def pinned(self) -> int: ...
    @property
    def trouble(self) -> str: ...

class ByteStreamer:
    """
    Streams groups of bytes into slots of a CUDA device; for each, one call before it computes and one after it.
    """
    def __init__(
        self,
        router: TransferRouter,
        device: int,
        slots: collections.abc.Sequence[int],
        groups: collections.abc.Sequence[
            collections.abc.Sequence[tuple[int, int, int, int, PinnedSlab | None]]
        ],
        owner: typing.Any,
        compute: int,
        chunk: int = 33554432,
    ) -> None: ...
    def begin_step(self) -> None: ...
    def close(self) -> None: ...
    def copies(self, group: int) -> int: ...
    def enter(self, group: int, compute: int, swap: TensorSwap) -> bool:
        """
        Hang the group's tensors of its slot in; False, with nothing changed, if a table holds another tensor than the stored one.
        """
    def in_slots(self) -> list[int]: ...
    def leave(self, group: int, compute: int, swap: TensorSwap) -> None: ...
    def reset(self) -> None: ...
    @property
    def bytes_copied(self) -> int: ...
    @property
    def counters(self) -> dict[str, int]: ...
    @property
    def order(self) -> list[int]: ...
    @property
    def trouble(self) -> str: ...

class UnloadedModel:
    @property
    def devices(self) -> list[str]: ...
    @property
    def name(self) -> str: ...

class StayingModel:
    @property
    def kept(self) -> bool: ...
    @property
    def loaded(self) -> bool: ...
    @property
    def name(self) -> str: ...

class DeviceReport:
    @property
    def after(self) -> int: ...
    @property
    def before(self) -> int: ...
    @property
    def device(self) -> str: ...
    @property
    def freed(self) -> int: ...
    @property
    def holders(self) -> list[str]: ...

class UnloadReport:
    def __str__(self) -> str: ...
    @property
    def devices(self) -> list[DeviceReport]: ...
    @property
    def failures(self) -> list[str]: ...
    @property
    def stay(self) -> list[StayingModel]: ...
    @property
    def unloaded(self) -> list[UnloadedModel]: ...

class CacheReport:
    @property
    def after(self) -> dict[str, int]: ...
    @property
    def before(self) -> dict[str, int]: ...
    @property
    def failures(self) -> list[str]: ...
    @property
    def freed(self) -> dict[str, int]: ...

class ManagedModels:
    def __init__(
        self,
        in_use: collections.abc.Callable[[list[str]], dict[str, int]],
        clear: collections.abc.Callable[[list[str]], typing.Any],
    ) -> None: ...
    def add(self, model: typing.Any) -> int: ...
    def remove(self, handle: int) -> bool: ...
    def unload(
        self,
        of: str,
        handles: collections.abc.Sequence[int] = (),
        device: str = "",
        let_go: bool = False,
    ) -> UnloadReport: ...
    @property
    def handles(self) -> list[int]: ...

class CacheClearer:
    def __init__(
        self,
        in_use: collections.abc.Callable[[], list[str]],
        look: collections.abc.Callable[[str], tuple[int, int] | None],
        empty: collections.abc.Callable[[list[str]], typing.Any],
    ) -> None: ...
    def clear(
        self, devices: collections.abc.Sequence[str] | None = None, changed: bool = False
    ) -> CacheReport: ...

class LogStats:
    def __init__(self) -> None: ...
    def devices(
        self,
    ) -> list[
        tuple[
            str,
            int,
            float,
            float,
            float,
            float,
            float,
            float,
            float,
            bool,
            float,
            int,
            float,
            float,
        ]
    ]: ...
    def end(self) -> None: ...
    def failures(self) -> dict[str, int]: ...
    def feed(self, piece: bytes) -> None: ...
    def first_bad_lines(self) -> list[tuple[str, int, str, str]]: ...
    def models(self) -> list[tuple[str, str, int, float, dict[str, float]]]: ...
    def nodes(self) -> list[tuple[str, str, int, float, dict[str, float]]]: ...
    def read_file(self, path: str) -> tuple[str, bool] | None: ...
    def start(self, name: str) -> None: ...
    @property
    def bad_lines(self) -> int: ...
    @property
    def clock_changes(self) -> int: ...
    @property
    def dropped(self) -> int: ...
    @property
    def lines(self) -> int: ...

class MemorySampler:
    """
    Samples devices in a thread of its own; see distorch/telemetry/sampler.h.
    """
    def __init__(self, interval: float, capacity: int) -> None: ...
    def add_function(self, device: str, address: int, index: int) -> None:
        """
        `address` of a ReadDeviceFunction.
        """
    def add_host(self, device: str) -> None: ...
    def add_nvml(self, device: str, index: int, slice: int = -1) -> bool:
        """
        False without NVML.
        """
    def add_pushed(self, device: str) -> None: ...
    def close_window(self, window: int) -> dict[str, int]: ...
    def open_window(self) -> int: ...
    def poll(self) -> None: ...
    def push(
        self,
        device: str,
        *,
        total: int,
        used: int,
        allocated: int,
        reserved: int,
        reserved_peak: int,
    ) -> None: ...
    def samples(self, since: float) -> list[dict[str, typing.Any]]: ...
    def start(self) -> None: ...
    def stop(self) -> None: ...
    def take_sample(self) -> None: ...
    def used(self) -> dict[str, int]: ...
    def window_peaks(self, window: int) -> dict[str, int]: ...
    @property
    def cpu_seconds(self) -> float: ...
    @property
    def devices(self) -> list[str]: ...
    @property
    def running(self) -> bool: ...

class ModuleScanner:
    """
    Weak registry of the live modules and their memory; not thread-safe except for hook().
    """
    def __init__(
        self,
        module_type: typing.Any,
        plain_types: tuple,
        identity: tuple,
        deep: tuple,
        describe: typing.Any,
        expand: typing.Any,
    ) -> None: ...
    def __len__(self) -> int: ...
    def add(self, module: typing.Any) -> bool:
        """
        Whether the module was unknown until now.
        """
    def hook(self) -> collections.abc.Callable:
        """
        A function for torch's global registration hooks.
        """
    def models(
        self,
    ) -> list[
        tuple[int, int, float, int, int, int, str, dict[str, int], dict[str, int], list[int]]
    ]:
        """
        (id, serial, seen, layers, modules, parameters, dtype, bytes, shared bytes, ids it shares with) for each model, oldest first.
        """
    def module(self, id: int) -> typing.Any:
        """
        The module, or None when it died.
        """
    def module_by_serial(self, serial: int) -> typing.Any:
        """
        The model with this serial as models() gave it, or None.
        """
    def seen(self, module: typing.Any) -> float:
        """
        When the module was first seen, in seconds since 1970; 0: never.
        """
    def verify(self, deep: bool = False) -> int:
        """
        Compares all modules with what is known; returns the differences.
        """
    def walk_everything(self) -> int:
        """
        Adds the modules among all objects of the garbage collector.
        """
    @property
    def generation(self) -> int:
        """
        Changes whenever models() does.
        """

def blocks_of_tensors(tensors: collections.abc.Sequence[tuple[str, int]]) -> list[Block]: ...
def classify_model(classes: collections.abc.Sequence[str], file: str) -> str:
    """
    The kind of model (see grouping.h).
    """

def decide_modes(
    profile: StepProfile,
    groups: collections.abc.Sequence[tuple[str, str, int]],
    donors: collections.abc.Sequence[tuple[str, float, str, str]],
    compute: str,
    model: str,
    slots: int,
) -> ModeChoice:
    """
    Groups are (name, donor, bytes), donors (device, GB/s, what the vendor calls it, wanted mode).
    """

def display_model(name: str, type: str, bytes: int, layers: int) -> str:
    """
    'NAME (TYPE, SIZE, N layers)'.
    """

def format_bytes(bytes: int) -> str: ...
def freed_bytes(
    before: collections.abc.Mapping[str, int], after: collections.abc.Mapping[str, int]
) -> dict[str, int]: ...
def group_names(names: collections.abc.Sequence[str]) -> list[str]: ...
def host_memory() -> tuple[int, int]: ...
def lay_out(
    tensors: collections.abc.Sequence[collections.abc.Sequence[int]],
) -> tuple[list[list[int]], int]:
    """
    Where the parts of tensors, given by their bytes, begin in a slab, and its bytes.
    """

def nvml_activity(index: int, slice: int = -1) -> dict[str, typing.Any]: ...
def nvml_devices() -> tuple[list[NvmlDevice], str, str]: ...
def nvml_nvlink_pairs() -> list[tuple[int, int]]: ...
def parse_spec(
    text: str, devices: collections.abc.Sequence[str], kinds: collections.abc.Sequence[str]
) -> Spec | ParseError: ...
def plan_blocks(
    spec: Spec,
    blocks: collections.abc.Sequence[Block],
    devices: collections.abc.Sequence[Device],
    compute: str,
    options: Options,
) -> Plan | PlanFault: ...
def read_safetensors_header(
    path: str,
) -> (
    tuple[list[tuple[str, str, tuple[int, ...], int, int]], dict[str, str], int]
    | tuple[None, str, bool]
): ...
def text_encoder_head(block: str) -> str: ...
def torch_kind(kind: str) -> str: ...
def visible_nvml(devices: collections.abc.Sequence[NvmlDevice]) -> list[int]: ...

HOST_PAGE: int
SLAB_ALIGNMENT: int
__version__: str
built_with_torch: str
compiler: str
