# SPDX-License-Identifier: Apache-2.0
"""`distorch monitor` as a process: killed, interrupted, restarted under it, on a terminal."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import like_windows
import pytest
from fake_comfy import GB, FakeComfy, FakeDevice, node_run, prompt_run
from waiting import wait_for

from distorch.tools.cli import main
from distorch.tools.cli.quantities import duration, size
from distorch.tools.stats import read_logs

SEED_LINE = re.compile(r"\d\d:\d\d:\d\d,Used=\d+MB,Free=\d+MB\n")


@pytest.fixture
def server() -> Iterator[FakeComfy]:
    with FakeComfy([FakeDevice("cuda:0", used=8 * GB), FakeDevice("cuda:1", used=2 * GB)]) as found:
        yield found


def command(server: FakeComfy | None, *words: str) -> list[str]:
    where = ["--no-server"] if server is None else ["--url", server.url]
    return [sys.executable, "-m", "distorch", "monitor", *where, *words]


@contextlib.contextmanager
def started(server: FakeComfy, folder: Path, *words: str) -> Iterator[subprocess.Popen]:
    process = subprocess.Popen(
        command(server, *words),
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=20)


def lines_in(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def run(server: FakeComfy | None, folder: Path, *words: str) -> tuple[int, str, str]:
    done = subprocess.run(
        command(server, *words),
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    return done.returncode, done.stdout, done.stderr


def test_a_short_run_writes_log_plot_and_statistics(server, tmp_path) -> None:
    status, out, err = run(
        server,
        tmp_path,
        "--for",
        "1s",
        "--interval",
        "100ms",
        "--log",
        "vram-usage.log",
        "--plot",
        "x.svg",
    )
    assert (status, err) == (0, "")
    text = (tmp_path / "vram-usage.log").read_text()
    assert re.fullmatch(f"({SEED_LINE.pattern})+", text)
    assert "Used=8192MB,Free=16384MB" in text
    assert "system_stats  cuda:0 8192/24576 MB 33%  cuda:1 2048/24576 MB 8%" in out
    samples = lines_in(tmp_path / "vram-usage.log")
    assert samples >= 2
    assert (
        f"=== VRAM Usage Statistics (cuda:0) ===\nPeak VRAM: 8192 MB (from {samples} samples)"
        in out
    )
    assert "log: vram-usage.log\n" in out
    assert "plot: x.svg\n" in out
    assert (tmp_path / "x.svg").read_text().startswith("<svg ")
    (device,) = read_logs([tmp_path / "vram-usage.log"]).devices
    assert (device.samples, device.peak) == (samples, 8192)


@pytest.mark.parametrize("form", ["lines", "csv", "jsonl"])
def test_kill_9_costs_one_line_at_most(server, tmp_path, form: str) -> None:
    server.live_history()
    words = ["--log", "x.log", "--devices", "all"] + ([f"--{form}"] if form != "lines" else [])
    log = tmp_path / "x.log"
    answered: list[int] = []
    for _ in range(2):  # the second one goes on where the first was killed
        before = lines_in(log)
        asked = sum(r.path == "/distorch/history" for r in server.requests)
        with started(server, tmp_path, "--interval", "20ms", "--quiet", *words) as process:
            wait_for(lambda before=before: lines_in(log) > before + 60)
            process.send_signal(signal.SIGKILL)
            process.wait(10)
        answered.append(sum(r.path == "/distorch/history" for r in server.requests) - asked)
    found = read_logs([log])
    assert found.bad_lines <= 1
    assert [d.device for d in found.devices] == ["cuda:0", "cuda:1"]
    # Each of the two may have had one look under way, and one that was answered but not written.
    assert found.devices[0].samples >= sum(answered) - 4
    assert found.devices[0].peak == 8192
    assert read_logs([log]).devices[1].samples >= sum(answered) - 4


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_with_statistics(server, tmp_path, number) -> None:
    with started(server, tmp_path, "--interval", "50ms", "--jsonl", "--plot", "x.svg") as process:
        wait_for(lambda: lines_in(tmp_path / "vram-usage.jsonl") > 6)
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (0, "")
    assert "=== VRAM Usage Statistics (cuda:1) ===" in out
    assert (tmp_path / "x.svg").exists()


def test_a_signal_while_the_server_hangs(server, tmp_path) -> None:
    server.fault = "hang"
    with started(server, tmp_path, "--timeout", "60s") as process:
        wait_for(lambda: bool(server.requests))
        start = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert time.monotonic() - start < 15
    assert process.returncode == 1
    assert "no sample" in err


def test_a_restart_of_the_server_is_a_gap(server, tmp_path) -> None:
    server.live_history()
    log = tmp_path / "vram-usage.jsonl"
    with started(server, tmp_path, "--interval", "50ms", "--jsonl") as process:
        wait_for(lambda: lines_in(log) > 20)
        server.restart(down=2)
        before = lines_in(log)
        wait_for(lambda: lines_in(log) > before + 60)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "no answer (history: connection refused" in out
    assert re.search(r"back after [123] s", out)
    found = read_logs([log])
    assert found.devices[0].gaps == 1
    assert 1.5 < found.devices[0].longest_gap < 10
    assert any("connection refused" in reason for reason in found.failures)


def test_a_burst_between_samples_is_in_the_peak(server, tmp_path) -> None:
    """1 GB for 50 ms, while the monitor looks every half second: the allocator's counter has it."""
    live = server.live_history()
    log = tmp_path / "vram-usage.jsonl"
    with started(server, tmp_path, "--interval", "500ms", "--jsonl") as process:
        wait_for(lambda: lines_in(log) >= 4)
        server.devices[0].used += GB
        live.peak = server.devices[0].used
        time.sleep(0.05)
        server.devices[0].used -= GB
        before = lines_in(log)
        wait_for(lambda: lines_in(log) >= before + 4)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=20)
    assert "Peak VRAM: 9216 MB" in out
    device = read_logs([log]).devices[0]
    assert (device.peak, device.sampled_peak) == (9216, 8192)


