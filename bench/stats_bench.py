# SPDX-License-Identifier: Apache-2.0
"""Statistics of ten million samples: the C++ core beside pandas, processor time and memory, each in its own process.

Processor time, not the clock: both use one thread, and the machine may be shared. The log is in the page cache.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

Row = tuple[str, float, str, str]

SAMPLES = 10_000_000
DEVICES = 8  # of the forms that name them

# The most memory the process had; ru_maxrss would count what its parent had before.
_MEMORY = """
def memory():
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))
"""

_OURS = """
import json, sys, time
from distorch.tools.stats import read_logs
start = time.process_time()
found = read_logs([sys.argv[1]])
seconds = time.process_time() - start
first = found.devices[0]
print(json.dumps({"seconds": seconds, "bad": found.bad_lines,
    "samples": sum(d.samples for d in found.devices),
    "first": [first.peak, first.minimum, first.median, first.p95],
    "megabytes": memory()}))
"""

_PANDAS = """
import json, sys, time
import pandas
start = time.process_time()
table = pandas.read_csv(sys.argv[1], names=["time", "used", "free"], usecols=["time", "used"])
used = table["used"].str.slice(5, -2).astype("int64")
first = [int(used.max()), int(used.min()), float(used.median()),
    int(used.quantile(0.95, interpolation="lower"))]
mean, at = used.mean(), table["time"][used.idxmax()]
steps = pandas.to_timedelta(table["time"]).diff().dt.total_seconds()
gaps = int((steps > 2.5 * steps.median()).sum())
seconds = time.process_time() - start
print(json.dumps({"seconds": seconds, "samples": len(used), "first": first,
    "megabytes": memory()}))
"""


def _clock(second: int) -> str:
    return f"{second // 3600 % 24:02d}:{second // 60 % 60:02d}:{second % 60:02d}"


def _used(i: int) -> int:
    return (i * 7919 + i * i % 1009) % 24576


def _seed_line(i: int) -> str:
    return f"{_clock(5 * i)},Used={_used(i)}MB,Free={24576 - _used(i)}MB\n"


def _all_line(i: int) -> str:
    return f"{_clock(5 * (i // DEVICES))},cuda:{i % DEVICES}{_seed_line(i)[8:]}"


def _figures(i: int) -> tuple[str, int, int, int, int]:
    total, used = 24576 << 20, _used(i) << 20
    return f"{1763700000 + i // DEVICES * 5}.250", i % DEVICES, used, total - used, total


def _csv_line(i: int) -> str:
    moment, device, used, free, total = _figures(i)
    return f"{moment},cuda:{device},{used},{free},{total},{used},history\n"


def _json_line(i: int) -> str:
    moment, device, used, free, total = _figures(i)
    return (
        f'{{"time":{moment},"device":"cuda:{device}","used":{used},"free":{free},"total":{total},'
        f'"peak":{used},"source":"history"}}\n'
    )


FORMS = {
    "one device": ("", _seed_line),
    "8 devices": ("", _all_line),
    "CSV": ("time,device,used,free,total,peak,source\n", _csv_line),
    "JSONL": ("", _json_line),
}


# Ten million samples in less than 2 s and 200 MB, whatever the form: at most, by row.
GOALS = {f"stats: {form}": 2.0 for form in FORMS} | {
    f"stats: {form}, memory of the process": 200.0 for form in FORMS
}


def _write(path: Path, form: str, samples: int) -> None:
    """Write a log; a stretch of it is repeated, for writing is not what is measured."""
    head, line = FORMS[form]
    stretch = min(samples, 200_000)
    block = "".join(line(i) for i in range(stretch)).encode()
    with path.open("wb") as log:
        log.write(head.encode())
        for _ in range(samples // stretch):
            log.write(block)


def _measure(program: str, path: Path) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-c", _MEMORY + program, str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return dict(json.loads(done.stdout))


def main(moment: bool = False) -> list[Row]:
    """Return the rows of bench/run.py. pandas reads a fifth of the samples: it needs GBs for all."""
    samples = 10_000 if moment else SAMPLES
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vram.log"
        for form in FORMS:
            _write(path, form, samples)
            ours = _measure(_OURS, path)
            if ours["samples"] != samples or ours["bad"]:
                raise RuntimeError(f"{form}: {ours}")
            label = f"{samples} samples, {path.stat().st_size / 1e6:.0f} MB of log"
            rows.append((f"stats: {form}", ours["seconds"], "s", label))
            rows.append((f"stats: {form}, memory of the process", ours["megabytes"], "MB", ""))
        _write(path, "one device", samples // 5)
        ours, theirs = _measure(_OURS, path), _measure(_PANDAS, path)
        if ours["first"] != theirs["first"]:
            raise RuntimeError(f"the two do not agree: {ours} {theirs}")
        label = f"{samples // 5} samples; distorch stats: {ours['seconds']:.2f} s"
        rows.append(("pandas: one device", theirs["seconds"], "s", label))
        rows.append(("pandas: one device, memory of the process", theirs["megabytes"], "MB", ""))
    return rows


if __name__ == "__main__":
    from run import alone

    sys.exit(alone(main, GOALS))
