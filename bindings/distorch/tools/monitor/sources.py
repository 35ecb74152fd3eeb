# SPDX-License-Identifier: Apache-2.0
"""Where samples come from, best source first, falling back and returning by itself.

    1. history      the pack's GET /distorch/history: sampled inside the process, with the allocator's own peaks
    2. system_stats ComfyUI's GET /system_stats, in any of its forms
    3. nvml         the driver's library, for a server of this machine or none
    4. nvidia-smi   likewise

A source that fails rests for a while that doubles up to `MAX_REST` seconds, so that a server that hangs does not delay
every look; those behind it take over in the same look. A server of another machine has no substitute: this machine's
GPUs are not its.
"""

from __future__ import annotations

import ipaddress
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from distorch.tools.monitor import answers, gpus
from distorch.tools.monitor.answers import AnswerError
from distorch.tools.monitor.http_json import FetchError, JsonClient, TooLargeError
from distorch.tools.monitor.sample import DeviceSample, Gap, ModelSample, PromptRun, Queue, Sample

MAX_REST = 15.0  # seconds; how late a server that came back is noticed
PACK_REST = 60.0  # seconds between two questions whether the pack is there
_STALE = 10.0  # seconds, and three of its intervals: the pack's sampler stands still
_LOOK_BACK = 5.0  # seconds of overlap, for samples that come late
_MAX_LOOK_BACK = 7 * 24 * 3600.0  # the most that the pack answers
_EXTRAS_EVERY = 1.0  # seconds at least between two looks at the models and the queue
_EXTRAS_TIME = 1.0  # seconds for each: they must not hold up the next look at the memory
_EXTRAS_REST = 10.0  # seconds after one that failed


@dataclass(frozen=True)
class Reading:
    """What one source tells; `time` is when the memory was read, seconds since 1970."""

    time: float
    devices: tuple[DeviceSample, ...]
    models: tuple[ModelSample, ...] = ()
    runs: tuple[PromptRun, ...] = ()
    queue: Queue | None = None


class Source(Protocol):
    """One place to look. `read` raises FetchError or AnswerError, nothing else."""

    name: str

    def read(self) -> Reading: ...


class RestError(Exception):
    """The source asks not to be tried for `seconds`."""

    def __init__(self, message: str, seconds: float) -> None:
        super().__init__(message)
        self.seconds = seconds


class _Extras:
    """Models and queue beside the memory: worth having, never worth failing for."""

    def __init__(self, client: JsonClient) -> None:
        self._client = client
        self._next = 0.0
        self._models: tuple[ModelSample, ...] = ()
        self._queue: Queue | None = None

    def read(self, pack: bool) -> tuple[tuple[ModelSample, ...], Queue | None]:
        """Return the models (of the pack) and the queue; what they were when they cannot be had now."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _EXTRAS_EVERY
            try:
                self._queue = answers.queue(self._client.get("/queue", _EXTRAS_TIME))
                if pack:
                    found = answers.mapping(self._client.get("/distorch/models", _EXTRAS_TIME))
                    self._models = answers.models(found.get("models"))
            except FetchError:
                self._next = now + _EXTRAS_REST
        return self._models, self._queue


class HistorySource:
    """The pack's own samples since the last look, as one: the newest figures, the largest peaks."""

    name = "history"

    def __init__(self, client: JsonClient) -> None:
        self._client = client
        self._extras = _Extras(client)
        self._newest = -1.0  # the server's time of the newest sample seen
        self._begin: float | None = None  # the server's time of the first one
        self._seen_at = 0.0  # our monotonic time when it was new

    def read(self) -> Reading:
        """Raises RestError when the pack is not there."""
        now = time.monotonic()
        since = now - self._seen_at if self._newest >= 0 else 0.0
        seconds = int(min(since + _LOOK_BACK, _MAX_LOOK_BACK)) + 1
        try:
            answer = self._client.get(f"/distorch/history?seconds={seconds}")
        except TooLargeError:
            self._newest = -1.0  # begin anew: what was between is lost, the rest is not
            raise
        except FetchError as error:
            if error.status in (404, 405):
                raise RestError("the pack is not there", PACK_REST) from None
            raise
        taken = time.time()
        samples = answers.history_samples(answer)
        if not samples:
            raise AnswerError("no sample in the answer")
        newest = samples[-1][0]
        if newest < self._newest:  # the server's clock went back, or it is another server
            self._newest, self._begin = -1.0, None
        if self._begin is None:
            self._begin = newest
        if newest > self._newest:
            fresh = [devices for t, devices in samples if t > self._newest]
            first_look = self._newest < 0
            self._newest, self._seen_at = newest, now
        else:
            interval = answers.number(answers.mapping(answer).get("interval")) or 1.0
            if now - self._seen_at > max(_STALE, 3 * interval):
                raise AnswerError(f"no new sample for {now - self._seen_at:.0f} s")
            fresh, first_look = [_seen(samples[-1][1])], False
        devices = _merge(fresh[-1:] if first_look else fresh)
        models, queue = self._extras.read(pack=True)
        # The server also tells of runs that were over before anybody looked.
        begin = self._begin
        runs = tuple(r for r in answers.runs(answer) if r.ended is None or r.ended > begin)
        return Reading(taken, devices, models, runs, queue)


