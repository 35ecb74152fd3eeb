# SPDX-License-Identifier: Apache-2.0
"""What `distorch monitor` writes and shows, opened as its arguments say."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

from distorch.tools.cli.terminal import Speaker
from distorch.tools.monitor.exporter import PrometheusSink
from distorch.tools.monitor.lines import Chosen, Csv, JsonLines, Lines
from distorch.tools.monitor.log_file import LogFile
from distorch.tools.monitor.recorder import Sink
from distorch.tools.monitor.sinks import LogSink, StatisticsSink, Timeline
from distorch.tools.monitor.view import LiveView, PlainView


class InputError(ValueError):
    """An argument that cannot be used; the message says why."""


@dataclass
class Outputs:
    """All that events go to; the log is first. `live` is for rich, `notes` are for the end."""

    statistics: StatisticsSink
    timeline: Timeline
    sinks: list[Sink] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    live: LiveView | None = None
    speaker: Speaker | None = None

    def close(self) -> None:
        """Wait until the terminal has taken everything. The monitor closes the sinks."""
        if self.speaker is not None:
            self.speaker.close()


def open_outputs(args: argparse.Namespace) -> Outputs:
    """Open everything. Raises InputError or OSError, and leaves nothing open then."""
    if args.keep < 1:
        raise InputError("--keep must be at least 1")
    if args.plot is not None and not args.plot.parent.is_dir():
        raise InputError(f"--plot: there is no folder {args.plot.parent}")
    outputs = Outputs(StatisticsSink(chosen(args)), Timeline(chosen(args)))
    with contextlib.ExitStack() as undo:  # an error below closes what was opened
        log = _open_log(args)
        if log is not None:
            undo.callback(log.close)
            outputs.sinks.append(log)
            outputs.notes.append(f"log: {_log_path(args)}")
        if args.prometheus is not None:
            exporter = _open_exporter(*args.prometheus)
            undo.callback(exporter.close)
            outputs.sinks.append(exporter)
            outputs.notes.append(f"metrics: {exporter.url}")
        undo.pop_all()
    outputs.sinks += [outputs.statistics, outputs.timeline]
    if not args.quiet:
        _open_view(args, outputs)
    return outputs


def _open_view(args: argparse.Namespace, outputs: Outputs) -> None:
    if not args.plain and sys.stdout.isatty() and importlib.util.find_spec("rich"):
        outputs.live = LiveView(chosen(args), [*outputs.notes, "Ctrl-C ends it"])
        outputs.sinks.append(outputs.live)
        return
    speaker = outputs.speaker = Speaker(sys.stdout)
    for note in outputs.notes:
        speaker.write(f"{note}\n")
    outputs.sinks.append(PlainView(lambda line: speaker.write(f"{line}\n"), chosen(args)))


def _open_exporter(host: str, port: int) -> PrometheusSink:
    try:
        return PrometheusSink(port, host)
    except OSError as error:
        raise InputError(f"--prometheus {host}:{port}: {error.strerror or error}") from None


def chosen(args: argparse.Namespace, first: bool = False) -> Chosen:
    """Return the devices of --devices. Raises InputError."""
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


def _open_log(args: argparse.Namespace) -> LogSink | None:
    path = _log_path(args)
    if path is None:
        return None
    form: Csv | JsonLines | Lines
    if args.csv:
        form = Csv(chosen(args))
    elif args.jsonl:
        form = JsonLines(chosen(args))
    else:
        form = Lines(chosen(args, first=True), named=args.devices not in (None, "first"))
    return LogSink(LogFile(path, header=form.header, limit=args.rotate, keep=args.keep), form)
