# SPDX-License-Identifier: Apache-2.0
"""`distorch monitor`: memory over a whole run, from outside of ComfyUI or without it. Needs neither torch nor a GPU."""

from __future__ import annotations

import argparse
import contextlib
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from distorch.tools.cli import signals, terminal
from distorch.tools.cli.quantities import address, duration, size

if TYPE_CHECKING:
    from distorch.tools.cli.monitor_outputs import Outputs
    from distorch.tools.monitor import BackgroundMonitor

DEFAULT_URL = "http://127.0.0.1:8188"
_PLOT_EVERY = 60.0  # seconds: what kill -9 may cost
_STOP = 6.0  # seconds that ending may take; half of it for a last look

_EPILOG = """\
examples:
  distorch monitor                                     watch; Ctrl-C prints the statistics
  distorch monitor --log vram-usage.log --for 10m      12:34:56,Used=8123MB,Free=16453MB every 5 s
  distorch monitor --jsonl --plot run.svg              everything, and a picture at the end
  distorch monitor --no-server --devices all           this machine's GPUs, without ComfyUI

The best source that answers is used: the pack's own history, ComfyUI's /system_stats, NVML, nvidia-smi. A server that
is down or slow costs a gap. Only the first of these sees a spike between two samples; see docs/monitoring.md.

Exit status: 0; 1 where no look succeeded, or none had the devices named; 2 where the input is wrong or the log cannot be opened.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `distorch monitor`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    _add_source(parser.add_argument_group("what is watched"))
    _add_time(parser.add_argument_group("when"))
    _add_log(parser.add_argument_group("the log"))
    _add_other(parser.add_argument_group("other output"))


def _add_source(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--url", default=DEFAULT_URL, help=f"ComfyUI's address (default: {DEFAULT_URL})"
    )
    group.add_argument(
        "--no-server",
        action="store_true",
        help="ask no server: this machine's GPUs by NVML or nvidia-smi",
    )
    group.add_argument(
        "--devices",
        metavar="LIST",
        help='"all", "first", or names such as cuda:0,cuda:1 (default: the first device in a log of lines, '
        "all everywhere else)",
    )


def _add_time(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--interval",
        type=duration,
        default=5.0,
        metavar="TIME",
        help="between two looks (default: 5s)",
    )
    group.add_argument(
        "--for", dest="length", type=duration, metavar="TIME", help="stop after this time"
    )
    group.add_argument(
        "--timeout",
        type=duration,
        default=2.0,
        metavar="TIME",
        help="for each question to the server",
    )


def _add_log(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--log", type=Path, metavar="FILE", help="append to this file, a line for each sample"
    )
    form = group.add_mutually_exclusive_group()
    form.add_argument(
        "--csv", action="store_true", help="comma-separated (default file: vram-usage.csv)"
    )
    form.add_argument(
        "--jsonl", action="store_true", help="JSON lines (default file: vram-usage.jsonl)"
    )
    group.add_argument(
        "--rotate",
        type=size,
        default=64 * 2**20,
        metavar="SIZE",
        help="rotate at this size (64MB); 0: never",
    )
    group.add_argument("--keep", type=int, default=5, metavar="N", help="rotated files to keep (5)")


def _add_other(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--plot", type=Path, metavar="FILE.svg", help="a picture of the run")
    group.add_argument(
        "--prometheus",
        type=address,
        metavar="[HOST:]PORT",
        help="serve /metrics (host: 127.0.0.1)",
    )
    group.add_argument("--plain", action="store_true", help="lines instead of the live view")
    group.add_argument(
        "--quiet", action="store_true", help="neither: only the statistics at the end"
    )


def run(args: argparse.Namespace) -> int:
    """Watch until the time is over, or Ctrl-C, or SIGTERM; then print the statistics."""
    from distorch.tools.cli.monitor_outputs import InputError, open_outputs
    from distorch.tools.monitor import BackgroundMonitor, open_sources

    try:
        sources = open_sources(None if args.no_server else args.url, args.timeout)
        outputs = open_outputs(args)
    except (InputError, OSError, ValueError) as error:
        sys.stderr.write(f"distorch monitor: {_words(error)}\n")
        return 2
    monitor = BackgroundMonitor(sources, args.interval, outputs.sinks, capacity=1)
    with signals.stop_event() as stopped:
        try:
            monitor.start()
            _wait(args, monitor, outputs, stopped)
        finally:
            stopped.set()
            monitor.stop(_STOP)
        return _finish(args, monitor, outputs)


def _words(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


def _wait(
    args: argparse.Namespace, monitor: BackgroundMonitor, outputs: Outputs, stopped: threading.Event
) -> None:
    """Return when the time is over or the event is set; meanwhile draw the live view and the plot."""
    deadline = None if args.length is None else time.monotonic() + args.length
    next_plot = time.monotonic() + _PLOT_EVERY
    told = checked = False
    with contextlib.ExitStack() as stack:
        if outputs.live is not None:
            from rich.live import Live

            stack.enter_context(Live(outputs.live, refresh_per_second=4, transient=True))
        while monitor.running:
            left = 1.0 if deadline is None else min(1.0, deadline - time.monotonic())
            if left <= 0 or stopped.wait(left):
                return
            if monitor.sink_errors and not told:
                told = True  # at once: a full disk may be made room on
                sys.stderr.write(f"distorch monitor: {monitor.last_sink_error}\n")
            if monitor.taken and not checked:
                checked = True
                if absent := _absent(args, monitor):
                    sys.stderr.write(f"distorch monitor: --devices: there is no {absent}\n")
            if args.plot is not None and time.monotonic() >= next_plot:
                next_plot = time.monotonic() + _PLOT_EVERY
                _write_plot(args, outputs)


def _absent(args: argparse.Namespace, monitor: BackgroundMonitor) -> str:
    """Return which devices of --devices nobody tells of, and which there are; "" where all are told of."""
    from distorch.tools.cli.monitor_outputs import chosen

    newest = monitor.samples()[-1]
    names = ", ".join(chosen(args).absent(newest))
    return f"{names}; there are {', '.join(d.device for d in newest.devices)}" if names else ""


def _write_plot(args: argparse.Namespace, outputs: Outputs) -> str:
    """Write the picture; returns what is wrong, or ""."""
    from distorch.tools.monitor.plot import render_svg
    from distorch.whole_file import write_whole

    try:
        write_whole(args.plot, render_svg(outputs.timeline))
    except OSError as error:
        return f"{args.plot}: {error.strerror}"
    return ""


def _finish(args: argparse.Namespace, monitor: BackgroundMonitor, outputs: Outputs) -> int:
    """Write the picture, then say the rest: the terminal may be paused."""
    wrong = []
    if monitor.losses:
        sys.stderr.write(f"distorch monitor: {monitor.losses}\n")
    if args.plot is not None:
        failed = _write_plot(args, outputs)
        if failed:
            wrong.append(f"--plot {failed}")
        else:
            outputs.notes.append(f"plot: {args.plot}")
    if monitor.taken == 0:
        reason = monitor.last_gap.reason if monitor.last_gap else "no look was finished"
        wrong.append(f"no sample: {reason}")
    found = outputs.statistics.result()
    if monitor.taken and not found.devices:
        wrong.append(f"no sample of {_absent(args, monitor) or args.devices}")
    outputs.close()
    terminal.say(found.text())
    if outputs.notes:
        terminal.say("\n" + "\n".join(outputs.notes) + "\n")
    for words in wrong:
        sys.stderr.write(f"distorch monitor: {words}\n")
    return 1 if wrong else 0
