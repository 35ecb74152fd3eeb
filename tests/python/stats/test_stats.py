# SPDX-License-Identifier: Apache-2.0
"""Statistics of logs: equal to a plain recomputation, bad lines named, fast and small."""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distorch.tools.cli import main
from distorch.tools.stats import StatisticsReader, read_logs

MB = 2**20

SAMPLES = st.lists(
    st.tuples(
        st.integers(0, 2),  # device
        st.integers(0, 200_000),  # MB used
        st.integers(0, 5000),  # MB more at the peak
        st.integers(0, 60_000),  # ms since the sample before
    ),
    min_size=1,
    max_size=60,
)
FORM = st.sampled_from(["line", "csv", "json", "other json"])


def lines_of(samples, form: str) -> tuple[str, dict]:
    """A log, and its figures computed plainly."""
    now = 1_763_700_000_000
    text = ["time,device,used,free,total,peak,source"] if form == "csv" else []
    devices: dict[str, dict] = {}
    for number, used, more, step in samples:
        if form == "line":
            step = step // 1000 * 1000
        now += step
        device, peak = f"cuda:{number}", used + more
        clock = now // 1000 % 86400
        if form == "line":
            when = f"{clock // 3600:02d}:{clock // 60 % 60:02d}:{clock % 60:02d}"
            text.append(f"{when},{device},Used={used}MB,Free=1MB,Peak={peak}MB")
        elif form == "csv":
            text.append(f"{now / 1000:.3f},{device},{used * MB},1,2,{peak * MB},x")
        else:
            fields = {"time": now / 1000, "device": device, "used": used * MB, "peak": peak * MB}
            separators = (",", ":") if form == "json" else (", ", ": ")
            text.append(json.dumps(fields, separators=separators))
        found = devices.setdefault(device, {"used": [], "peaks": [], "times": []})
        found["used"].append(used)
        found["peaks"].append(peak)
        found["times"].append(clock if form == "line" else now / 1000)
    return "\n".join(text) + "\n", devices


