# SPDX-License-Identifier: Apache-2.0
"""Fuzzes the edges written in Python by Atheris, which libFuzzer guides by what of them has run: fuzz_edges.py SECONDS [EDGE...].

Each edge of tests/python/support/edge_inputs.py for so long, in a process of its own. Prints how many inputs each took; fails
when one is treated in a way nobody promised, which is then kept as build/crash-*.
"""

from __future__ import annotations

import argparse
import logging
import os
import pathlib
import re
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests/python/support"))


def main() -> int:
    """Run it; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seconds", type=int)
    parser.add_argument("edges", nargs="*", help="all when none is named")
    parser.add_argument("--here", action="store_true", help="this one edge, in this process")
    arguments = parser.parse_args()
    if arguments.here:
        fuzz(arguments.edges[0], arguments.seconds)
    import edge_inputs

    status = 0
    for name in arguments.edges or [edge.name for edge in edge_inputs.EDGES]:
        command = [sys.executable, __file__, "--here", str(arguments.seconds), name]
        with tempfile.TemporaryDirectory() as folder:  # Atheris ends its process without tidying up
            ended = subprocess.run(
                command,
                capture_output=True,
                text=True,
                errors="replace",
                env={**os.environ, "TMPDIR": folder},
            )
        done = re.search(r"Done (\d+) runs in (\d+) second", ended.stderr)
        if ended.returncode == 0 and done is not None:
            sys.stdout.write(f"{name}: {done[1]} in {done[2]} s, nothing found\n")
        else:
            status = 1
            sys.stdout.write(f"FOUND {name}\n{(ended.stdout + ended.stderr)[-3000:]}\n")
        sys.stdout.flush()
    return status


def fuzz(name: str, seconds: int) -> None:
    """Give the edge inputs for so long. Ends the process: with 0 when nothing was found."""
    import atheris

    with atheris.instrument_imports(include=["distorch", "edge_inputs", "pack_import"]):
        import edge_inputs
    logging.disable(logging.CRITICAL)
    edge = next(edge for edge in edge_inputs.EDGES if edge.name == name)
    folder = pathlib.Path(tempfile.mkdtemp(prefix="distorch-fuzz-"))
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(edge.seeds):
        (corpus / str(number)).write_bytes(seed)
    # libFuzzer takes no longer ones.
    short = (token for token in edge_inputs.TOKENS if len(token) <= 64)
    words = ('"' + "".join(f"\\x{byte:02x}" for byte in token) + '"' for token in short)
    (folder / "words").write_text("\n".join(words) + "\n")
    options = (f"-max_total_time={seconds}", f"-dict={folder / 'words'}", "-max_len=16384")
    atheris.Setup(
        [sys.argv[0], *options, f"-artifact_prefix={ROOT / 'build'}{os.sep}", str(corpus)],
        edge.check,
    )
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
