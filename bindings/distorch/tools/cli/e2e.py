# SPDX-License-Identifier: Apache-2.0
"""`distorch e2e`: run workflows on a running ComfyUI and check that they succeed and that memory comes back."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from distorch.tools.cli import signals, terminal
from distorch.tools.cli.quantities import duration
from distorch.tools.e2e import report, results, workflow
from distorch.tools.e2e.results import RunResult
from distorch.whole_file import write_whole

if TYPE_CHECKING:
    from distorch.tools.e2e.runner import Run
    from distorch.tools.monitor import Sink

FAST_SECONDS = 360.0  # a fresh video scene takes about 210 s
DEFAULT_SECONDS = 3600.0
_EPILOG = """\
examples:
  distorch e2e wan.json --clear-cache --fast-iteration
  distorch e2e wan.json flux.json --repeat 10 --clear-cache --monitor --json run.json --plot run.svg

The files are workflows in ComfyUI's API form: Workflow > Export (API).

Exit status; where several apply, the first of this list:
  128+N  stopped by signal N (Ctrl-C: 130); the prompt was taken off the server
  2      wrong arguments, a file that cannot be queued, or aiohttp is missing
  5      the server cannot be reached, or was lost
  1      a scene failed: refused, an error in a node, or interrupted by somebody else; or a file could not be written
  3      a scene was not done within the time limit
  4      memory does not come back on some device (takes 10 scenes)
  6      a scene came from ComfyUI's cache: it measured nothing (--allow-cached: no failure)
  0      none of these
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `distorch e2e`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    parser.add_argument("workflows", nargs="+", metavar="WORKFLOW.json", type=Path)
    parser.add_argument("--url", default="http://127.0.0.1:8188", help="default: %(default)s")
    limit = parser.add_mutually_exclusive_group()
    limit.add_argument(
        "--fast-iteration", action="store_true", help=f"{FAST_SECONDS:g} s a scene at most"
    )
    limit.add_argument(
        "--timeout", type=duration, metavar="TIME", default=DEFAULT_SECONDS,
        help="how long a scene may take: 90, 10m, 2h (default: 1h)",
    )  # fmt: skip
    parser.add_argument(
        "--repeat", type=_count, metavar="N", default=1, help="run all workflows N times"
    )
    parser.add_argument(
        "--clear-cache",
        action="store_true",
        help="unload models and forget the results of nodes before each scene",
    )
    parser.add_argument("--monitor", action="store_true", help="show the devices' memory all along")
    parser.add_argument("--fail-fast", action="store_true", help="end after the first failed scene")
    parser.add_argument(
        "--allow-cached", action="store_true", help="a scene from the cache is no failure"
    )
    parser.add_argument("--quiet", action="store_true", help="a line a scene, none for its nodes")
    _add_memory(parser.add_argument_group("memory"))
    files = parser.add_argument_group("files to write")
    files.add_argument(
        "--json", type=Path, metavar="FILE", help="everything, after each scene anew"
    )
    files.add_argument("--junit", type=Path, metavar="FILE", help="JUnit XML, at the end")
    files.add_argument(
        "--log", type=Path, metavar="FILE",
        help="every sample, as distorch monitor writes it: .jsonl, .csv, or else lines",
    )  # fmt: skip
    files.add_argument("--plot", type=Path, metavar="FILE.svg", help="the timeline, at the end")


