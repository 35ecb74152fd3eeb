# SPDX-License-Identifier: Apache-2.0
"""`distorch monitor`: memory over a whole run, from outside of ComfyUI or without it. Needs neither torch nor a GPU."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distorch.cli.quantities import address, duration, size

if TYPE_CHECKING:
    from distorch.monitor.recorder import Sink
    from distorch.monitor.sinks import StatisticsSink, Timeline

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

Exit status: 0; 1 where no look succeeded; 2 where the input is wrong or the log cannot be written.
"""


class InputError(ValueError):
    """An argument that cannot be used; the message says why."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `distorch monitor`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    where = parser.add_argument_group("what is watched")
    where.add_argument(
        "--url", default=DEFAULT_URL, help=f"ComfyUI's address (default: {DEFAULT_URL})"
    )
    where.add_argument(
        "--no-server",
        action="store_true",
        help="ask no server: this machine's GPUs by NVML or nvidia-smi",
    )
    where.add_argument(
        "--devices",
        metavar="LIST",
        help='"all", "first", or names such as cuda:0,cuda:1 (default: the first device in a log of lines, '
        "all everywhere else)",
    )
    when = parser.add_argument_group("when")
    when.add_argument(
        "--interval",
        type=duration,
        default=5.0,
        metavar="TIME",
        help="between two looks (default: 5s)",
    )
    when.add_argument(
        "--for", dest="length", type=duration, metavar="TIME", help="stop after this time"
    )
    when.add_argument(
        "--timeout",
        type=duration,
        default=2.0,
        metavar="TIME",
        help="for each question to the server",
    )
    log = parser.add_argument_group("the log")
    log.add_argument(
        "--log", type=Path, metavar="FILE", help="append to this file, a line for each sample"
    )
    form = log.add_mutually_exclusive_group()
    form.add_argument(
        "--csv", action="store_true", help="comma-separated (default file: vram-usage.csv)"
    )
    form.add_argument(
        "--jsonl", action="store_true", help="JSON lines (default file: vram-usage.jsonl)"
    )
    log.add_argument(
        "--rotate",
        type=size,
        default=64 * 2**20,
        metavar="SIZE",
        help="rotate at this size (64MB); 0: never",
    )
    log.add_argument("--keep", type=int, default=5, metavar="N", help="rotated files to keep (5)")
    other = parser.add_argument_group("other output")
    other.add_argument("--plot", type=Path, metavar="FILE.svg", help="a picture of the run")
    other.add_argument(
        "--prometheus",
        type=address,
        metavar="[HOST:]PORT",
        help="serve /metrics (host: 127.0.0.1)",
    )
    other.add_argument("--plain", action="store_true", help="lines instead of the live view")
    other.add_argument(
        "--quiet", action="store_true", help="neither: only the statistics at the end"
    )


@dataclass
class _Outputs:
    """All that events go to; the log is first."""

    statistics: StatisticsSink
    timeline: Timeline
    sinks: list[Sink] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    live: Any = None


def run(args: argparse.Namespace) -> int:
    """Watch until the time is over, or Ctrl-C, or SIGTERM; then print the statistics."""
    from distorch.monitor import BackgroundMonitor, open_sources

    try:
        sources = open_sources(None if args.no_server else args.url, args.timeout)
        outputs = _open_outputs(args)
    except (InputError, OSError, ValueError) as error:
        sys.stderr.write(f"distorch monitor: {_words(error)}\n")
        return 2
    monitor = BackgroundMonitor(sources, args.interval, outputs.sinks, capacity=1)
    with _stop_signal() as stopped:
        try:
            monitor.start()
            _wait(args, monitor, outputs, stopped)
        finally:
            stopped.set()
            monitor.stop(_STOP)
    if monitor.sink_errors:
        sys.stderr.write(
            f"distorch monitor: {monitor.sink_errors} events could not be written: {monitor.last_sink_error}\n"
        )
    return _finish(args, monitor, outputs)


def _words(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


def _open_outputs(args: argparse.Namespace) -> _Outputs:
    from distorch.monitor.exporter import PrometheusSink
    from distorch.monitor.sinks import StatisticsSink, Timeline
    from distorch.monitor.view import LiveView, PlainView

    if args.keep < 1:
        raise InputError("--keep must be at least 1")
    if args.plot is not None and not args.plot.parent.is_dir():
        raise InputError(f"--plot: there is no folder {args.plot.parent}")
    outputs = _Outputs(StatisticsSink(_chosen(args)), Timeline(_chosen(args)))
    with contextlib.ExitStack() as undo:  # an error below closes what was opened
        log = _open_log(args)
        if log is not None:
            undo.callback(log.close)
            outputs.sinks.append(log)
            outputs.notes.append(f"log: {_log_path(args)}")
        if args.prometheus is not None:
            host, port = args.prometheus
            try:
                exporter = PrometheusSink(port, host)
            except OSError as error:
                raise InputError(f"--prometheus {host}:{port}: {error.strerror}") from None
            undo.callback(exporter.close)
            outputs.sinks.append(exporter)
            outputs.notes.append(f"metrics: http://{host}:{exporter.port}/metrics")
        undo.pop_all()
    outputs.sinks += [outputs.statistics, outputs.timeline]
    if not args.quiet:
        if not args.plain and sys.stdout.isatty() and importlib.util.find_spec("rich"):
            outputs.live = LiveView(_chosen(args), [*outputs.notes, "Ctrl-C ends it"])
            outputs.sinks.append(outputs.live)
        else:
            for note in outputs.notes:
                _say(note)
            outputs.sinks.append(PlainView(_say, _chosen(args)))
    return outputs


def _chosen(args: argparse.Namespace, first: bool = False) -> Any:
    from distorch.monitor.lines import Chosen

    words = args.devices or ("first" if first else "all")
    if words in ("first", "all"):
        return Chosen(every=words == "all")
    names = [name.strip().lower() for name in words.split(",")]
    if not all(re.fullmatch(r"[a-z][a-z0-9_]*(:\d+)?", name) for name in names):
        raise InputError(
            f"--devices {words!r}: expected all, first, or names such as cuda:0,cuda:1"
        )
    return Chosen(names)


def _log_path(args: argparse.Namespace) -> Path | None:
    default = "vram-usage.csv" if args.csv else "vram-usage.jsonl" if args.jsonl else None
    return args.log if args.log is not None else Path(default) if default else None


def _open_log(args: argparse.Namespace) -> Any:
    from distorch.monitor.lines import Csv, JsonLines, Lines
    from distorch.monitor.log_file import LogFile
    from distorch.monitor.sinks import LogSink

    path = _log_path(args)
    if path is None:
        return None
    form: Any
    if args.csv:
        form = Csv(_chosen(args))
    elif args.jsonl:
        form = JsonLines(_chosen(args))
    else:
        form = Lines(_chosen(args, first=True), named=args.devices not in (None, "first"))
    return LogSink(LogFile(path, header=form.header, limit=args.rotate, keep=args.keep), form)


def _say(text: str) -> None:
    """Print a line. A reader that went away does not end the record."""
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


@contextlib.contextmanager
def _stop_signal() -> Iterator[threading.Event]:
    """Turn the first SIGINT, SIGTERM or SIGHUP into an event; a second one ends the process at once.

    A SIGHUP that nohup had ignored stays so.
    """
    stopped = threading.Event()
    before = {}

    def handle(number: int, _frame: object) -> None:
        if stopped.is_set():
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        stopped.set()

    if threading.current_thread() is threading.main_thread():
        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            numbers.append(signal.SIGHUP)
        before = {n: signal.signal(n, handle) for n in numbers}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(
    args: argparse.Namespace, monitor: Any, outputs: _Outputs, stopped: threading.Event
) -> None:
    """Return when the time is over or the event is set; meanwhile draw the live view and the plot."""
    deadline = None if args.length is None else time.monotonic() + args.length
    next_plot = time.monotonic() + _PLOT_EVERY
    told = False
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
            if args.plot is not None and time.monotonic() >= next_plot:
                next_plot = time.monotonic() + _PLOT_EVERY
                _write_plot(args, outputs)


def _write_plot(args: argparse.Namespace, outputs: _Outputs) -> str:
    """Write the picture; returns what is wrong, or ""."""
    from distorch.monitor.plot import render_svg, write_svg

    try:
        write_svg(args.plot, render_svg(outputs.timeline))
    except OSError as error:
        return f"{args.plot}: {error.strerror}"
    return ""


def _finish(args: argparse.Namespace, monitor: Any, outputs: _Outputs) -> int:
    status = 0
    _say(outputs.statistics.result().text().rstrip("\n"))
    if args.plot is not None:
        wrong = _write_plot(args, outputs)
        if wrong:
            sys.stderr.write(f"distorch monitor: --plot {wrong}\n")
            status = 1
        else:
            outputs.notes.append(f"plot: {args.plot}")
    if outputs.notes:
        _say("\n" + "\n".join(outputs.notes))
    if monitor.taken == 0:
        reason = monitor.last_gap.reason if monitor.last_gap else "no look was finished"
        sys.stderr.write(f"distorch monitor: no sample: {reason}\n")
        status = 1
    return status