def test_nodes_and_models_are_in_log_and_statistics(server, tmp_path) -> None:
    now = time.time()
    loaded = [{"name": "sd15", "type": "checkpoint", "bytes": {"cuda:0": 2 * GB}}]
    nodes = [node_run("4", "CheckpointLoaderSimple", now - 4, now - 2, {"cuda:0": 3 * GB}, loaded)]
    live = server.live_history()
    # Ends after the monitor has begun: what was over before is not told.
    live.runs.append(prompt_run("p1", now - 4, nodes, now + 60, "success", {"cuda:0": 9 * GB}))
    status, out, _ = run(
        server, tmp_path, "--for", "500ms", "--interval", "100ms", "--jsonl", "--quiet"
    )
    assert status == 0
    assert "sd15 (checkpoint), peak 2048 MB on cuda:0\n" in out
    assert "CheckpointLoaderSimple (node 4): 1 run, 2.0 s each, peak 3072 MB on cuda:0\n" in out
    rows = [json.loads(line) for line in (tmp_path / "vram-usage.jsonl").read_text().splitlines()]
    assert [row["status"] for row in rows if "run" in row] == ["success"]


def test_the_log_rotates(server, tmp_path) -> None:
    status, _, err = run(
        server, tmp_path, "--for", "3s", "--interval", "20ms", "--log", "x.log", "--rotate", "200",
        "--keep", "2", "--quiet",
    )  # fmt: skip
    assert (status, err) == (0, "")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.log", "x.log.1", "x.log.2"]
    for path in tmp_path.iterdir():
        assert path.stat().st_size <= 200
        assert re.fullmatch(f"({SEED_LINE.pattern})+", path.read_text())


def test_two_monitors_on_one_log(server, tmp_path) -> None:
    with started(server, tmp_path, "--interval", "50ms", "--log", "x.log"):
        wait_for(lambda: lines_in(tmp_path / "x.log") > 2)
        status, out, err = run(server, tmp_path, "--log", "x.log", "--for", "1s")
        assert (status, out) == (2, "")
        assert "x.log: another monitor writes this log; give it another name with --log" in err
        before = lines_in(tmp_path / "x.log")
        wait_for(lambda: lines_in(tmp_path / "x.log") > before + 2)
    assert read_logs([tmp_path / "x.log"]).bad_lines == 0