# Hypothesis reads the sources of what is imported before its first draw, and counts that as slow.
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(samples=SAMPLES, form=FORM, cut=st.integers(1, 200))
def test_equals_a_plain_recomputation(samples, form: str, cut: int) -> None:
    text, expected = lines_of(samples, form)
    reader = StatisticsReader()
    reader.start("x")
    data = text.encode()
    for at in range(0, len(data), cut):
        reader.feed(data[at : at + cut])
    found = reader.result()
    assert found.bad_lines == 0
    assert [d.device for d in found.devices] == list(expected)
    for device in found.devices:
        plain = expected[device.device]
        used = sorted(plain["used"])
        assert device.samples == len(used)
        assert device.peak == max(plain["peaks"])
        assert device.peak_time == pytest.approx(plain["times"][plain["peaks"].index(device.peak)])
        assert device.sampled_peak == used[-1]
        assert device.minimum == used[0]
        assert device.average == pytest.approx(statistics.fmean(used))
        assert device.median == statistics.median(used)
        assert device.p95 == used[-(-95 * len(used) // 100) - 1]
        steps = [b - a for a, b in itertools.pairwise(plain["times"])]
        tenths = [math.floor((s + 86400 if s < 0 else s) * 10 + 0.5) / 10 for s in steps]
        interval = statistics.median_low(tenths) if tenths else 0
        gaps = [s for s in tenths if s > max(2.5 * interval, interval + 1.5)]
        assert device.interval == pytest.approx(interval)
        assert device.gaps == len(gaps)
        assert device.gap_seconds == pytest.approx(sum(gaps))
        assert device.longest_gap == pytest.approx(max(gaps, default=0))


SEED_LOG = """\
12:00:00,Used=1000MB,Free=23576MB
12:00:05,Used=9001MB,Free=15575MB
12:00:10,Used=1000MB,Free=23576MB
"""


def test_the_block_of_one_device(tmp_path: Path, capsys) -> None:
    log = tmp_path / "vram-usage.log"
    log.write_text(SEED_LOG)
    assert main(["stats", str(log)]) == 0
    assert capsys.readouterr().out == (
        "=== VRAM Usage Statistics ===\n"
        "Peak VRAM: 9001 MB (from 3 samples)\n"
        "Average VRAM: 3667 MB\n"
        "Minimum VRAM: 1000 MB\n"
        "Median VRAM: 1000 MB\n"
        "95th percentile: 9001 MB\n"
        "Time of the peak: 12:00:05\n"
        "Gaps: none, a sample every 5 s\n"
    )


def test_powershells_log_is_read(tmp_path: Path) -> None:
    """A byte order mark and Windows' line ends."""
    log = tmp_path / "x.log"
    log.write_bytes(b"\xef\xbb\xbf" + SEED_LOG.replace("\n", "\r\n").encode())
    found = read_logs([log])
    assert (found.bad_lines, found.devices[0].peak) == (0, 9001)


def test_several_logs_devices_models_nodes_and_bad_lines(tmp_path: Path, capsys) -> None:
    first, second = tmp_path / "a.log", tmp_path / "b.jsonl"
    first.write_text(SEED_LOG + "rubbish \x07\n")
    rows = [
        {"time": 10, "device": "cuda:1", "used": 5 * MB, "peak": 1029 * MB},
        {"time": 15, "gap": "system_stats: HTTP 500"},
        {"time": 16, "clock": 5.0},
        {"time": 20, "device": "cuda:1", "used": 6 * MB},
        {"time": 20, "model": "flux1-dev", "type": "diffusion", "bytes": {"cuda:1": 4 * MB}},
        {"time": 20, "model": "t5", "type": "", "bytes": {"cuda:0": 9 * MB, "cpu": MB}},
        {"time": 22, "node": "3", "kind": "KSampler", "started": 12, "ended": 14, "peak": {"cuda:1": 7 * MB}},
        {"time": 22, "node": "3", "kind": "KSampler", "started": 14, "ended": 17, "peak": {"cuda:1": 8 * MB}},
        {"time": 22, "run": "p1", "status": "success"},
    ]  # fmt: skip
    second.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"time": 23, "dev')
    assert main(["stats", str(first), str(second)]) == 0
    text = capsys.readouterr().out
    assert "=== VRAM Usage Statistics (device not named) ===\nPeak VRAM: 9001 MB" in text
    assert "=== VRAM Usage Statistics (cuda:1) ===\nPeak VRAM: 1029 MB (from 2 samples)" in text
    assert "Between samples: 1023 MB more than the largest sample, 6 MB\n" in text
    assert (
        "=== Models ===\n"
        "t5, peak 9 MB on cuda:0, 1 MB on cpu\n"
        "flux1-dev (diffusion), peak 4 MB on cuda:1\n"
    ) in text
    assert "=== Nodes ===\nKSampler (node 3): 2 runs, 2.5 s each, peak 8 MB on cuda:1\n" in text
    assert "No answer 1 times: system_stats: HTTP 500\n" in text
    assert "The clock was set 1 times.\n" in text
    assert (
        "Bad lines: 2 of 14\n"
        f'  {first}:4: expected HH:mm:ss: "rubbish \\x07"\n'
        f'  {second}:10: not the JSON of a log: "{{\\"time\\": 23, \\"dev"\n'
    ) in text


def test_gaps_over_midnight(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    clocks = ["23:59:45", "23:59:50", "23:59:55", "00:00:00", "00:00:05", "00:01:05", "00:01:10"]
    log.write_text("".join(f"{c},Used=1MB,Free=1MB\n" for c in clocks))
    (device,) = read_logs([log]).devices
    assert (device.gaps, device.gap_seconds, device.interval) == (1, 60, 5)
    assert "Gaps: 1, 60 s in all, the longest 60 s, a sample every 5 s" in device.block(named=False)


def test_rotated_parts_are_read_oldest_first(tmp_path: Path, capsys) -> None:
    for suffix, used in (("", 1), (".1", 2), (".2", 3), (".10", 4), (".old", 9), (".1.gz", 9)):
        (tmp_path / f"x.log{suffix}").write_text(
            f"12:00:0{used},Used={used}MB,Free=1MB\nbad{suffix}\n"
        )
    assert main(["stats", "--rotated", str(tmp_path / "x.log")]) == 0
    out = capsys.readouterr().out
    assert "Peak VRAM: 4 MB (from 4 samples)" in out
    bad = re.findall(r"x\.log(?:\.\d+)?(?=:)", out)
    assert bad == ["x.log.10", "x.log.2", "x.log.1", "x.log"]
    assert main(["stats", str(tmp_path / "x.log")]) == 0
    assert "Peak VRAM: 1 MB (from 1 samples)" in capsys.readouterr().out


def test_json_output(tmp_path: Path, capsys) -> None:
    log = tmp_path / "x.log"
    log.write_text(SEED_LOG)
    assert main(["stats", "--json", str(log)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["devices"][0]["peak"] == 9001
    assert found["lines"] == 3


def test_a_log_that_is_not_there_is_named_and_the_others_count(tmp_path: Path, capsys) -> None:
    log = tmp_path / "x.log"
    log.write_text(SEED_LOG)
    missing = tmp_path / "none.log"
    assert main(["stats", str(missing), str(log), str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert "Peak VRAM: 9001 MB" in out
    assert f"distorch stats: {missing}: No such file or directory\n" in err
    refusal = "Permission denied" if sys.platform == "win32" else "Is a directory"
    assert f"distorch stats: {tmp_path}: {refusal}\n" in err


def test_an_empty_log_has_no_samples(tmp_path: Path, capsys) -> None:
    log = tmp_path / "x.log"
    log.write_text("")
    assert main(["stats", str(log)]) == 1
    assert capsys.readouterr().out == "no samples\n"


def test_standard_input() -> None:
    command = [sys.executable, "-m", "distorch", "stats", "-"]
    done = subprocess.run(command, input=SEED_LOG, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Peak VRAM: 9001 MB (from 3 samples)" in done.stdout


def test_a_reader_that_goes_away_is_no_error() -> None:
    """As in `distorch stats LOG | head -0`; nothing is flushed before the end."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    with subprocess.Popen(
        [sys.executable, "-m", "distorch", "stats", "-"], env=environment, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        process.stdout.close()
        process.stdout = None
        _, err = process.communicate(SEED_LOG, timeout=280)
    assert (process.returncode, err) == (0, "")


def test_stats_needs_no_torch() -> None:
    code = "import sys; from distorch.tools.cli import main; main(['stats', '/dev/null']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0


def test_bytes_that_are_no_text_do_no_harm(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    log.write_bytes(b"12:00:00,\xff\xfe,Used=1MB,Free=1MB\n\x00\xff\n")
    found = read_logs([log])
    assert found.devices[0].device == "\ufffd\ufffd"
    assert found.bad_lines == 1
    json.dumps(found.as_json())
    assert found.text().encode()


def test_names_do_not_command_the_terminal(tmp_path: Path, capsys) -> None:
    log = tmp_path / "x.jsonl"
    log.write_text(
        '{"time":1,"device":"\\u001b[31mred","used":5}\n{"time":1,"device":"cuda:0","used":5}\n'
    )
    assert main(["stats", str(log)]) == 0
    out = capsys.readouterr().out
    assert "(?[31mred)" in out
    assert "\x1b" not in out


def test_a_time_that_no_calendar_has(tmp_path: Path, monkeypatch) -> None:
    log = tmp_path / "x.jsonl"
    log.write_text('{"time":999999999999,"device":"cuda:0","used":5}\n')

    def fails(_seconds: float) -> None:
        raise OSError("[Errno 22] Invalid argument")  # Windows, from the year 3001

    monkeypatch.setattr(time, "localtime", fails)
    assert "Time of the peak: 999999999999 s after 1970 began" in read_logs([log]).text()


def test_a_million_samples_in_a_second_and_little_memory(tmp_path: Path) -> None:
    """The benchmark measures ten million; this catches a change of order, on any machine."""
    log = tmp_path / "x.log"
    block = "".join(
        f"12:00:{i % 60:02d},Used={i * 7919 % 24576}MB,Free=1MB\n" for i in range(10_000)
    )
    with log.open("w") as out:
        for _ in range(100):
            out.write(block)
    code = (
        "import sys, time\nfrom distorch.tools.stats import read_logs\nread_logs([])\n"
        "start = time.process_time()\nfound = read_logs([sys.argv[1]])\n"
        "took = time.process_time() - start\n"
        "peak = next(int(x.split()[1]) for x in open('/proc/self/status') if x.startswith('VmHWM'))\n"
        "print(found.devices[0].samples, took, peak // 1024)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(log)],
        capture_output=True,
        text=True,
        check=True,
    )
    samples, took, megabytes = done.stdout.split()
    assert int(samples) == 1_000_000
    assert float(took) < 1.0  # 0.07 s on the machine it was written on
    assert int(megabytes) < 100