def _add_memory(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--interval", type=duration, metavar="TIME", default=1.0,
        help="between two samples (default: 1s)",
    )  # fmt: skip
    group.add_argument(
        "--settle", type=_wait, metavar="TIME", default=15.0,
        help="how long memory may take to come to rest after a scene (default: 15s)",
    )  # fmt: skip
    group.add_argument(
        "--drift-mb", type=_not_negative, metavar="MB", default=1.0,
        help="a steady rise of at least this a scene is a leak (default: 1)",
    )  # fmt: skip
    group.add_argument(
        "--drift-ram-mb", type=_not_negative, metavar="MB",
        help="the same for RAM, which other programs change too (default: RAM is not judged)",
    )  # fmt: skip
    group.add_argument(
        "--reconnect", type=_wait, metavar="TIME", default=60.0,
        help="how long the server may stay away, e.g. for a restart (default: 60s)",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Run the command; the exit status is described in its help."""
    with contextlib.ExitStack() as closing:
        try:
            found = [workflow.read(path) for path in args.workflows]
            for path in (args.json, args.junit, args.plot):
                _check_target(path)
            log = _open_log(args.log)
            for sink in log:
                closing.callback(sink.close)
            speaker = terminal.Speaker(sys.stdout)
            closing.callback(speaker.close)
            made = _make(args, workflow.scenes(found, args.repeat), log, speaker)
        except (ValueError, ImportError, OSError) as error:
            sys.stderr.write(f"distorch e2e: {error}\n")
            return results.USAGE
        asyncio.run(_supervise(made))
        return _finish(args, made, speaker)


def _finish(args: argparse.Namespace, run: Run, speaker: terminal.Speaker) -> int:
    """Write the files, then say the rest: the terminal may be paused."""
    wrong = [run.losses] if run.losses else []
    try:
        _write_all(args, run)
    except OSError as error:
        wrong.append(str(error))
    speaker.close()
    terminal.say(report.text(run.result))
    sys.stderr.writelines(f"distorch e2e: {words}\n" for words in wrong)
    return run.result.exit_status or (results.FAILED if wrong else results.GOOD)


def _open_log(path: Path | None) -> list[Sink]:
    """The sink of --log, by the file's ending. Raises OSError."""
    if path is None:
        return []
    from distorch.tools.monitor.lines import Chosen, Csv, JsonLines, Lines
    from distorch.tools.monitor.log_file import LogFile
    from distorch.tools.monitor.sinks import LogSink

    form: Csv | JsonLines | Lines
    if path.suffix == ".jsonl":
        form = JsonLines(Chosen(every=True))
    elif path.suffix == ".csv":
        form = Csv(Chosen(every=True))
    else:
        form = Lines(Chosen(), named=False)
    return [LogSink(LogFile(path, header=form.header), form)]


def _make(
    args: argparse.Namespace,
    scenes: list[workflow.Scene],
    log: list[Sink],
    speaker: terminal.Speaker,
) -> Run:
    """Put a run together; raises ImportError when aiohttp is not there, ValueError for a bad address."""
    try:
        import aiohttp  # noqa: F401 - asked for here, so that the answer can name the remedy
    except ImportError as error:
        raise ImportError(
            f"{error}. It is what talks to ComfyUI: pip install aiohttp (or install distorch[monitor])"
        ) from error
    from distorch.tools.e2e import display, runner
    from distorch.tools.e2e.client import Client
    from distorch.tools.e2e.memory import MemoryWatch
    from distorch.tools.e2e.scene import Limits

    seconds = FAST_SECONDS if args.fast_iteration else args.timeout
    options = runner.Options(
        scenes,
        Limits(scene=seconds, reconnect=args.reconnect),
        clear_cache=args.clear_cache,
        fail_fast=args.fail_fast,
        allow_cached=args.allow_cached,
        settle=args.settle,
        drift=args.drift_mb * 2**20,
        drift_ram=None if args.drift_ram_mb is None else args.drift_ram_mb * 2**20,
        saved=lambda result: _save(args.json, result),
    )
    client = Client(args.url)
    shown = display.make(sys.stdout, speaker, memory=args.monitor, quiet=args.quiet)
    return runner.Run(client, MemoryWatch(client.url, args.interval, log), options, shown)


async def _supervise(run: Run) -> None:
    """Run; a signal ends it in order (prompt off the server, threads ended), a second one at once."""
    task = asyncio.ensure_future(run.run())

    def stop(number: int) -> None:
        run.result.signal = number
        task.cancel()

    loop = asyncio.get_running_loop()
    # Not loop.add_signal_handler, which Windows does not have. The call wakes the loop.
    with signals.first_signal(lambda number: loop.call_soon_threadsafe(stop, number)):
        try:
            await task
        except asyncio.CancelledError:
            if not run.result.signal:
                raise


def _check_target(path: Path | None) -> None:
    """Raise ValueError for a file that could not be written after an hour of work."""
    if path is None:
        return
    if path.is_dir():
        raise ValueError(f"{path} is a folder")
    if not path.parent.is_dir():
        raise ValueError(f"{path}: there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise ValueError(f"{path}: the folder {path.parent} cannot be written to")


def _write_all(args: argparse.Namespace, run: Run) -> None:
    from distorch.tools.e2e import plot

    if args.json is not None:
        _write_json(args.json, run.result)
    if args.junit is not None:
        write_whole(args.junit, report.junit(run.result))
    if args.plot is not None:
        write_whole(args.plot, plot.svg(run.result, run.timeline))


def _write_json(path: Path, result: RunResult) -> None:
    write_whole(path, json.dumps(result.to_json(), indent=1) + "\n")


def _save(path: Path | None, result: RunResult) -> None:
    """Keep what there is, for a run that is killed; the write at the end is the one that may fail."""
    if path is not None:
        with contextlib.suppress(OSError):
            _write_json(path, result)


def _wait(words: str) -> float:
    """A duration, or 0."""
    return 0.0 if words == "0" else duration(words)


def _not_negative(words: str) -> float:
    try:
        value = float(words)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{words!r} is no number") from None
    if not math.isfinite(value) or value < 0:
        raise argparse.ArgumentTypeError("must be 0 or more")
    return value


def _count(words: str) -> int:
    if not words.isdecimal() or not 1 <= int(words) <= 100_000:
        raise argparse.ArgumentTypeError(f"{words!r} is no whole number from 1 to 100000")
    return int(words)
