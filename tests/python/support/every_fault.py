# SPDX-License-Identifier: Apache-2.0
"""Every operation with its k-th call to a device or the system failing, k = 1, 2, …, once and from then on.

Behind each kind of call stands one seam: the simulated devices' allocator and copies, the double of CUDA's entry points,
torch's device module, and (where tests/support/faults was loaded before the C library) the system's files and threads.
After each fault the model must be as found, no byte may be left anywhere, and the same operation must then succeed.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import json
import pathlib
import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import distorch_sim
import pytest
import torch
from fake_cuda import FakeCuda, streamed_by_the_core
from placing import Model, State, lora, plan_of, some_patches, spread

import distorch
from distorch import caches, model_files
from distorch.memory import Scanner
from distorch.memory.sampler import Sampler
from distorch.model_blocks import inventory

LONGEST = 2.0  # seconds that an operation may take to tell of a fault
# What a fault may be told by; anything else is a mistake of the code on its way out.
TOLD = (RuntimeError, MemoryError, OSError, ValueError)
CUDA_CALLS = {
    "registration": (b"cudaHostRegister",),
    "pinned buffer": (b"cudaHostAlloc",),
    "cuda copy": (b"cudaMemcpyAsync", b"cudaMemcpyPeerAsync"),
    "event": (b"cudaEventCreate", b"cudaEventRecord", b"cudaEventSynchronize"),
    "stream": (b"cudaStreamCreateWithFlags", b"cudaStreamWaitEvent", b"cudaStreamSynchronize"),
    "device lost": (b"",),
}
SYSTEM_CALLS = ("open", "read", "map", "thread")
DEVICE_CALLS = ("empty_cache", "synchronize", "memory_reserved", "memory_allocated", "mem_get_info")


class World:
    """A model and what was made of it."""

    def __init__(self) -> None:
        distorch_sim.install([64 << 20] * 3)
        torch.manual_seed(1)
        self.model = Model().eval()
        self.ids = torch.randint(0, 50, (2, 9), generator=torch.Generator().manual_seed(2))
        self.expected = self.model(self.ids)
        self.found = State.of(self.model)
        self.fake: FakeCuda | None = None
        self.placed: Any = None
        self.executor: Any = None
        self.others: list[Any] = []
        self.folder: pathlib.Path | None = None

    def run(self, times: int = 1) -> None:
        """The model gives what it gave before it was placed."""
        for _ in range(times):
            if not torch.equal(self.model(self.ids).cpu(), self.expected):
                raise AssertionError("another output")

    def close(self) -> None:
        """Give back whatever there is."""
        for other in self.others:
            other.stop()
        self.others.clear()
        if self.executor is not None:
            self.executor.detach()
        if self.placed is not None:
            self.placed.unload()
        self.placed = self.executor = None


def _load(world: World) -> None:
    plan = plan_of(spread(inventory(world.model)))
    world.placed = distorch.place(world.model, plan, compute="sim:0")
    world.run()


def _patched(world: World) -> None:
    world.placed = distorch.place(
        world.model,
        plan_of(spread(inventory(world.model))),
        compute="sim:0",
        patches=some_patches(),
    )


def _patch(world: World) -> None:
    world.placed.repatch({"layers.0.qkv.weight": [lora(96, 32, strength=2.0)]})


def _place(world: World) -> None:
    text = "sim:0,40%;sim:1,30%;cpu,*"
    patches = some_patches()
    world.placed = distorch.place_string(world.model, text, compute="sim:0", patches=patches)


def _distribute(world: World, text: str = "sim:0,30%;sim:1,30%;cpu,*") -> None:
    world.placed = distorch.place_string(world.model, text, compute="sim:0")


def _stream(world: World) -> None:
    # On CUDA some of the host's slabs stay pageable: a thread brings them.
    cap = 40960 if world.fake else None
    world.executor = distorch.StreamedExecutor(world.placed, pin_cap=cap)
    world.run(3)


def _migrated(world: World) -> None:
    _distribute(world, "sim:0,20%;sim:1,40%,mode=migrate;sim:2,40%,mode=migrate")


def _written(world: World) -> None:
    _load(world)
    with torch.no_grad():
        for layer in world.model.layers:
            layer.shift.add_(0)  # what was written is copied back


def _unload(world: World) -> None:
    world.placed.unload()


def _clear(world: World) -> None:
    torch.zeros(1024, device="sim:0")
    report = caches.clear_caches()
    if report.failures:
        raise RuntimeError(report.failures[0])


def _scan(world: World) -> None:
    scanner = Scanner()
    scanner.install_hooks()
    world.others.append(scanner)
    scanner.note_loaded(world.model, name="model")
    scanner.start()
    if not any(row.name == "model" for row in scanner.rows(deep=True)):
        raise AssertionError("the scan misses the model")


def _sample(world: World) -> None:
    sampler = Sampler()
    world.others.append(sampler)
    sampler.start()
    sampler.take_sample()
    if not sampler.samples(0):
        raise AssertionError("no sample")


def _write_files(world: World) -> None:
    world.folder = pathlib.Path(tempfile.mkdtemp(prefix="distorch-faults-"))
    header = json.dumps({"a.weight": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}})
    (world.folder / "a.safetensors").write_bytes(
        struct.pack("<Q", len(header)) + header.encode() + bytes(8)
    )
    name = b"a.weight"
    (world.folder / "a.gguf").write_bytes(
        b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + struct.pack("<Q", len(name)) + name
        + struct.pack("<IQIQ", 1, 2, 0, 0) + bytes(64)
    )  # fmt: skip
    index = {"weight_map": {"a.weight": "a.safetensors"}}
    (world.folder / "a.safetensors.index.json").write_text(json.dumps(index))
    torch.save({"a.weight": torch.zeros(2)}, world.folder / "a.pt")


def _read_files(world: World) -> None:
    assert world.folder is not None
    for path in sorted(world.folder.iterdir()):
        if [name for name, _ in model_files.tensor_sizes(path)] != ["a.weight"]:
            raise AssertionError(f"{path.name} is read as something else")


@dataclass(frozen=True)
class Operation:
    """What is done, on what, and which calls may fail in it.

    `cuda`: on the double. `rolls_back`: an error leaves the model as it was before, without being unloaded.
    """

    name: str
    act: Callable[[World], None]
    kinds: tuple[str, ...]
    before: Callable[[World], None] = lambda _: None
    cuda: bool = False
    rolls_back: bool = False


OPERATIONS = (
    Operation("load", _load, ("allocation", "copy")),
    Operation("patch", _patch, ("allocation", "copy"), _patched, rolls_back=True),
    Operation("place", _place, ("allocation", "copy", "open", "read", "device"), rolls_back=True),
    Operation("stream", _stream, ("allocation", "copy"), _distribute),
    Operation(
        "stream, CUDA", _stream, ("allocation", *CUDA_CALLS, "thread"), _distribute, cuda=True
    ),
    Operation("migrate", _stream, ("allocation", "copy"), _migrated),
    Operation("unload", _unload, ("allocation", "copy"), _written),
    Operation("clear", _clear, ("device",)),
    Operation("scan", _scan, ("open", "read", "device", "thread")),
    Operation("sample", _sample, ("open", "read", "device", "thread")),
    Operation("read files", _read_files, ("open", "read", "map"), _write_files),
)


@dataclass
class Result:
    """What came of the faults of one kind in one operation."""

    operation: str
    kind: str
    injected: int = 0
    raised: int = 0
    went_on: int = 0
    leaked: int = 0  # bytes
    changed: int = 0  # models
    slowest: float = 0.0
    wrong: list[str] = field(default_factory=list)


@functools.cache
def system() -> Any | None:
    """The library of tests/support/faults, where it stands before the C library."""
    loaded: Any = ctypes.CDLL(None)
    return loaded if hasattr(loaded, "os_faults_arm") else None


class _Device:
    """Calls of torch's device module, of which one fails."""

    def __init__(self, nth: int, sticky: bool) -> None:
        self.nth, self.sticky = nth, sticky
        self.seen = self.failed = 0

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            self.seen += 1
            if self.seen == self.nth or (self.sticky and self.seen > self.nth):
                self.failed += 1
                raise RuntimeError("injected by the test")
            return function(*args, **options)

        return call


