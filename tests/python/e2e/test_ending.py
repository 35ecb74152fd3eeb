# SPDX-License-Identifier: Apache-2.0
"""However the command ends, nothing is left behind: no process, no thread, no prompt on the server. Real processes."""

from __future__ import annotations

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import like_windows
import psutil
import pytest
from fake_runner import FakeRunner, Play
from waiting import wait_for

ARGUMENTS = ("--interval", "0.1", "--settle", "0", "--repeat", "3")


@pytest.fixture
def started(
    server: FakeRunner, workflow: pathlib.Path, tmp_path: pathlib.Path
) -> Iterator[subprocess.Popen]:
    """The command in a process of its own, in the middle of its second scene."""
    server.plays = [Play(), Play(seconds=60, steps=1200)]
    command = [sys.executable, "-m", "distorch", "e2e", str(workflow), "--url", server.url]
    process = subprocess.Popen(
        [*command, *ARGUMENTS, "--json", str(tmp_path / "run.json"), "--junit", str(tmp_path / "run.xml"),
         "--plot", str(tmp_path / "run.svg")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    wait_for(lambda: len(server.prompts) == 2 and server._running is not None)
    yield process
    process.kill()
    process.communicate()


def group(process: subprocess.Popen) -> list[int]:
    """Live processes of its session: itself and whatever it started."""
    return [
        p.pid
        for p in psutil.process_iter(["status"])
        if p.info["status"] != psutil.STATUS_ZOMBIE and _session(p.pid) == process.pid
    ]


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return -1


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_takes_the_prompt_off_the_server(
    started, server, tmp_path, number, status
) -> None:
    started.send_signal(number)
    out, err = started.communicate(timeout=20)
    assert started.returncode == status, err
    assert err == ""
    prompt = server.prompts[1].prompt_id
    assert server.interrupts == [prompt]
    wait_for(lambda: server._running is None)
    assert len(server.prompts) == 2
    assert group(started) == []
    found = json.loads((tmp_path / "run.json").read_text())
    assert [s["status"] for s in found["scenes"]] == ["success", "stopped", "not run"]
    assert (found["complete"], found["exit_status"]) == (False, status)
    assert "3 scenes in" in out
    assert "1 success, 1 stopped, 1 not run" in out
    assert (tmp_path / "run.xml").exists()
    assert (tmp_path / "run.svg").exists()


def test_a_run_that_was_stopped_meanwhile_looks_before_it_calls_time(server, workflow) -> None:
    """Ctrl-Z, and fg after the time limit: the scene was done long before."""
    server.plays = [Play(seconds=0.3, steps=3)]
    command = [sys.executable, "-m", "distorch", "e2e", str(workflow), "--url", server.url]
    with subprocess.Popen(
        [*command, "--settle", "0", "--timeout", "2"], stdout=subprocess.PIPE, text=True
    ) as process:
        wait_for(lambda: server._running is not None)
        process.send_signal(signal.SIGSTOP)
        wait_for(lambda: server._running is None)
        time.sleep(2.5)
        process.send_signal(signal.SIGCONT)
        out, _ = process.communicate(timeout=30)
    assert process.returncode == 0, out
    assert "1 scene in" in out
    assert server.interrupts == []


def test_a_hangup_that_nohup_ignores_ends_nothing(server, workflow) -> None:
    server.plays = [Play(seconds=1, steps=20)]
    command = ["nohup", sys.executable, "-m", "distorch", "e2e", str(workflow), "--url", server.url]
    with subprocess.Popen(
        [*command, "--settle", "0"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        wait_for(lambda: server._running is not None)
        process.send_signal(signal.SIGHUP)
        out, _ = process.communicate(timeout=30)
    assert process.returncode == 0, out
    assert server.interrupts == []


def test_a_paused_terminal_holds_up_nothing(server, workflow, tmp_path) -> None:
    """Nobody reads what it says (Ctrl-S, `| less`): time limits hold, and the files are written."""
    server.plays = [Play(seconds=0.02)]
    text = json.loads(workflow.read_text())
    for i in range(4, 300):  # more lines than a pipe holds
        text[str(i)] = {"class_type": f"Node{'x' * 200}", "inputs": {}}
    workflow.write_text(json.dumps(text))
    where = tmp_path / "run.xml"
    command = [sys.executable, "-m", "distorch", "e2e", str(workflow), "--url", server.url]
    with subprocess.Popen(
        [*command, "--settle", "0", "--junit", str(where)], stdout=subprocess.PIPE, text=True
    ) as process:
        wait_for(where.exists, 40)
        assert process.poll() is None  # it still has its report to tell
        assert process.stdout is not None
        out = process.stdout.read()
        assert process.wait(20) == 0
    assert "1 success" in out
    assert out.count("  done  Node") == 296


def test_without_what_windows_lacks(server, workflow, tmp_path) -> None:
    """Neither signal handlers of the loop nor fcntl: Ctrl-C and the log work all the same."""
    server.plays = [Play(), Play(seconds=60, steps=1200)]
    log = tmp_path / "run.jsonl"
    command = [sys.executable, like_windows.__file__, "e2e", str(workflow), "--url", server.url]
    with subprocess.Popen(
        [*command, *ARGUMENTS, "--log", str(log)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        wait_for(lambda: len(server.prompts) == 2 and server._running is not None)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, b"")
    assert server.interrupts == [server.prompts[1].prompt_id]
    assert b"1 success, 1 stopped, 1 not run" in out
    assert log.read_text().count('"device":"sim:0"') >= 1


def test_a_prompt_that_waits_is_taken_out_of_the_queue(server, workflow) -> None:
    server.plays = [Play(seconds=60, steps=1200)]
    server._queue({"prompt": {}, "prompt_id": "somebody-else", "client_id": "x"})
    server.prompts[0].prompt.update({"1": {"class_type": "Sleep", "inputs": {}}})
    command = [sys.executable, "-m", "distorch", "e2e", str(workflow), "--url", server.url]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        wait_for(lambda: len(server.prompts) == 2 and len(server._pending) == 1)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
    assert server._pending == []
    assert server.interrupts == []
    assert server._running is not None


def test_a_second_signal_ends_at_once(started, server) -> None:
    server.delay = 4.0  # nothing is answered for now: the clean end has to wait
    started.send_signal(signal.SIGTERM)
    time.sleep(1)
    assert started.poll() is None
    started.send_signal(signal.SIGTERM)
    assert started.wait(2) == -signal.SIGTERM
    assert group(started) == []


def test_kill_leaves_nothing_behind(started, server, tmp_path) -> None:
    """Threads die with it and there is no other process; the file has the scenes until then, in one piece."""
    assert group(started) == [started.pid]
    started.kill()
    started.wait(10)
    assert group(started) == []
    wait_for(lambda: server._sockets == {})
    asked = len(server.requests)
    time.sleep(0.5)
    assert len(server.requests) == asked
    found = json.loads((tmp_path / "run.json").read_text())
    assert [s["status"] for s in found["scenes"]] == ["success"]
    assert found["complete"] is False
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run.json", "wan.json"]


def test_a_reader_that_goes_away_does_not_end_the_run(server, workflow, tmp_path) -> None:
    server.plays = [Play(seconds=0.2, steps=4)]
    command = [sys.executable, "-m", "distorch", "e2e", str(workflow), "--url", server.url]
    with subprocess.Popen(
        [*command, *ARGUMENTS, "--json", str(tmp_path / "run.json")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(30) == 0
        assert process.stderr.read() == ""
    found = json.loads((tmp_path / "run.json").read_text())
    assert [s["status"] for s in found["scenes"]] == ["success"] * 3


def test_a_full_disk_fails_at_the_end_and_says_so(e2e, server, monkeypatch) -> None:
    from distorch.tools.cli import e2e as command

    def full(path: pathlib.Path, words: str) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(command, "write_whole", full)
    ended = e2e("--repeat", "2")
    assert ended.status == 1
    assert len(server.prompts) == 2
    assert "No space left on device" in ended.err


def test_a_log_that_cannot_be_written_fails_at_the_end_and_says_so(e2e) -> None:
    ended = e2e("--log", "/dev/full")
    assert ended.status == 1
    assert ended.statuses == ["success"]
    words = r"distorch e2e: \d+ events could not be written: OSError: \[Errno 28\] No space left"
    assert re.match(words, ended.err)


def test_an_unexpected_error_still_ends_every_thread(e2e, server, monkeypatch) -> None:
    import threading

    from distorch.tools.e2e import runner

    def broken(*args: object) -> None:
        raise RuntimeError("a fault of our own")

    monkeypatch.setattr(runner.Run, "_look_at_cache", broken)
    with pytest.raises(RuntimeError, match="a fault of our own"):
        e2e()
    assert [t.name for t in threading.enumerate() if t.name.startswith("distorch")] == []