def test_a_device_that_is_not_there_is_named(server, tmp_path) -> None:
    words = ("--interval", "50ms", "--for", "30s", "--devices", "cuda:1,cuda:7")
    with started(server, tmp_path, *words) as process:
        assert process.stderr is not None  # told at once, not after the run
        assert process.stderr.readline() == (
            "distorch monitor: --devices: there is no cuda:7; there are cuda:0, cuda:1\n"
        )
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "=== VRAM Usage Statistics ===\nPeak VRAM: 2048 MB" in out
    status, out, err = run(
        server, tmp_path, "--for", "1500ms", "--interval", "50ms", "--devices", "cuda:7"
    )
    assert status == 1
    assert "no samples\n" in out
    last = err.splitlines()[-1]
    assert last == "distorch monitor: no sample of cuda:7; there are cuda:0, cuda:1"


def test_prometheus_and_a_port_that_is_taken(server, tmp_path) -> None:
    with started(server, tmp_path, "--interval", "50ms", "--prometheus", "0") as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip().removeprefix("metrics: ")
        assert url.startswith("http://127.0.0.1:")
        process.stdout.readline()  # a sample was taken
        with urllib.request.urlopen(url, timeout=5) as answer:
            assert b'distorch_monitor_used_bytes{device="cuda:0"' in answer.read()
        port = url.rpartition(":")[2].partition("/")[0]
        status, _, err = run(
            server, tmp_path, "--prometheus", port, "--log", "y.log", "--for", "1s"
        )
        assert status == 2
        assert f"--prometheus 127.0.0.1:{port}: Address already in use" in err
        process.send_signal(signal.SIGINT)
        process.wait(20)
    assert process.returncode == 0


