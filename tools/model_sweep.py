# SPDX-License-Identifier: Apache-2.0
"""Runs small models of transformers and diffusers in every way of placing them; writes docs/models.md.

    make models                          all of them, about a quarter of an hour; goes on where it was cut off
    make models MODELS="LlamaModel"      some, told on the screen only

Each class is built from its own defaults with the sizes reduced (tests/python/models). Results are lines of JSON.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import pathlib
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "python" / "models"))

import diffusers  # noqa: E402
import distorch_sim  # noqa: E402
import small_diffusers  # noqa: E402
import small_transformers  # noqa: E402
import sweep  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

_SECONDS = 60  # for building a model, and for each way


class _TooSlowError(BaseException):
    """No error that a model's own code catches."""


def _late(*_: Any) -> None:
    raise _TooSlowError(f"takes over {_SECONDS} s")


def cases() -> Iterator[tuple[str, str, Callable[[], Any]]]:
    """(library, class, what makes the model and its inputs)."""
    for name, (cls, config) in small_transformers.names():
        yield "transformers", name, lambda c=cls, f=config: small_transformers.make(c, f)
    for name, cls in small_diffusers.names():
        yield "diffusers", name, lambda c=cls: small_diffusers.make(c)


def _timed(function: Callable[..., Any], *args: Any) -> Any:
    signal.alarm(_SECONDS)
    try:
        return function(*args)
    finally:
        signal.alarm(0)


def examine(library: str, name: str, make: Callable[[], Any]) -> dict[str, Any]:
    """One row: `built` is why the model could not be made small, "" when it could; `ways` what each gave."""
    row: dict[str, Any] = {"library": library, "class": name, "built": "", "ways": {}}
    try:
        model, inputs = _timed(make)
        expected = _timed(sweep.reference, model, inputs)
    except (Exception, _TooSlowError) as error:
        row["built"] = f"{type(error).__name__}: {error}"[:300]
        return row
    gc.collect()
    gc.freeze()  # what was imported need not be looked through at every collection
    for way in sweep.WAYS:
        try:
            row["ways"][way] = vars(_timed(sweep.check, model, inputs, way, expected))
        except (Exception, _TooSlowError) as error:
            row["ways"][way] = vars(sweep.Result(f"{type(error).__name__}: {error}"[:300]))
    return row


def _faults(row: dict[str, Any]) -> dict[str, str]:
    return {way: found["reason"] for way, found in row["ways"].items() if found["reason"]}


def page(rows: list[dict[str, Any]]) -> str:
    """Return docs/models.md."""
    ran = [row for row in rows if not row["built"]]
    right = [row for row in ran if not _faults(row)]
    streamed = sum(row["ways"]["stream"]["streamed"] for row in right)
    migrated = sum(row["ways"]["migrate"]["migrated"] for row in right)
    lines = [
        "# Models that were tried",
        "",
        "Written by `make models` (tools/model_sweep.py). Each class is built from its own defaults with its sizes reduced and",
        "random weights, then run three times in each of three ways over two simulated devices and the host: module by module,",
        "streamed, migrated. Each run has to equal the plain run on one device bit for bit, the placement is read back after",
        "them, and unloading has to give back the very tensors, and all memory.",
        "",
        f"transformers {transformers.__version__}, diffusers {diffusers.__version__}, torch {torch.__version__},",
        f"{time.strftime('%Y-%m-%d')}: **{len(right)} of {len(ran)} classes are right in all ways**; {streamed} layer groups were",
        f"streamed, {migrated} migrated. {len(rows) - len(ran)} more classes were not tried: their defaults, reduced by the names",
        "of the sizes alone, give no model below 48 MB that runs in one piece. That is a matter of the reducing, not of placing.",
        "",
        "| class | way | why not |",
        "|---|---|---|",
    ]
    for row in ran:
        lines += [f"| {row['class']} | {way} | {why} |" for way, why in _faults(row).items()]
    if len(right) == len(ran):
        lines += ["| none | | |"]
    lines += [
        "",
        "What the runs need for that: on the host, MKL's matrix products depend in their last bits on where a weight begins in",
        "memory, unless `MKL_CBWR=AUTO,STRICT` is set before torch is imported, as here. GPUs know no such thing.",
        "",
    ]
    for library in ("transformers", "diffusers"):
        names = sorted(row["class"] for row in right if row["library"] == library)
        lines += [f"## {library}: {len(names)}", "", _wrapped(names), ""]
    return "\n".join(lines)


def _wrapped(names: list[str]) -> str:
    lines, line = [], ""
    for name in (*(f"{name}," for name in names[:-1]), *names[-1:]):
        if line and len(line) + len(name) > 118:
            lines.append(line)
            line = ""
        line = f"{line} {name}" if line else name
    return "\n".join([*lines, line])


def main() -> int:
    """Return 0 when every model that could be built is right in every way."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "names", nargs="*", help="classes; default: all, and docs/models.md is written"
    )
    parser.add_argument("--results", type=pathlib.Path, default=ROOT / "build" / "models.jsonl")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    transformers.logging.set_verbosity_error()
    diffusers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    signal.signal(signal.SIGALRM, _late)
    distorch_sim.install([1 << 30] * 2)
    rows: list[dict[str, Any]] = []
    if not options.names and options.results.exists():
        rows = [json.loads(line) for line in options.results.read_text().splitlines()]
    done = {row["class"] for row in rows}
    for library, name, make in cases():
        if name in done or (options.names and name not in options.names):
            continue
        row = examine(library, name, make)
        rows.append(row)
        if not options.names:
            with options.results.open("a") as file:
                file.write(json.dumps(row) + "\n")
        if options.names or _faults(row):
            print(name, row["built"] or _faults(row) or "right", flush=True)
    if not options.names:
        (ROOT / "docs" / "models.md").write_text(page(rows))
        options.results.unlink()
    return int(any(_faults(row) for row in rows))


if __name__ == "__main__":
    sys.exit(main())