@contextlib.contextmanager
def fault(kind: str, nth: int, sticky: bool, world: World) -> Iterator[Callable[[], bool]]:
    """Let the nth call fail inside; gives whether one did, to be asked afterwards."""
    if kind in ("allocation", "copy"):
        fired = [0]
        with distorch_sim.faults(**{kind: nth}, sticky=sticky):
            yield lambda: fired[0] > 0
            fired[0] = distorch_sim.faults_fired()
    elif kind in CUDA_CALLS:
        assert world.fake is not None
        library = world.fake.library
        before = library.fake_failed()
        fail = library.fake_fail_on if sticky else library.fake_fail
        for name in CUDA_CALLS[kind]:
            fail(name, nth, 719 if kind == "device lost" else 2)
        try:
            yield lambda: bool(library.fake_failed() > before)
        finally:
            library.fake_fail_no_more()
    elif kind == "device":
        device = _Device(nth, sticky)
        with pytest.MonkeyPatch.context() as patch:
            for name in DEVICE_CALLS:
                patch.setattr(torch.sim, name, device.wrap(getattr(torch.sim, name)))
            yield lambda: device.failed > 0
    else:
        library, number = system(), SYSTEM_CALLS.index(kind)
        assert library is not None
        failed = [0]
        library.os_faults_arm(number, nth, sticky)
        try:
            yield lambda: failed[0] > 0
        finally:
            library.os_faults_disarm()
            failed[0] = library.os_faults_failed(number)


