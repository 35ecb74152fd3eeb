# SPDX-License-Identifier: Apache-2.0
"""What long commands say when it is read slowly, or not at all. With real pipes: test_monitor_command.py."""

from __future__ import annotations

import threading

from waiting import wait_for

from distorch.tools.cli.terminal import Speaker


class Stream:
    """Takes nothing until it is released."""

    def __init__(self, fails: bool = False) -> None:
        self.released, self.fails, self.said = threading.Event(), fails, ""

    def write(self, words: str) -> None:
        assert self.released.wait(30)
        if self.fails:
            raise BrokenPipeError
        self.said += words

    def flush(self) -> None:
        pass


def blocked(stream: Stream) -> Speaker:
    """A speaker of at most three pieces, whose thread is held up by a first one."""
    speaker = Speaker(stream, most=3)
    speaker.write("first\n")
    wait_for(lambda: not speaker._waiting)
    return speaker


def test_what_nobody_takes_is_bounded_and_told_of() -> None:
    stream = Stream()
    speaker = blocked(stream)
    for i in range(5):
        speaker.write(f"{i}\n")
    stream.released.set()
    speaker.close()
    speaker.close()
    assert stream.said == "first\n0\n1\n2\n(2 lines were left out: nobody took them)\n"


def test_a_reader_that_went_away_takes_no_more() -> None:
    stream = Stream(fails=True)
    speaker = blocked(stream)
    speaker.write("lost\n")
    stream.released.set()
    wait_for(lambda: not speaker._thread.is_alive())
    speaker.write("lost\n")
    speaker.close()
    assert (stream.said, list(speaker._waiting)) == ("", [])