def test_without_any_source_it_says_why(tmp_path) -> None:
    environment = {**os.environ, "PATH": str(tmp_path)}
    done = subprocess.run(
        command(None, "--for", "300ms", "--interval", "100ms"), cwd=tmp_path, env=environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if "cuda:0" in done.stdout:  # a machine with a GPU has a source
        assert (done.returncode, done.stderr) == (0, "")
        return
    assert done.returncode == 1
    assert "no sample: nvml: " in done.stderr
    assert "nvidia-smi: nvidia-smi was not found" in done.stderr


def test_a_disk_that_is_full_costs_lines_only(server, tmp_path) -> None:
    if not Path("/dev/full").exists():
        pytest.fail("this test needs /dev/full")
    status, out, err = run(
        server, tmp_path, "--for", "500ms", "--interval", "100ms", "--log", "/dev/full"
    )
    assert status == 0
    assert "Peak VRAM: 8192 MB" in out
    assert "No space left on device" in err
    assert "events could not be written" in err


def test_a_reader_that_goes_away_does_not_end_the_record(server, tmp_path) -> None:
    with started(server, tmp_path, "--interval", "50ms", "--log", "x.log") as process:
        assert process.stdout is not None
        process.stdout.close()
        before = lines_in(tmp_path / "x.log")
        wait_for(lambda: lines_in(tmp_path / "x.log") > before + 10)
        process.send_signal(signal.SIGINT)
        process.stdout = None
        assert process.wait(20) == 0


def test_a_paused_terminal_holds_up_nothing(server, tmp_path) -> None:
    """Nobody reads what it says (Ctrl-S, `| less`): the log goes on, and so does the end."""
    log, plot = tmp_path / "x.log", tmp_path / "x.svg"
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    process = subprocess.Popen(
        command(server, "--interval", "10ms", "--log", str(log), "--plot", str(plot)), stdout=writer
    )
    os.close(writer)
    try:
        wait_for(lambda: lines_in(log) > 200)  # some 80 bytes each on the terminal
        process.send_signal(signal.SIGINT)
        wait_for(plot.exists)
        assert process.poll() is None
        with os.fdopen(reader) as text:
            out = text.read()
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
    assert out.count("system_stats  cuda:0 8192") == lines_in(log)
    assert "=== VRAM Usage Statistics (cuda:1) ===" in out


def test_a_second_signal_ends_a_monitor_whose_terminal_is_paused(server, tmp_path) -> None:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    log, plot = tmp_path / "x.log", tmp_path / "x.svg"
    process = subprocess.Popen(
        command(server, "--interval", "10ms", "--log", str(log), "--plot", str(plot)), stdout=writer
    )
    os.close(writer)
    try:
        wait_for(lambda: lines_in(log) > 200)
        process.send_signal(signal.SIGTERM)
        wait_for(plot.exists)
        time.sleep(0.5)  # two that come together are one
        process.send_signal(signal.SIGTERM)
        assert process.wait(5) == -signal.SIGTERM
    finally:
        process.kill()
        process.wait()
        os.close(reader)


def test_without_what_windows_lacks(server, tmp_path) -> None:
    """Neither fcntl, nor SIGHUP, nor pread: log, Ctrl-C and statistics are there all the same."""
    log = tmp_path / "vram-usage.jsonl"
    process = subprocess.Popen(
        [sys.executable, like_windows.__file__, *command(server, "--interval", "50ms", "--jsonl")[3:]],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        wait_for(lambda: lines_in(log) > 6)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, err) == (0, "")
    assert "=== VRAM Usage Statistics (cuda:1) ===" in out


def test_on_a_terminal_it_is_a_live_view(server, tmp_path) -> None:
    live = server.live_history()
    live.runs.append(
        prompt_run("abcdef0123", time.time(), [node_run("3", "KSampler", time.time())])
    )
    leader, follower = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120", "LINES": "40"}
    process = subprocess.Popen(
        command(server, "--interval", "100ms"), cwd=tmp_path, env=environment,
        stdin=follower, stdout=follower, stderr=follower, start_new_session=True,
    )  # fmt: skip
    os.close(follower)
    shown = bytearray()
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            if select.select([leader], [], [], 0.1)[0]:
                try:
                    shown.extend(os.read(leader, 65536))
                except OSError:
                    return

    reader = threading.Thread(target=read)
    reader.start()
    try:
        wait_for(lambda: b"KSampler (node 3)" in shown and b"from history" in shown)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        wait_for(lambda: b"Time of the peak" in shown)
    finally:
        process.kill()
        process.wait()
        stop.set()
        reader.join()
        os.close(leader)
    text = shown.decode("utf-8", "replace")
    assert "8.0 / 24.0 GB" in text
    assert "█" in text
    assert "Traceback" not in text
    assert "\x1b[?25h" in text  # the cursor is back


def test_the_monitor_needs_no_torch(server, tmp_path) -> None:
    code = (
        "import sys; from distorch.tools.cli import main\n"
        f"main(['monitor', '--url', '{server.url}', '--for', '200ms', '--quiet'])\n"
        "sys.exit(3 if 'torch' in sys.modules else 0)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False).returncode == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--url", "ftp://x"], "'ftp://x' is no address"),
        (["--keep", "0"], "--keep must be at least 1"),
        (["--devices", "cuda:0;cuda:1"], "expected all, first, or names"),
        (["--plot", "/none/x.svg"], "there is no folder /none"),
        (["--log", "/none/x.log"], "/none/x.log: No such file or directory"),
    ],
)
def test_wrong_input_is_named(words: list[str], message: str, capsys) -> None:
    assert main(["monitor", *words, "--for", "1s"]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--interval", "0"], "'0' is no duration"),
        (["--for", "ten minutes"], "'ten minutes' is no duration"),
        (["--rotate", "64 bananas"], "'64 bananas' is no size"),
        (["--prometheus", "http"], "'http' is no port"),
        (["--csv", "--jsonl"], "not allowed with argument"),
    ],
)
def test_arguments_that_cannot_be_read(words: list[str], message: str, capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["monitor", *words])
    assert message in capsys.readouterr().err


def test_durations_and_sizes() -> None:
    assert [duration(t) for t in ("5", "90s", "10m", "1h30m", "500ms", "1.5m")] == [
        5,
        90,
        600,
        5400,
        0.5,
        90,
    ]
    assert [size(t) for t in ("0", "200", "64MB", "1 gb", "10k")] == [
        0,
        200,
        64 * 2**20,
        2**30,
        10240,
    ]