@contextlib.contextmanager
def double(operation: Operation, world: World) -> Iterator[None]:
    """The double of CUDA, where the operation is one on it. Each attempt has its own: memory is given out again."""
    if not operation.cuda:
        yield
        return
    with pytest.MonkeyPatch.context() as patch, streamed_by_the_core(patch) as fake:
        world.fake = fake
        try:
            yield
        finally:
            # Also its streams to measure with go; the next double must not be given any of this one.
            world.fake = fake.router = fake.device.router = None
            gc.collect()


def one(operation: Operation, kind: str, nth: int, sticky: bool, result: Result) -> bool:
    """Run the operation once with the nth call failing; returns whether there was such a call."""
    where = f"{operation.name}, {kind} {nth}{' and later' if sticky else ''}"
    world = World()
    with torch.inference_mode():
        try:
            with double(operation, world):
                operation.before(world)
                injected = _attempt(operation, kind, nth, sticky, world, result, where)
                fake = world.fake
                _give_back(world, result, where)
            if fake is not None:
                _compare_handles(fake, result, where)
            with double(operation, world):  # and all of it works again
                if operation.before is not _write_files:
                    operation.before(world)
                operation.act(world)
                world.close()
        except AssertionError as error:
            result.wrong.append(f"{where}: afterwards {error}")
        except Exception as error:
            result.wrong.append(f"{where}: afterwards {type(error).__name__}: {error}")
    return injected


def _attempt(
    operation: Operation,
    kind: str,
    nth: int,
    sticky: bool,
    world: World,
    result: Result,
    where: str,
) -> bool:
    before = State.of(world.model)
    begin, told = time.monotonic(), ""
    with fault(kind, nth, sticky, world) as hit:
        try:
            operation.act(world)
        except AssertionError as error:
            result.wrong.append(f"{where}: {error}")
        except TOLD as error:
            told = f"{type(error).__name__}: {error}"
        except BaseException as error:
            result.wrong.append(f"{where}: {type(error).__name__}: {error}")
    seconds = time.monotonic() - begin
    if not hit():
        if told:
            result.wrong.append(f"{where}: {told}, but no call failed")
        return False
    result.injected += 1
    result.slowest = max(result.slowest, seconds)
    result.raised, result.went_on = result.raised + bool(told), result.went_on + (not told)
    if seconds > LONGEST:
        result.wrong.append(f"{where}: told after {seconds:.1f} s")
    if told and operation.rolls_back and State.of(world.model) != before:
        result.wrong.append(f"{where}: {told}, and the model is not as before")
    return True


def _give_back(world: World, result: Result, where: str) -> None:
    world.close()
    state = State.of(world.model)
    left = sum(state.device_bytes) - sum(world.found.device_bytes)
    result.leaked += left
    if left:
        result.wrong.append(f"{where}: {left} bytes are left on devices")
    if state != world.found:
        result.changed += state.hashes != world.found.hashes
        result.wrong.append(f"{where}: the model is not as found")


def _compare_handles(fake: FakeCuda, result: Result, where: str) -> None:
    fake.library.fake_run_all()
    handles = fake.library.fake_handles() - 1  # the double's own stream
    registered = fake.library.fake_registrations()
    wrong = fake.violations
    if result.kind == "device lost":  # it writes nothing any more, and its registrations are void
        registered, wrong = 0, [w for w in wrong if "nothing orders them" not in w]
    if handles or registered or wrong:
        result.wrong.append(
            f"{where}: {handles} handles and {registered} registrations are left; {wrong[:1]}"
        )


def kinds_of(operation: Operation) -> tuple[str, ...]:
    """The kinds of calls that can be let fail here."""
    return tuple(k for k in operation.kinds if k not in SYSTEM_CALLS or system() is not None)


def every(operation: Operation, kind: str, step: int = 1) -> Result:
    """Let each call of a kind fail; with `step` only each step-th."""
    result = Result(operation.name, kind)
    for sticky in (False, True):
        nth = 1
        while one(operation, kind, nth, sticky, result):
            nth += step
    return result


def table(results: list[Result]) -> str:
    """The results as lines of text, with their sums."""
    rows = [("operation", "call", "injected", "told", "went on", "slowest", "bytes", "models")]
    rows += [
        (r.operation, r.kind, r.injected, r.raised, r.went_on, f"{r.slowest:.2f} s", r.leaked, r.changed)
        for r in results
    ]  # fmt: skip
    sums = [sum(getattr(r, n) for r in results) for n in ("injected", "raised", "went_on")]
    slowest = max(r.slowest for r in results)
    ends = [sum(getattr(r, n) for r in results) for n in ("leaked", "changed")]
    rows.append(("all", "", *sums, f"{slowest:.2f} s", *ends))
    widths = [max(len(str(row[i])) for row in rows) for i in range(8)]
    lines = [
        "  ".join(
            f"{cell!s:<{w}}" if i < 2 else f"{cell!s:>{w}}"
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join(lines)