def _seen(devices: tuple[DeviceSample, ...]) -> tuple[DeviceSample, ...]:
    """Return a sample that was given before: its peaks were told, and are of a time before this look."""
    return tuple(d if d.peak is None else replace(d, peak=d.used) for d in devices)


def _merge(samples: Sequence[tuple[DeviceSample, ...]]) -> tuple[DeviceSample, ...]:
    highest: dict[str, int] = {}
    for devices in samples:
        for d in devices:
            if d.peak is not None or len(samples) > 1:
                highest[d.device] = max(highest.get(d.device, 0), d.highest)
    return tuple(
        replace(d, peak=highest[d.device]) if d.device in highest else d for d in samples[-1]
    )


class SystemStatsSource:
    """ComfyUI's own figures."""

    name = "system_stats"

    def __init__(self, client: JsonClient) -> None:
        self._client = client
        self._extras = _Extras(client)

    def read(self) -> Reading:
        """Read the devices and the queue."""
        devices = answers.system_stats(self._client.get("/system_stats"))
        taken = time.time()
        return Reading(taken, devices, queue=self._extras.read(pack=False)[1])


class GpuSource:
    """The driver's figures, by CUDA's index."""

    def __init__(self, name: str, read: Callable[[], list[gpus.Gpu]]) -> None:
        self.name = name
        self._read = read

    def read(self) -> Reading:
        """Read all visible GPUs."""
        devices = gpus.by_cuda_index(self._read())
        return Reading(time.time(), devices)


@dataclass
class _State:
    source: Source
    failures: int = 0
    rests_until: float = 0.0  # monotonic
    reason: str = ""


@dataclass
class SourceChain:
    """Sources in order of preference. `read` is for one thread at a time; `close` may be called from any."""

    sources: Sequence[Source]
    clients: Sequence[JsonClient] = ()
    clock: Callable[[], float] = time.monotonic
    _states: list[_State] = field(init=False, repr=False)
    _names: dict[str, str] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        """Start with every source awake."""
        self._states = [_State(source) for source in self.sources]

    def read(self) -> Sample | Gap:
        """Return a sample of the best source that answers, or a Gap with the reason of each. Never raises."""
        missed: list[tuple[str, str]] = []
        for state in self._order():
            try:
                reading = state.source.read()
            except Exception as error:  # a bad answer costs a gap, never the run
                self._failed(state, error)
                missed.append((state.source.name, state.reason))
                continue
            state.failures, state.rests_until, state.reason = 0, 0.0, ""
            return self._sample(state.source.name, reading, tuple(missed))
        return Gap(time.time(), tuple((s.source.name, s.reason) for s in self._states))

    def close(self) -> None:
        """End the exchange under way; later looks are gaps."""
        for client in self.clients:
            client.close()

    def _order(self) -> list[_State]:
        """Return the sources to try: those awake, then those that failed lately, rather than a gap."""
        now = self.clock()
        awake = [s for s in self._states if s.rests_until <= now]
        return awake + [s for s in self._states if s.rests_until > now and s.failures]

    def _failed(self, state: _State, error: Exception) -> None:
        state.reason = answers.text(str(error)) or type(error).__name__
        if isinstance(error, RestError):
            state.rests_until = self.clock() + error.seconds
            return
        state.failures += 1
        if state.source.name == SystemStatsSource.name:
            for other in self._states:  # the server that comes back may have the pack
                other.rests_until = other.rests_until if other.failures else 0.0
        # The first failure costs no rest: most are a restart or a busy moment.
        rest = 0.0 if state.failures == 1 else min(2.0 ** (state.failures - 2), MAX_REST)
        state.rests_until = self.clock() + rest

    def _sample(self, source: str, reading: Reading, missed: tuple[tuple[str, str], ...]) -> Sample:
        self._names.update({d.device: d.name for d in reading.devices if d.name})
        devices = tuple(
            d if d.name else replace(d, name=self._names.get(d.device, "")) for d in reading.devices
        )
        return Sample(
            reading.time, source, devices, reading.models, reading.runs, reading.queue, missed
        )


def is_this_machine(host: str) -> bool:
    """Whether an address is this machine's own."""
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == socket.gethostname()
    if address.is_loopback or address.is_unspecified:
        return True
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:  # only own addresses can be bound
        try:
            probe.bind((host, 0))
        except OSError:
            return False
    return True


def open_sources(url: str | None, timeout: float = 2.0, local: bool | None = None) -> SourceChain:
    """Return the chain for a server, or, without one, for this machine's GPUs. Nothing is asked yet.

    Args:
        url: ComfyUI's address; None for no server.
        timeout: seconds for each question to the server.
        local: whether this machine's GPUs may stand in; default: when the server is this machine's.

    Raises:
        ValueError: `url` is no address.
    """
    sources: list[Source] = []
    clients: list[JsonClient] = []
    if url is not None:
        client = JsonClient(url, timeout)
        clients.append(client)
        sources += [HistorySource(client), SystemStatsSource(client)]
        local = is_this_machine(client.host) if local is None else local
    if url is None or local:
        sources += [GpuSource("nvml", gpus.nvml_gpus), GpuSource("nvidia-smi", gpus.smi_gpus)]
    return SourceChain(sources, clients)
