# SPDX-License-Identifier: Apache-2.0
"""Jobs in the worker between prompts: they must never end the worker, whatever fails in them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from stand_in import load_patches

between_prompts = load_patches("seams.between_prompts")


class Queue:
    """As much of ComfyUI's PromptQueue as its worker uses; `get` never has a prompt."""

    def __init__(self) -> None:
        self.mutex = threading.RLock()
        self.not_empty = threading.Condition(self.mutex)
        self.flags: dict[str, Any] = {}
        self.timeouts: list[Any] = []

    def set_flag(self, name: str, data: Any) -> None:
        with self.mutex:
            self.flags[name] = data
            self.not_empty.notify()

    def get(self, timeout: Any = None) -> None:
        self.timeouts.append(timeout)

    def get_flags(self) -> dict[str, Any]:
        flags, self.flags = self.flags, {}
        return flags


class Worker:
    """The queue with its jobs; `turn()` is one round of ComfyUI's worker."""

    def __init__(self, measure: Callable[[], dict[str, int]], settle: Callable[[], None]) -> None:
        self.queue = Queue()
        self.jobs = between_prompts.BetweenPrompts(self.queue, measure, settle)
        self.jobs.install()

    def turn(self) -> None:
        self.queue.get(timeout=1000)
        self.queue.get_flags()
        self.queue.get(timeout=1000)


@pytest.fixture
def made() -> Iterator[list[Worker]]:
    workers: list[Worker] = []
    yield workers
    for worker in workers:
        worker.jobs.uninstall()


def worker(made: list[Worker], **more: Any) -> Worker:
    memory = more.pop("memory", {"cuda:0": 100})
    made.append(Worker(more.pop("measure", lambda: dict(memory)), more.pop("settle", lambda: None)))
    return made[-1]


def test_a_job_runs_between_prompts_and_reports_what_it_freed(made: list[Worker]) -> None:
    memory = {"cuda:0": 100, "cuda:1": 7, "cuda:2": 5}
    w = worker(made, memory=memory)
    told: list[Any] = []
    w.jobs.finished.append(told.append)

    def eject() -> dict[str, Any]:
        memory["cuda:0"] = 30
        del memory["cuda:2"]  # nothing of ours is left there
        return {"unloaded": ["m"]}

    job = w.jobs.post("eject", eject)
    assert w.jobs.report(job.ticket)["state"] == "queued"
    assert memory["cuda:0"] == 100, "nothing happens before the worker comes past"
    w.turn()
    report = w.jobs.report(job.ticket)
    assert report["state"] == "done"
    assert report["freed"] == {"cuda:0": 70, "cuda:2": 5}
    assert (report["freed_total"], report["details"]) == (75, {"unloaded": ["m"]})
    assert told == [job]
    assert w.jobs.report(99) is None


def test_jobs_that_come_together_report_each_its_own(made: list[Worker]) -> None:
    memory = {"cuda:0": 100, "cuda:1": 50}
    cached: list[int] = []  # of cuda:0: freed, but not given back before the caches are emptied

    def settle() -> None:
        while cached:
            memory["cuda:0"] -= cached.pop()

    w = worker(made, memory=memory, settle=settle)
    free = w.jobs.post("free", lambda: None)
    first = w.jobs.post("eject", lambda: cached.append(70))
    second = w.jobs.post("eject", lambda: memory.update({"cuda:1": 20}))
    w.queue.get_flags()
    cached.append(5)  # what the worker does with the flags of a "free"
    w.queue.get(timeout=1000)
    assert first.freed == {"cuda:0": 70}
    assert second.freed == {"cuda:1": 30}
    assert free.freed == {"cuda:0": 5}


def test_a_report_is_whole_before_the_job_is_said_to_be_done(made: list[Worker]) -> None:
    w = worker(made)
    seen: list[str] = []

    def add(job: Any) -> None:
        seen.append(job.state)
        job.details["kept"] = ["m"]

    w.jobs.finishing.append(add)
    w.jobs.finished.append(lambda job: seen.append(f"{job.state} {job.details}"))
    w.jobs.post("free", lambda: None)
    w.turn()
    assert seen == ["running", "done {'kept': ['m']}"]


def test_a_job_that_fails_says_so_and_the_next_one_runs(
    made: list[Worker], caplog: pytest.LogCaptureFixture
) -> None:
    w = worker(made)

    def fail() -> None:
        raise RuntimeError("no such model")

    bad, good = w.jobs.post("eject", fail), w.jobs.post("clear_cache", lambda: {"x": 1})
    with caplog.at_level(logging.ERROR):
        w.turn()
    assert w.jobs.report(bad.ticket)["state"] == "failed"
    assert w.jobs.report(bad.ticket)["error"] == "RuntimeError: no such model"
    assert (good.state, good.details, good.error) == ("done", {"x": 1}, "")
    assert "eject failed" in caplog.text


@pytest.mark.parametrize("what", ["measure", "settle", "listener"])
def test_the_worker_lives_when_a_device_or_a_listener_fails(
    what: str, made: list[Worker], caplog: pytest.LogCaptureFixture
) -> None:
    def lost(*_: Any) -> Any:
        raise RuntimeError("CUDA error: device is lost")

    w = worker(made, **({what: lost} if what != "listener" else {}))
    if what == "listener":
        w.jobs.finished.append(lost)
    told: list[Any] = []
    w.jobs.finished.append(told.append)
    job = w.jobs.post("free", lambda: None)
    with caplog.at_level(logging.ERROR):
        w.turn()  # would end ComfyUI's worker if it raised
    assert told == [job]
    assert job.freed == {}
    assert "CUDA error: device is lost" in caplog.text
    expected = ("done", "") if what == "listener" else ("failed", "RuntimeError: CUDA error: device is lost")  # fmt: skip
    assert (job.state, job.error) == expected


def test_a_job_that_was_posted_while_the_worker_went_to_sleep_wakes_it(made: list[Worker]) -> None:
    w = worker(made)
    w.jobs.post("free", lambda: None)
    w.queue.get(timeout=1000)
    assert w.queue.timeouts == [0], "it does not sleep over a job that waits"
    woken: list[bool] = []

    def sleep() -> None:
        with w.queue.mutex:
            ready.set()
            woken.append(w.queue.not_empty.wait(30))

    ready = threading.Event()
    sleeper = threading.Thread(target=sleep)
    sleeper.start()
    assert ready.wait(30)
    w.jobs.nudge()
    sleeper.join(30)
    assert woken == [True]


def test_another_queue_is_left_alone(made: list[Worker]) -> None:
    w = worker(made)
    job = w.jobs.post("free", lambda: None)
    other = Queue()
    other.get_flags()
    other.get(timeout=5)
    assert (job.state, other.timeouts) == ("queued", [5])


def test_only_the_last_reports_are_kept(made: list[Worker]) -> None:
    w = worker(made)
    tickets = [
        w.jobs.post("free", lambda: None).ticket for _ in range(between_prompts.KEPT_REPORTS + 1)
    ]
    assert w.jobs.report(tickets[0]) is None
    assert w.jobs.report(tickets[1]) is not None
